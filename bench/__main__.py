# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs measurements and prints their figures; see README.md. `python -m bench [NAME]…`, as root."""

import argparse
import importlib
import logging
import os
import platform
import shutil
import sys
import time

import structlog

from bench.containers import archive
from bench.figures import show
from bench.idle import image

MEASUREMENTS = {
    "start": "Time until QEMU runs",
    "lists": "The list of all resources",
    "responsiveness": "Small requests beside large ones",
    "memory": "Memory",
    "idle": "An idle node",
    "unpack": "Unpacking a template",
    "containers": "Containers",
}
INSIDE = "ORRERY_BENCH_INSIDE"


def enter_namespaces() -> None:
    """Goes on in a network and a set of mounts of its own, so that nothing of this host's network is touched."""
    if os.environ.get(INSIDE) == "1":
        return
    unshare = shutil.which("unshare")
    assert unshare is not None, "unshare is missing (util-linux)"
    script = 'ip link set lo up && exec "$@"'
    inside = [sys.executable, "-m", "bench", *sys.argv[1:]]
    words = ["unshare", "--net", "--mount", "sh", "-c", script, "sh", *inside]
    os.execve(unshare, words, {**os.environ, INSIDE: "1"})  # noqa: S606 - the words are ours


def main() -> int:
    """Every measurement that is named, or all."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure a node on this machine.")
    parser.add_argument("names", nargs="*", choices=[[], *MEASUREMENTS], metavar="NAME", help=", ".join(MEASUREMENTS))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root: it starts a node, machines and networks of its own", file=sys.stderr)
        return 1
    if os.environ.get(INSIDE) != "1" and "idle" in (arguments.names or MEASUREMENTS):
        image()  # here, where there is a network to fetch packages from
    if os.environ.get(INSIDE) != "1" and "containers" in (arguments.names or MEASUREMENTS):
        archive()
    enter_namespaces()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.2f}, Python {platform.python_version()}")
    for name in arguments.names or MEASUREMENTS:
        begun = time.monotonic()
        figures = importlib.import_module(f"bench.{name}").measure()
        show(f"{MEASUREMENTS[name]} ({time.monotonic() - begun:.0f} s, load {os.getloadavg()[0]:.2f})", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
