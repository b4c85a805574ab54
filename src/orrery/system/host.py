# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the machine is and how busy it is, read from /proc (proc(5)) and /sys. Bytes and seconds throughout."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from orrery.system import files

_PROC: Final = Path("/proc")
_HERTZ: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processors: `count` logical ones, in `sockets` packages of `cores` cores each."""

    model: str
    count: int
    cores: int
    sockets: int
    mhz: float
    flags: frozenset[str]

    @property
    def hardware_virtualization(self) -> str | None:
        """`vmx` or `svm` where KVM can run guests. /dev/kvm alone proves nothing: it may open and guests hang."""
        return next((flag for flag in ("vmx", "svm") if flag in self.flags), None)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes; `available` is what programs can get without swapping."""

    total: int
    free: int
    available: int
    swap_total: int
    swap_free: int

    @property
    def used(self) -> int:
        return self.total - self.available

    @property
    def swap_used(self) -> int:
        return self.swap_total - self.swap_free


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds that all processors together spent since boot: working, idle, waiting for disks; and in all states."""

    busy: float
    idle: float
    wait: float
    total: float

    def used_since(self, earlier: "CpuTimes") -> tuple[float, float]:
        """Shares (0 to 1) of the time since `earlier` that were busy and that waited for disks."""
        spent = self.total - earlier.total
        if spent <= 0:
            return 0.0, 0.0
        return max(0.0, (self.busy - earlier.busy) / spent), max(0.0, (self.wait - earlier.wait) / spent)


@dataclass(frozen=True, slots=True)
class Pressure:
    """Percent of the last 10 seconds in which some, or all, tasks waited for a resource."""

    some: float
    full: float


def cpu() -> Cpu:
    """Model, count and flags of the processors; the frequency is that of the first."""
    return parse_cpuinfo((_PROC / "cpuinfo").read_text())


@cache
def cpu_flags() -> frozenset[str]:
    """Flags of the first processor; they do not change while the machine runs."""
    return cpu().flags


def parse_cpuinfo(text: str) -> Cpu:
    """Read /proc/cpuinfo of any architecture: what is missing there counts as one socket of as many cores."""
    blocks = [dict(_fields(block)) for block in text.strip().split("\n\n") if "processor" in block]
    first = blocks[0] if blocks else {}
    packages = {block.get("physical id", "0") for block in blocks}
    cores = {(block.get("physical id", "0"), block.get("core id", str(index))) for index, block in enumerate(blocks)}
    return Cpu(
        model=first.get("model name", first.get("CPU part", platform.machine())),
        count=len(blocks) or os.cpu_count() or 1,
        cores=max(1, len(cores) // max(1, len(packages))),
        sockets=max(1, len(packages)),
        mhz=float(first.get("cpu MHz", 0)),
        flags=frozenset(first.get("flags", first.get("Features", "")).split()),
    )


def _fields(block: str) -> list[tuple[str, str]]:
    return [
        (key.strip(), value.strip())
        for key, colon, value in (line.partition(":") for line in block.splitlines())
        if colon
    ]


def memory() -> Memory:
    """Memory and swap."""
    return parse_meminfo((_PROC / "meminfo").read_text())


def parse_meminfo(text: str) -> Memory:
    values = {
        key: int(value.split()[0]) * _KIB
        for key, value in _fields(text)
        if value.split()[:1] and value.split()[0].isdigit()
    }
    free = values.get("MemFree", 0)
    return Memory(
        total=values.get("MemTotal", 0),
        free=free,
        available=values.get("MemAvailable", free),
        swap_total=values.get("SwapTotal", 0),
        swap_free=values.get("SwapFree", 0),
    )


def cpu_times() -> CpuTimes:
    """What the processors did since boot."""
    with (_PROC / "stat").open() as handle:
        return parse_stat(handle.readline())


def parse_stat(line: str) -> CpuTimes:
    """The first line of /proc/stat: user nice system idle iowait irq softirq steal (guest times are in user)."""
    ticks = [int(field) / _HERTZ for field in line.split()[1:9]]
    ticks += [0.0] * (8 - len(ticks))
    user, nice, system, idle, wait, irq, softirq, steal = ticks
    busy = user + nice + system + irq + softirq + steal
    return CpuTimes(busy, idle, wait, busy + idle + wait)


def load() -> tuple[float, float, float]:
    """Load averages of 1, 5 and 15 minutes."""
    return os.getloadavg()


def uptime() -> float:
    """Seconds since boot."""
    return float((_PROC / "uptime").read_text().split()[0])


@cache
def has_capability(number: int) -> bool:
    """Whether this process has a capability in force (capabilities(7); numbers of include/uapi/linux/capability.h)."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> number & 1)
    return False


def boot_id() -> str:
    """Changes with every boot: what lived in the kernel under another boot id is gone."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def network_namespace() -> int:
    """Number of the network namespace that we are in."""
    return Path("/proc/self/ns/net").stat().st_ino


def root_space() -> files.Space:
    """Size and use of the root file system."""
    return files.space(Path("/"))


@dataclass(frozen=True, slots=True)
class Kernel:
    """The running kernel, as uname(2) names it."""

    system: str
    release: str
    version: str
    machine: str


def kernel() -> Kernel:
    """The running kernel."""
    name = os.uname()
    return Kernel(name.sysname, name.release, name.version, name.machine)


def efi() -> bool:
    """Whether the machine was booted by UEFI."""
    return Path("/sys/firmware/efi").is_dir()


def same_page_sharing() -> int:
    """Bytes of memory that the kernel saves by sharing equal pages; 0 where it does not."""
    try:
        pages = int(Path("/sys/kernel/mm/ksm/pages_sharing").read_text())
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def pressure(resource: str) -> Pressure | None:
    """Pressure of `cpu`, `memory` or `io`; None where the kernel does not measure it."""
    try:
        return parse_pressure((_PROC / "pressure" / resource).read_text())
    except OSError:
        return None


def parse_pressure(text: str) -> Pressure:
    """A pressure file: lines `some avg10=… avg60=… …` and, mostly, `full …`."""
    found = {"some": 0.0, "full": 0.0}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        values = dict(field.partition("=")[::2] for field in rest.split())
        if kind in found:
            found[kind] = float(values["avg10"])
    return Pressure(found["some"], found["full"])
