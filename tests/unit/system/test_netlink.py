# SPDX-License-Identifier: AGPL-3.0-or-later
"""Links, bridges and taps: the real kernel, in a network namespace of the test's own."""

import os
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from tests.network.namespaces import Namespace, namespace

from orrery.errors import Failure, NotFound, NotSupported
from orrery.system import host, netlink, sysctl

NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier comp
    lo:  100       2    0    0    0     0          0         0      300       4    0    0    0     0       0          0
ab.c:1:5 6 0 0 0 0 0 0 7 8 0 0 0 0 0 0
"""


def test_counters_are_read_in_one_go() -> None:
    found = netlink.parse_counters(NET_DEV.replace("ab.c:1", "ab.c-1"))
    assert found["lo"] == netlink.Counters(100, 2, 300, 4)
    assert found["ab.c-1"] == netlink.Counters(5, 6, 7, 8)


def test_burst_grows_with_the_rate() -> None:
    assert netlink.burst(1000) == 65536
    assert netlink.burst(100_000_000) == 10_000_000


@pytest.fixture
def inside() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    with namespace() as made:
        yield made


pytestmark = pytest.mark.root


def bridges_and_addresses() -> None:
    netlink.create_bridge("vmbr9", "02:00:00:00:00:09")
    netlink.change_link("vmbr9", alias="made by a test", up=True)
    netlink.add_address("vmbr9", IPv4Interface("10.9.0.1/20"))
    netlink.add_address("vmbr9", IPv4Interface("10.9.0.1/20"))
    seen = netlink.links()
    bridge = seen["vmbr9"]
    assert list(seen) == ["lo", "vmbr9"]
    assert (bridge.kind, bridge.mac, bridge.alias, bridge.up) == ("bridge", "02:00:00:00:00:09", "made by a test", True)
    assert IPv4Interface("10.9.0.1/20") in bridge.addresses
    assert not bridge.vlan_aware
    assert netlink.routes() == [IPv4Network("10.9.0.0/20")]
    with pytest.raises(Failure, match="unable to create the bridge 'vmbr9': File exists"):
        netlink.create_bridge("vmbr9", "02:00:00:00:00:09")
    assert netlink.delete_link("vmbr9")
    assert not netlink.delete_link("vmbr9")
    assert netlink.link("vmbr9") is None
    assert netlink.link("far-too-long-for-a-name") is None


def test_bridges_and_addresses(inside: Namespace) -> None:
    inside.call(bridges_and_addresses)


def taps() -> None:
    netlink.create_bridge("br", "02:00:00:00:00:09")
    (single,) = netlink.open_tap("tap1")
    several = netlink.open_tap("tap4", queues=4)
    assert len(several) == 4
    with pytest.raises(Failure, match="unable to create the tap 'tap1'"):
        netlink.open_tap("tap1")
    with pytest.raises(Failure, match="unable to create the tap 'br'"):
        netlink.open_tap("br")
    netlink.change_link("tap1", bridge="br", up=True, mtu=1400)
    seen = netlink.links()
    assert seen["tap1"].mtu == 1400
    assert [port.name for port in netlink.ports(seen["br"], seen)] == ["tap1"]
    assert netlink.counters().keys() >= {"tap1", "tap4", "br", "lo"}
    netlink.change_link("tap1", bridge="")
    assert netlink.ports(seen["br"], netlink.links()) == []
    for descriptor in (single, *several):
        os.close(descriptor)
    assert netlink.link("tap1") is None  # nobody holds it any more
    assert netlink.link("tap4") is None


def test_taps_live_as_long_as_their_descriptors(inside: Namespace) -> None:
    inside.call(taps)


def limits() -> None:
    (tap,) = netlink.open_tap("tap1")
    netlink.limit_output("tap1", 1_000_000)
    netlink.limit_output("tap1", 2_000_000)
    with pytest.raises(NotFound, match="unable to change the network interface 'absent': No such device"):
        netlink.change_link("absent", up=True)
    with pytest.raises(NotFound):
        netlink.limit_output("absent", 1)
    os.set_inheritable(tap, True)


def test_limits_are_the_kernels(inside: Namespace) -> None:
    def look() -> str:
        limits()
        return os.popen("tc qdisc show dev tap1").read()  # noqa: S605

    shown = inside.call(look)
    assert "tbf" in shown
    assert "rate 16Mbit burst 200" in shown

    def undone() -> str:
        (tap,) = netlink.open_tap("tap1")
        netlink.limit_output("tap1", 1_000_000)
        netlink.limit_output("tap1", None)
        netlink.limit_output("tap1", None)
        shown = os.popen("tc qdisc show dev tap1").read()  # noqa: S605
        os.close(tap)
        return shown

    assert "tbf" not in inside.call(undone)


def vlans() -> str:
    netlink.create_bridge("br", "02:00:00:00:00:09")
    (tap,) = netlink.open_tap("tap1")
    netlink.change_link("tap1", bridge="br")
    try:
        netlink.set_vlans("tap1", 7, [(10, 12)])
    except NotSupported as error:
        return error.message
    finally:
        os.close(tap)
    return "supported"


def test_vlans_work_or_are_refused_by_name(inside: Namespace) -> None:
    assert inside.call(vlans) in ("supported", "VLAN tags are not supported: this kernel's bridges do not filter VLANs")


def settings() -> tuple[str | None, str | None, int]:
    sysctl.write("net/ipv4/ip_forward", "1")
    with pytest.raises(Failure, match="unable to set the kernel's 'net/ipv4/no_such_thing'"):
        sysctl.write("net/ipv4/no_such_thing", "1")
    return sysctl.read("net/ipv4/ip_forward"), sysctl.read("net/ipv4/no_such_thing"), host.network_namespace()


def test_settings_of_the_kernel_belong_to_the_namespace(inside: Namespace) -> None:
    before = sysctl.read("net/ipv4/ip_forward")
    value, missing, number = inside.call(settings)
    assert (value, missing) == ("1", None)
    assert number != host.network_namespace()
    assert sysctl.read("net/ipv4/ip_forward") == before
    assert Path("/proc/sys/net/ipv4/ip_forward").exists()
