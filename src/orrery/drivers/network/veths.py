# SPDX-License-Identifier: AGPL-3.0-or-later
"""Virtual Ethernet pairs: containers' network cards.

The host's end is what a tap is for a machine: same name, same alias, same limits. The other end waits beside it until
it is moved into the container; LXC hands it back when the container ends, and when its network dies otherwise, both
ends die with it.
"""

from dataclasses import dataclass
from typing import Final

from orrery.drivers.network.taps import Taps, bridge_of, guest_mtu, tap_name
from orrery.model.container_devices import ContainerNic
from orrery.system import netlink, sysctl
from orrery.system.paths import Paths

_PEER: Final = "p"


@dataclass(frozen=True, slots=True)
class Veth:
    """A pair: the host's end, and the end that goes into the container (its MTU and address are set)."""

    host: str
    peer: str


def peer_name(host: str) -> str:
    """Name that the container's end has as long as it is on the host."""
    return _PEER + host[1:]


class Veths:
    """The pairs of one root."""

    def __init__(self, paths: Paths, taps: Taps) -> None:
        self._hash = paths.root_hash
        self._taps = taps

    def create(self, vmid: int, index: int, nic: ContainerNic) -> Veth:
        """Make the pair of a card, the host's end plugged into its bridge; one that is left from before is replaced.

        Raises Failure, NotSupported; then nothing remains.
        """
        bridge = bridge_of(index, nic)
        mtu = guest_mtu(index, nic, bridge)
        self._taps.remove(vmid, index)
        host = tap_name(self._hash, vmid, index)
        made = Veth(host, peer_name(host))
        netlink.create_veth(host, made.peer, mac=nic.hwaddr, mtu=mtu or bridge.mtu)
        try:
            if sysctl.read(f"net/ipv6/conf/{made.peer}/disable_ipv6") == "0":  # until it is in the container
                sysctl.write(f"net/ipv6/conf/{made.peer}/disable_ipv6", "1")
            self._taps.connect(vmid, index, nic, bridge)
        except BaseException:
            self._taps.remove(vmid, index)
            raise
        return made
