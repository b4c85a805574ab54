# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real node that cannot hurt the machine whatever it is asked to do: what fuzzing needs, as root too.

It lives in a network namespace without any way out (the test process's own) and in a mount namespace in which nothing
can be written but the node's own root; no file may grow beyond a gigabyte. Programs, QEMU included, really run.
"""

from tests.node.harness import Node

FILE_BLOCKS = 1 << 20
"""Largest file in KiB: sparse images may be larger than the disk, but nothing fills it."""

SCRIPT = """
set -e
mount --make-rprivate /
mount --bind "$0" "$0"
awk '{ print $5 }' /proc/self/mountinfo | while read -r place; do
    case "$place" in /proc*|/sys*|/dev*|"$0"*) ;; *) mount -o remount,bind,ro "$place" ;; esac
done
if touch /etc/orrery-fuzz 2>/dev/null; then echo "the machine can be written to"; exit 1; fi
ulimit -f "$1"
shift
exec "$@"
"""


def serve_closed(node: Node) -> Node:
    """Serves a node behind closed doors; everything that it starts is confined too."""
    confined = ["unshare", "--mount", "sh", "-c", SCRIPT, str(node.folder), str(FILE_BLOCKS)]
    return node.serve(within=confined)
