# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a device adds to a machine, and what it may ask of those who build the machine.

A device describes itself once. The same description becomes options of the command line when a machine is started and
commands of its monitor when the device is plugged later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from orrery.drivers.qemu.layout import Layout
from orrery.drivers.qemu.plan import Accelerator, Command, TapFds, VolumeFile
from orrery.model.devices import MachineView

Properties = dict[str, Any]
"""Arguments of `-object`, `-blockdev`, `-netdev`, `-device`, and of the QMP commands that do the same."""


@dataclass
class Parts:
    """What a device consists of. `options` are plain options; `commands` run before the processors do."""

    options: list[str] = field(default_factory=list)
    objects: list[Properties] = field(default_factory=list)
    chardevs: list[str] = field(default_factory=list)
    blockdevs: list[Properties] = field(default_factory=list)
    netdevs: list[Properties] = field(default_factory=list)
    devices: list[Properties] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Parts") -> Self:
        """Append another device's parts."""
        for name in self.__dataclass_fields__:
            getattr(self, name).extend(getattr(other, name))
        return self

    @classmethod
    def joined(cls, parts: Iterable["Parts"]) -> Self:
        """All of these, in order."""
        whole = cls()
        for each in parts:
            whole.add(each)
        return whole


class Sources(Protocol):
    """Where devices get what has to be open."""

    def file(self, path: Path, *, writable: bool, label: str, image: str | None = None) -> str:
        """The name by which QEMU opens a file of ours."""
        ...

    def memory_copy(self, path: Path, label: str) -> str:
        """The name by which QEMU opens a copy of a file that lives only as long as the machine."""
        ...

    def socket(self, name: str) -> int:
        """Number of the descriptor of a socket that listens in the machine's run folder."""
        ...

    def tap(self, name: str, tap: TapFds) -> Properties:
        """Properties `fd` or `fds`, `vhostfd` or `vhostfds` of a tap."""
        ...


@dataclass(frozen=True)
class Context:
    """The machine around a device. `aio`: how disks that say nothing about it are read and written.

    `boot` maps the devices that the firmware tries to their place in the order. `nested` is the processor flag for
    machines within the machine, `vmx` or `svm`, where the host has one.
    """

    view: MachineView
    layout: Layout
    accelerator: Accelerator
    sources: Sources
    aio: str = "io_uring"
    nested: str | None = None
    volumes: Mapping[str, VolumeFile] = field(default_factory=dict)
    taps: Mapping[int, TapFds] = field(default_factory=dict)
    boot: Mapping[str, int] = field(default_factory=dict)

    def bootindex(self, key: str) -> Properties:
        """The property `bootindex` of a device that the firmware tries, else nothing."""
        return {"bootindex": self.boot[key]} if key in self.boot else {}
