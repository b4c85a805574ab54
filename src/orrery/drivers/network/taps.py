# SPDX-License-Identifier: AGPL-3.0-or-later
"""Taps: the host's ends of the machines' network cards, and what they share with those of containers (`veths`).

A tap's name must fit into 15 characters and belong to one root, guest and card: `o`, six digits of the root's hash, the
guest's id to the base 36, the card's number to the base 32. The alias of the interface tells the same in plain words. A
tap exists as long as QEMU (or a starting task) holds its descriptors, so nothing stays when either dies.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from orrery.drivers.network import firewall
from orrery.errors import Failure, NotSupported
from orrery.model.devices import Nic
from orrery.system import netlink, sysctl
from orrery.system.paths import Paths

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_HIGHEST_VMID: Final = 999_999_999
_CARDS: Final = 32
_MIB: Final = 1 << 20
_VHOST: Final = Path("/dev/vhost-net")
_BRIDGE_MTU: Final = 1  # this value of a card's `mtu` means that of its bridge


class Card(Protocol):
    """What the host's end of a card is told, whatever kind of guest has the other one."""

    @property
    def bridge(self) -> str | None: ...
    @property
    def tag(self) -> int | None: ...
    @property
    def trunks(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def rate(self) -> float | None: ...
    @property
    def mtu(self) -> int | None: ...
    @property
    def link_down(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Tap:
    """An open tap for QEMU: a descriptor per queue, as many of /dev/vhost-net where there is one, else none.

    `mtu` is what the guest is to be told, None for nothing. The holder closes it once QEMU has its own copies.
    """

    name: str
    fds: tuple[int, ...]
    vhost: tuple[int, ...] = ()
    mtu: int | None = None

    def close(self) -> None:
        """Close our descriptors; the tap vanishes unless somebody else holds them too."""
        for descriptor in (*self.fds, *self.vhost):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def tap_name(root_hash: str, vmid: int, index: int) -> str:
    """Name of the tap of a guest's card. Raises ValueError for numbers that no guest has."""
    if not 0 < vmid <= _HIGHEST_VMID or not 0 <= index < _CARDS:
        raise ValueError(f"guest {vmid} has no network card {index}")
    digits = ""
    while vmid:
        vmid, digit = divmod(vmid, 36)
        digits = _DIGITS[digit] + digits
    return f"o{root_hash}{digits}{_DIGITS[index]}"


def parse_tap_name(root_hash: str, name: str) -> tuple[int, int] | None:
    """The guest and card of a tap of this root; None for any other interface."""
    prefix = f"o{root_hash}"
    if not name.startswith(prefix) or len(name) < len(prefix) + 2:
        return None
    digits = name[len(prefix) :]
    try:
        vmid, index = int(digits[:-1], 36), int(digits[-1], 36)
        return (vmid, index) if tap_name(root_hash, vmid, index) == name else None
    except ValueError:
        return None


def own_taps(root_hash: str, names: Iterable[str]) -> dict[tuple[int, int], str]:
    """Those of these interfaces that are taps of this root, by guest and card."""
    parsed = ((parse_tap_name(root_hash, name), name) for name in names)
    return dict(sorted((key, name) for key, name in parsed if key is not None))


class Taps:
    """The taps of one root."""

    def __init__(self, paths: Paths) -> None:
        self._hash = paths.root_hash
        self._digest = paths.root_digest
        self._table = firewall.table_name(paths.root_hash)

    def create(self, vmid: int, index: int, nic: Nic) -> Tap:
        """Open the tap of a card, plugged into its bridge. Raises Failure, NotSupported; then nothing remains."""
        bridge = bridge_of(index, nic)
        mtu = guest_mtu(index, nic, bridge)
        name = tap_name(self._hash, vmid, index)
        queues = nic.queues or 1
        fds = netlink.open_tap(name, queues)
        tap = Tap(name, tuple(fds))
        try:
            tap = Tap(name, tap.fds, _open_vhost(queues), mtu)
            self.connect(vmid, index, nic, bridge)
        except BaseException:
            tap.close()
            raise
        return tap

    def connect(self, vmid: int, index: int, nic: Card, bridge: netlink.Link) -> None:
        """Mark the host's end of a new card as ours, plug it into its bridge and put all its limits into force."""
        name = tap_name(self._hash, vmid, index)
        # The host itself must not talk to the guest through the tap, only through the bridge.
        if sysctl.read(f"net/ipv6/conf/{name}/disable_ipv6") == "0":
            sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        alias = f"orrery:{self._digest} guest={vmid} net={index}"
        netlink.change_link(name, alias=alias, mtu=bridge.mtu, bridge=bridge.name)
        self._restrict(name, nic)

    def reconnect(self, vmid: int, index: int, nic: Card) -> None:
        """Bring the host's end of a running guest's card to what the card says now: bridge, VLANs, rate, link."""
        bridge = bridge_of(index, nic)
        guest_mtu(index, nic, bridge)
        name = tap_name(self._hash, vmid, index)
        netlink.change_link(name, up=False, bridge="")  # unplugged, it loses the VLANs that it had
        netlink.limit_output(name, None)
        netlink.change_link(name, mtu=bridge.mtu, bridge=bridge.name)
        self._restrict(name, nic)

    def _restrict(self, name: str, nic: Card) -> None:
        """Put the VLANs and limits of a card into force, and only then the link up."""
        if nic.tag is not None or nic.trunks:
            netlink.set_vlans(name, nic.tag, nic.trunks)
        if nic.rate:
            rate = max(1, int(nic.rate * _MIB))
            netlink.limit_output(name, rate)
            firewall.apply(firewall.input_limit(self._table, name, rate))
        elif name in firewall.limited_taps(self._table):  # a limit outlives its tap and falls on the next of that name
            firewall.apply(firewall.input_limit(self._table, name, None))
        netlink.change_link(name, up=not nic.link_down)

    def remove(self, vmid: int, index: int) -> None:
        """Remove a tap and its limits (idempotent). Raises Failure."""
        self._remove([tap_name(self._hash, vmid, index)])

    def remove_all(self, vmid: int) -> None:
        """Remove all taps of a guest and their limits (idempotent). Raises Failure."""
        self._remove([tap_name(self._hash, vmid, index) for index in range(_CARDS)])

    def _remove(self, names: list[str]) -> None:
        present = netlink.counters()
        for name in names:
            if name in present:
                netlink.delete_link(name)
        self.forget_limits(among=names)

    def forget_limits(self, among: Iterable[str] | None = None) -> None:
        """Remove the limits of taps that are gone; `among` these names, or all."""
        stale = firewall.limited_taps(self._table) - netlink.counters().keys()
        if among is not None:
            stale &= set(among)
        for name in sorted(stale):
            firewall.apply(firewall.input_limit(self._table, name, None))

    def set_link(self, vmid: int, index: int, *, up: bool) -> None:
        """Pull or plug the cable of a running guest's card. Raises NotFound, Failure."""
        netlink.change_link(tap_name(self._hash, vmid, index), up=up)

    def of_guest(self, vmid: int) -> dict[int, str]:
        """The taps of a guest that exist now, by card."""
        taps = own_taps(self._hash, netlink.counters())
        return {index: name for (owner, index), name in taps.items() if owner == vmid}

    def traffic(self) -> dict[int, tuple[int, int]]:
        """Bytes that came in and went out of each guest since it started, all its cards together."""
        counters = netlink.counters()
        found: dict[int, tuple[int, int]] = {}
        for (vmid, _), name in own_taps(self._hash, counters).items():
            # What the host sends into the tap comes in at the guest.
            into, out = found.get(vmid, (0, 0))
            found[vmid] = (into + counters[name].tx_bytes, out + counters[name].rx_bytes)
        return found


def _open_vhost(queues: int) -> tuple[int, ...]:
    descriptors: list[int] = []
    try:
        for _ in range(queues):
            descriptor = os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC)
            descriptors.append(descriptor)
    except OSError:  # QEMU then moves the packets itself
        for descriptor in descriptors:
            os.close(descriptor)
        return ()
    return tuple(descriptors)


def bridge_of(index: int, nic: Card) -> netlink.Link:
    """The bridge of a card. Raises Failure, NotSupported when it cannot carry what the card asks for."""
    if nic.bridge is None:
        raise NotSupported(f"net{index}: a network card without bridge is not supported yet; name one")
    bridge = netlink.link(nic.bridge)
    if bridge is None or bridge.kind != "bridge":
        raise Failure(f"bridge '{nic.bridge}' does not exist")
    if (nic.tag is not None or nic.trunks) and not bridge.vlan_aware:
        option = "trunks" if nic.trunks else "tag"
        raise NotSupported(
            f"net{index}: '{option}' is not supported on bridge '{bridge.name}', since it is not VLAN aware"
        )
    return bridge


def guest_mtu(index: int, nic: Card, bridge: netlink.Link) -> int | None:
    """What the guest is to be told; None for nothing. Raises Failure."""
    if nic.mtu is None:
        return None if bridge.mtu == 1500 else bridge.mtu
    if nic.mtu == _BRIDGE_MTU:
        return bridge.mtu
    if nic.mtu > bridge.mtu:
        raise Failure(f"net{index}: MTU {nic.mtu} is bigger than the MTU {bridge.mtu} of bridge '{bridge.name}'")
    return nic.mtu
