# SPDX-License-Identifier: AGPL-3.0-or-later
"""lxcfs: tells `free`, `nproc`, `top` and `uptime` in a container what it may use, instead of what the host has.

One for each node. Like the containers it outlives the node; it is found again by its arguments, which name the folder
that it shows its files in. That folder is a mount of the host (FUSE): every container's monitor, whose view is a copy
of the host's, must see it. It is unmounted with the service. lxcfs runs as root, since it reads everybody's groups.

When it dies, reading its files fails in every container. So a new one is started and the files are put into running
containers anew.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orrery.errors import Failure, OrreryError
from orrery.system import kernel, livemounts, process
from orrery.system.kernel import StepError
from orrery.system.mounts import Folder, Mount
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

_PROGRAM: Final = "lxcfs"
_START_SECONDS: Final = 10.0
_MOST_DEPTH: Final = 8
_FILES: Final = (
    *(f"proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime")),
    "sys/devices/system/cpu",
)
"""As `orrery.drivers.lxc.config` shows them."""


@dataclass(frozen=True, slots=True)
class ShownFile:
    """A file of lxcfs and where a container has it."""

    source: Path
    target: str


class LxcfsService:
    """The service of one root."""

    def __init__(self, paths: Paths) -> None:
        self.folder = paths.lxcfs
        self._log = paths.lxcfs_log
        self._pid_file = paths.run / "lxcfs.pid"
        self._spot = paths.run / "lxcfs.spot"
        self._known: ProcessId | None = None

    def start(self) -> bool:
        """Run, if it does not; says whether a new one was started. Raises Failure with the reason from its log."""
        if self._known is not None and process.alive(self._known):
            return False
        running = self.processes()
        if len(running) == 1 and self.files():
            self._known = running[0]
            return False
        self.stop()
        if self._known is not None:
            process.reap(self._known)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with self._log.open("ab") as log:
            begin = log.tell()
            # By the quota as well, not by the set of processors alone; load averages of the container itself.
            command = [_PROGRAM, "-f", "-l", "--enable-cfs", "-p", str(self._pid_file), str(self.folder)]
            started = process.spawn(command, name=_PROGRAM, stdout=log.fileno(), stderr=log.fileno())
            self._known = started
        end = time.monotonic() + _START_SECONDS
        while not self.files():
            if not process.alive(started) or time.monotonic() > end:
                process.reap(started)
                reason = self._last_words(begin)
                self.stop()
                raise Failure(f"lxcfs failed to start: {reason}")
            time.sleep(0.02)
        return True

    def stop(self) -> None:
        """End it and unmount its folder (idempotent). Raises Failure when it does not go."""
        for running in self.processes():
            process.terminate(running)
        self._pid_file.unlink(missing_ok=True)
        for _ in range(_MOST_DEPTH):
            try:
                kernel.unmount(str(self.folder), kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
            except StepError:  # nothing is mounted there, which is what was wanted
                break

    def processes(self) -> list[ProcessId]:
        """Its process; more than one after an accident."""
        return process.search(str(self.folder))

    def files(self) -> list[ShownFile]:
        """What it shows now; nothing while it does not run. Versions differ in what they have."""
        shown = []
        for name in _FILES:
            with suppress(OSError):
                (self.folder / name).stat()
                shown.append(ShownFile(self.folder / name, f"/{name}"))
        return shown

    def maintain(self, containers: Iterable[int]) -> list[str]:
        """Start it again when it has died, and mend running containers, given by the pids of their inits.

        Says what was done and what could not be. Raises Failure when it does not start.
        """
        if not self.start():
            return []
        notes = ["lxcfs was started"]
        for pid in containers:
            try:
                self.mend(pid)
            except OrreryError as error:
                notes.append(f"the container of process {pid} sees the host's numbers: {error.message}")
        return notes

    def mend(self, pid: int) -> None:
        """Put the present files in the place of those of a service that is gone. Raises Failure."""
        for name in _FILES:
            livemounts.detach(pid, f"/{name}", lazy=True)
        for shown in self.files():
            spot = self._spot.with_suffix(".folder" if shown.source.is_dir() else ".file")
            mount = Mount(Folder(shown.source, recursive=False), spot)
            livemounts.attach(pid, mount, shown.target)

    def _last_words(self, begin: int) -> str:
        with self._log.open("rb") as handle:
            handle.seek(begin)
            lines = handle.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted at a folder of the host, dead or alive."""
    wanted = os.fsencode(folder)
    return any(line.split(b" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
