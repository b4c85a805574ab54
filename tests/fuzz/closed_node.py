# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real node that cannot hurt the machine whatever it is asked to do: what fuzzing needs, as root too.

It lives in a network namespace without any way out (the test process's own) and in a mount namespace in which nothing
can be written but the node's own root; no file may grow beyond a gigabyte. Programs, QEMU included, really run.
"""

import os
import subprocess
import time

from tests.node import netns
from tests.node.harness import LIVE, ORRERY, ROOT_VARIABLE, START_SECONDS, Node

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


class ClosedNode(Node):
    """Serves behind closed doors."""

    def serve(self, environment: dict[str, str] | None = None) -> "ClosedNode":
        """As a node's; everything that it starts is confined too."""
        netns.enter()
        LIVE.append(self)
        command = [str(ORRERY), "serve", "--root", str(self.folder), "--listen", f"127.0.0.1:{self.port}"]
        with self.output.open("ab") as output:
            self.serving = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", SCRIPT, str(self.folder), str(FILE_BLOCKS), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, ROOT_VARIABLE: str(self.folder), **(environment or {})},
            )
        end = time.monotonic() + START_SECONDS
        while b" serves https://" not in (said := self.output.read_bytes()):
            assert self.serving.poll() is None, said.decode(errors="replace")
            assert time.monotonic() < end, said.decode(errors="replace")
            time.sleep(0.02)
        return self
