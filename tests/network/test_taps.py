# SPDX-License-Identifier: AGPL-3.0-or-later
"""Taps with real frames: what a guest's card would send and receive."""

import os
import select
import socket
import struct
import time
from typing import Any

import pytest
from tests.network.namespaces import Namespace

from orrery.drivers.network import firewall
from orrery.drivers.network.network import Network
from orrery.drivers.network.taps import Tap, tap_name
from orrery.errors import Failure, NotSupported
from orrery.model.devices import Nic
from orrery.system import netlink
from orrery.system.paths import Paths

GUEST_MAC = bytes.fromhex("bc2411000001")
HEADER = bytes(10)  # virtio-net's, empty
BROADCAST = b"\xff" * 6


def nic(**options: Any) -> Nic:
    return Nic(**{"model": "virtio", "bridge": "vmbr0", **options})


def ask_who_has(tap: Tap, address: str, timeout: float = 4.0) -> bool:
    """Send ARP requests as the guest until there is an answer: a bridge takes up to a second to see its first port."""
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + bytes(4) + bytes(6) + socket.inet_aton(address)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        os.write(tap.fds[0], HEADER + BROADCAST + GUEST_MAC + b"\x08\x06" + arp + bytes(18))
        while select.select([tap.fds[0]], [], [], 0.1)[0]:
            frame = os.read(tap.fds[0], 4096)[len(HEADER) :]
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02" and frame[28:32] == arp[24:28]:
                return True
    return False


def talk(network: Network) -> None:
    gateway = str(network.prepare().gateway)
    assert network.taps(100) == {}
    tap = network.tap_create(100, 3, nic())
    assert network.taps(100) == {3: tap.name}
    link = netlink.link(tap.name)
    assert link is not None
    assert link.alias == f"orrery:{network.paths.root_digest} guest=100 net=3"
    assert (link.up, link.mtu, tap.mtu) == (True, 1500, None)
    assert ask_who_has(tap, gateway)
    came_in, went_out = network.guest_counters()[100]
    assert went_out >= 60
    assert came_in >= 42
    with pytest.raises(Failure, match="busy"):
        network.tap_create(100, 3, nic())
    network.tap_link(100, 3, up=False)
    with pytest.raises(OSError, match="Input/output"):
        ask_who_has(tap, gateway, 0.2)
    network.tap_link(100, 3, up=True)
    assert ask_who_has(tap, gateway)
    rows = network.bridges()
    assert rows[0]["bridge_ports"] == ""  # our own taps are not listed
    second = network.tap_create(100, 4, nic(queues=2, link_down=True))
    assert len(second.fds) == 2
    second_link = netlink.link(second.name)
    assert second_link is not None
    assert not second_link.up
    assert list(network.taps(100)) == [3, 4]
    assert "is still plugged into it" in network.remove()[0]
    network.tap_remove(100, 4)
    network.tap_remove(100, 4)
    assert list(network.taps(100)) == [3]
    tap.close()
    assert network.taps(100) == {}
    network.tap_remove_all(100)
    assert network.remove() == []


def test_a_guest_talks_through_its_tap(network: Network, host: Namespace) -> None:
    host.call(talk, network)


