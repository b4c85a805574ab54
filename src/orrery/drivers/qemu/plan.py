# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is needed to start a machine, as data: its command line, the descriptors that it gets, and its resources.

QEMU opens no path of ours. Disks, firmware, sockets and taps are opened by root and handed over as descriptors, whose
numbers in the new process follow from their order here, so that the same configuration gives the same command line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

FIRST_DESCRIPTOR: Final = 10
"""Number of the first descriptor in the new process."""

MONITORS: Final = ("events", "control", "jobs")
"""Names of the three monitors and of their sockets in the machine's run folder."""

AGENT_SOCKET: Final = "agent"

Accelerator = Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """A disk image as the storage has it. `format` is `raw`, `qcow2` or `vmdk`; `backing` is what it is based on.

    `direct`: whether its file system lets it be opened past the page cache.
    """

    path: Path
    format: str
    read_only: bool = False
    backing: "VolumeFile | None" = None
    direct: bool = True


@dataclass(frozen=True, slots=True)
class TapFds:
    """An open tap: one descriptor per queue, as many of /dev/vhost-net or none. `mtu` is told to the guest if given."""

    fds: tuple[int, ...]
    vhost: tuple[int, ...] = ()
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A unix socket that listens in the machine's run folder under this name."""

    name: str


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file to open. `image`: its header is checked for references to other files before QEMU gets it."""

    path: Path
    writable: bool = False
    image: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryCopy:
    """A copy of a file that lives in memory as long as the machine, such as firmware variables that nobody keeps."""

    path: Path


@dataclass(frozen=True, slots=True)
class Given:
    """A descriptor that the caller has open already; it stays the caller's."""

    fd: int
    label: str


Descriptor = ListeningSocket | OpenFile | MemoryCopy | Given


@dataclass(frozen=True, slots=True)
class Command:
    """A QMP command."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits kept by the host: `cpu_limit` in processors, `cpu_units` a weight, `affinity` a list as `0,3-5`."""

    cpu_limit: float = 0.0
    cpu_units: int | None = None
    affinity: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A machine to start. `commands` run before its processors do; `run` says whether they shall run at all then."""

    vmid: int
    argv: tuple[str, ...]
    descriptors: tuple[Descriptor, ...]
    commands: tuple[Command, ...]
    accelerator: Accelerator
    machine: str
    version: str
    notes: tuple[str, ...] = ()
    resources: Resources = Resources()
    run: bool = True

    @property
    def numbers(self) -> dict[int, Descriptor]:
        """Descriptors by their number in the new process."""
        return dict(enumerate(self.descriptors, FIRST_DESCRIPTOR))
