# SPDX-License-Identifier: AGPL-3.0-or-later
"""The two kinds of guests, machines and containers, as far as verbs treat them alike."""

from collections.abc import Mapping
from typing import Protocol

from orrery.model.guest import GuestKind
from orrery.operations.context import NodeContext
from orrery.system.process import ProcessId


class GuestDriver(Protocol):
    """What both drivers offer: which guests run, and what is to be done about one that has ended."""

    def find(self, vmid: int) -> ProcessId | None: ...

    def running(self) -> Mapping[int, ProcessId]: ...

    def leftovers(self) -> list[int]: ...

    def forget(self, vmid: int) -> None: ...

    def discard(self, vmid: int) -> None: ...


KINDS: tuple[GuestKind, ...] = ("qemu", "lxc")


def driver_of(ctx: NodeContext, kind: GuestKind) -> GuestDriver:
    """The driver of a kind of guests."""
    return ctx.machines if kind == "qemu" else ctx.containers


def release(ctx: NodeContext, vmid: int, kind: GuestKind) -> None:
    """Removes what a run leaves behind: sockets, control group, the host's ends of network cards."""
    driver_of(ctx, kind).forget(vmid)
    ctx.network.tap_remove_all(vmid)