def refusals(network: Network, paths: Paths) -> None:
    network.prepare()
    for wrong, kind, message in (
        (nic(bridge="vmbr7"), Failure, "bridge 'vmbr7' does not exist"),
        (nic(bridge="lo"), Failure, "bridge 'lo' does not exist"),
        (nic(bridge=None), NotSupported, "net0: a network card without bridge"),
        (nic(mtu=9000), Failure, "net0: MTU 9000 is bigger than the MTU 1500"),
        (nic(tag=5), NotSupported, "'tag' is not supported on bridge 'vmbr0'"),
        (nic(trunks=((5, 7),)), NotSupported, "'trunks' is not supported"),
    ):
        with pytest.raises(kind, match=message):
            network.tap_create(100, 0, wrong)
        assert network.taps(100) == {}
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def broken(_commands: object) -> None:
        raise Failure("nft failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(firewall, "apply", broken)
        with pytest.raises(Failure, match="nft failed"):
            network.tap_create(100, 0, nic(rate=1))
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert netlink.link(tap_name(paths.root_hash, 100, 0)) is None
    network.remove()


def test_what_cannot_be_is_refused_and_leaves_nothing(network: Network, host: Namespace, paths: Paths) -> None:
    host.call(refusals, network, paths)


def mtus(network: Network) -> list[int | None]:
    network.prepare()
    netlink.create_bridge("jumbo", "02:00:00:00:00:77")
    netlink.change_link("jumbo", mtu=9000)
    taps = [
        network.tap_create(100, 0, nic(mtu=1400)),
        network.tap_create(100, 1, nic(mtu=1)),
        network.tap_create(100, 2, nic(bridge="jumbo")),
        network.tap_create(100, 3, nic(bridge="jumbo", mtu=1500)),
    ]
    links = netlink.links()
    assert [links[tap.name].mtu for tap in taps] == [1500, 1500, 9000, 9000]
    assert links["vmbr0"].mtu == 1500
    return [tap.mtu for tap in taps]


def test_the_guest_is_told_a_smaller_mtu(network: Network, host: Namespace) -> None:
    assert host.call(mtus, network) == [1400, 1500, 9000, 1500]
    host.call(network.remove)


RATE = 0.25
SECONDS = 1.5
# The kernel lets one second's worth and the burst (a quarter of a MiB) pass at once.
HIGHEST = RATE + (RATE + 0.25) / SECONDS + 0.1


def flood_out(tap: Tap) -> float:
    """Send as the guest for a while; gives the rate in MiB/s that arrived at the bridge."""
    frame = HEADER + BROADCAST + GUEST_MAC + b"\x88\xb5" + bytes(1400)
    begin, end = netlink.counters()["vmbr0"].rx_bytes, time.monotonic() + SECONDS
    while time.monotonic() < end:
        for _ in range(20):
            os.write(tap.fds[0], frame)
        time.sleep(0.002)
    return (netlink.counters()["vmbr0"].rx_bytes - begin) / SECONDS / (1 << 20)


def flood_in(tap: Tap) -> float:
    """Send to the guest for a while; gives the rate in MiB/s that it could read."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind(("vmbr0", 0))
    sender.setblocking(False)
    os.set_blocking(tap.fds[0], False)
    frame, got, end = BROADCAST + GUEST_MAC + b"\x88\xb5" + bytes(1400), 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        for action in (lambda: sender.send(frame) * 0, lambda: len(os.read(tap.fds[0], 4096))):
            for _ in range(20):
                try:
                    got += action()
                except (BlockingIOError, OSError):
                    break
        time.sleep(0.001)
    sender.close()
    os.set_blocking(tap.fds[0], True)
    return got / SECONDS / (1 << 20)


def rates(network: Network, paths: Paths) -> None:
    network.prepare()
    limited = network.tap_create(100, 0, nic(rate=RATE))
    assert firewall.limited_taps(firewall.table_name(paths.root_hash)) == {limited.name}
    assert 0.1 < flood_out(limited) < HIGHEST
    assert 0.1 < flood_in(limited) < HIGHEST
    network.tap_reconnect(100, 0, nic())
    assert flood_out(limited) > 2 * HIGHEST
    assert flood_in(limited) > 2 * HIGHEST
    assert firewall.limited_taps(firewall.table_name(paths.root_hash)) == set()
    network.tap_reconnect(100, 0, nic(rate=RATE))
    assert flood_out(limited) < HIGHEST
    limited.close()  # as when QEMU dies: the limit stays behind ...
    assert firewall.limited_taps(firewall.table_name(paths.root_hash)) == {limited.name}
    free = network.tap_create(100, 0, nic())  # ... and must not fall on the next
    assert flood_out(free) > 2 * HIGHEST
    free.close()
    network.tap_create(100, 1, nic(rate=RATE)).close()
    network.tap_remove_all(100)
    assert firewall.limited_taps(firewall.table_name(paths.root_hash)) == set()
    network.tap_create(100, 1, nic(rate=RATE)).close()
    network.prepare()
    assert firewall.limited_taps(firewall.table_name(paths.root_hash)) == set()
    assert network.remove() == []


def test_rates_hold_both_ways_and_end_with_the_tap(network: Network, host: Namespace, paths: Paths) -> None:
    host.call(rates, network, paths)
    assert host.run("nft", "list", "ruleset") == ""


def moves(network: Network) -> None:
    gateway = str(network.prepare().gateway)
    netlink.create_bridge("other", "02:00:00:00:00:77")
    tap = network.tap_create(100, 0, nic())
    assert ask_who_has(tap, gateway)
    network.tap_reconnect(100, 0, nic(bridge="other"))
    assert not ask_who_has(tap, gateway, 0.3)
    network.tap_reconnect(100, 0, nic(link_down=True))
    link = netlink.link(tap.name)
    assert link is not None
    assert not link.up
    network.tap_reconnect(100, 0, nic())
    assert ask_who_has(tap, gateway)
    tap.close()
    network.remove()


def test_a_running_guests_card_moves_to_another_bridge(network: Network, host: Namespace) -> None:
    host.call(moves, network)
