# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this host offers to containers, found out once per process."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from orrery.system import cgroup, process
from orrery.system.paths import Paths

MOST_PROCESSES: Final = 16384
"""Processes and threads that a container may have, so that none can take all that the host can have."""

_APPARMOR: Final = Path("/sys/module/apparmor/parameters/enabled")
_PID_MAX: Final = Path("/proc/sys/kernel/pid_max")

DeviceKey = Literal["lxc.cgroup.devices", "lxc.cgroup2.devices"]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`device_key`: how the list of devices is written here (LXC ignores the wrong one). `lxcfs`: its mount, if alive.

    `cpus`: numbers of the processors that are online. `pids`: how many processes a container may have. `apparmor`: the
    program that loads AppArmor's profiles, where the kernel has it; `unconfined`: the program alone is missing.
    """

    device_key: DeviceKey
    apparmor: Path | None
    lxcfs: Path | None
    cpus: tuple[int, ...]
    pids: int = MOST_PROCESSES
    unconfined: bool = False


def detect(paths: Paths) -> HostFacts:
    """Look at the host."""
    mounted = cgroup.hierarchies(everything=True).mounts
    lxcfs = paths.lxcfs
    return HostFacts(
        device_key="lxc.cgroup.devices" if "devices" in mounted else "lxc.cgroup2.devices",
        apparmor=_parser() if _text(_APPARMOR) == "Y" else None,
        unconfined=_text(_APPARMOR) == "Y" and _parser() is None,
        lxcfs=lxcfs if _is_live(lxcfs) else None,
        cpus=tuple(sorted(os.sched_getaffinity(1))),
        pids=min(MOST_PROCESSES, max(256, int(_text(_PID_MAX) or 32768) // 4)),
    )


def _is_live(lxcfs: Path) -> bool:
    """Whether lxcfs answers there; after its death the mount point stays, and every look at it fails."""
    try:
        return (lxcfs / "proc" / "meminfo").is_file()
    except OSError:
        return False


def _parser() -> Path | None:
    found = shutil.which("apparmor_parser", path=process.SEARCH_PATH)
    return None if found is None else Path(found)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
