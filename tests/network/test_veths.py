# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pairs with real packets: a namespace stands for the container."""

from typing import Any

import pytest
from tests.network.namespaces import Namespace

from orrery.drivers.network import firewall
from orrery.drivers.network.network import Network
from orrery.errors import Failure, NotSupported
from orrery.model.container_devices import ContainerNic
from orrery.system import netlink
from orrery.system.paths import Paths

MAC = "BC:24:11:00:00:01"


def nic(**options: Any) -> ContainerNic:
    return ContainerNic(**{"index": 0, "name": "eth0", "bridge": "vmbr0", "hwaddr": MAC, **options})


def make(network: Network, pid: int) -> tuple[str, str]:
    gateway = network.prepare().gateway
    network.veth_create(100, 0, nic())
    pair = network.veth_create(100, 0, nic(mtu=1400))  # what a killed start left is replaced
    links = netlink.links()
    assert links[pair.peer].mac == MAC.lower()
    assert (links[pair.peer].mtu, links[pair.host].mtu) == (1400, 1500)
    assert not links[pair.peer].up
    assert links[pair.host].alias == f"orrery:{network.paths.root_digest} guest=100 net=0"
    assert network.taps(100) == {0: pair.host}
    netlink.move_link(pair.peer, pid, "eth0")
    return pair.host, str(gateway)


def test_a_container_talks_through_its_pair(network: Network, host: Namespace, guests: list[Namespace]) -> None:
    guest = guests[0]
    name, gateway = host.call(make, network, guest.pid)
    address = gateway.rsplit(".", 1)[0] + ".250"
    guest.run("ip", "link", "set", "eth0", "up")
    guest.run("ip", "addr", "add", f"{address}/20", "dev", "eth0")
    guest.retry("ping", "-c1", "-W1", gateway)
    into, out = host.call(network.guest_counters)[100]
    assert into > 0
    assert out > 0
    host.call(network.veth_reconnect, 100, 0, nic(link_down=True))
    assert not guest.ok("ping", "-c1", "-W1", gateway)
    host.call(network.veth_reconnect, 100, 0, nic(rate=1.0))
    guest.retry("ping", "-c1", "-W1", gateway)
    table = firewall.table_name(network.paths.root_hash)
    assert host.call(firewall.limited_taps, table) == {name}
    host.call(network.tap_remove_all, 100)
    assert not guest.ok("ip", "link", "show", "eth0")
    assert host.call(firewall.limited_taps, table) == set()
    assert host.call(network.remove) == []


def refusals(network: Network, paths: Paths) -> None:
    network.prepare()
    for wrong, kind, message in (
        (nic(bridge="vmbr7"), Failure, "bridge 'vmbr7' does not exist"),
        (nic(mtu=9000), Failure, "net0: MTU 9000 is bigger than the MTU 1500"),
        (nic(tag=5), NotSupported, "'tag' is not supported on bridge 'vmbr0'"),
    ):
        with pytest.raises(kind, match=message):
            network.veth_create(100, 0, wrong)
        assert network.taps(100) == {}

    def broken(_commands: object) -> None:
        raise Failure("nft failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(firewall, "apply", broken)
        with pytest.raises(Failure, match="nft failed"):
            network.veth_create(100, 0, nic(rate=1))
    assert not any(name.startswith(("o", "p")) for name in netlink.links())
    network.remove()


def test_what_cannot_be_is_refused_and_leaves_nothing(network: Network, host: Namespace, paths: Paths) -> None:
    host.call(refusals, network, paths)
