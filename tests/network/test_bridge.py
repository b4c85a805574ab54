# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node's own bridge with real programs: DHCP, DNS, NAT, foreign bridges and filters."""

import json
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.network.conftest import ask_for_address, plug
from tests.network.namespaces import Namespace

from orrery.drivers.network.dhcp import DhcpService
from orrery.drivers.network.network import Network
from orrery.errors import Corrupt
from orrery.system.paths import Paths


def snapshot(host: Namespace) -> dict[str, object]:
    """All of a host's network that we may have changed."""
    links = json.loads(host.run("ip", "-j", "addr"))
    return {
        "links": [(link["ifname"], link.get("ifalias"), link.get("master")) for link in links],
        "addresses": [
            address["local"] for link in links for address in link["addr_info"] if address["family"] == "inet"
        ],
        "rules": host.run("nft", "list", "ruleset"),
        "forward": host.run("cat", "/proc/sys/net/ipv4/ip_forward"),
    }


def test_guests_get_address_names_and_the_world(
    network: Network, host: Namespace, world: Namespace, guests: list[Namespace], tmp_path: Path
) -> None:
    before = snapshot(host)
    status = host.call(network.prepare)
    assert (status.state, status.dhcp, status.notes) == ("own", True, ())
    one = guests[0]
    for number, guest in enumerate(guests):
        plug(host, guest, f"port{number}")
        assert f"dns={status.gateway}" in ask_for_address(guest, tmp_path, f"guest{number}")
    leases = host.call(network.leases)
    assert {lease.name for lease in leases} == {"guest0", "guest1"}
    assert all(lease.address in status.subnet for lease in leases)
    addresses = {lease.name: str(lease.address) for lease in leases}
    macs = {lease.mac for lease in leases}
    assert one.run("cat", "/sys/class/net/eth0/address").strip().upper() in macs

    one.run("ping", "-c1", "-W2", str(status.gateway))
    one.run("ping", "-c1", "-W2", addresses["guest1"])  # the neighbour
    one.run("ping", "-c1", "-W2", "203.0.113.1")  # which has no route to us: the address was translated
    assert not world.ok("ping", "-c1", "-W1", addresses["guest0"])

    upstream = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root"]
    server = world.start(*upstream, "--address=/name.example/192.0.2.7")
    try:
        assert "192.0.2.7" in one.retry("busybox", "nslookup", "-type=a", "name.example", str(status.gateway))
        assert addresses["guest1"] in one.run("busybox", "nslookup", "-type=a", "guest1", str(status.gateway))
    finally:
        server.terminate()
        server.wait()

    rows = host.call(network.bridges)
    assert [(row["iface"], row["active"], row["bridge_ports"]) for row in rows] == [("vmbr0", 1, "port0 port1")]
    assert rows[0]["cidr"] == f"{status.gateway}/20"

    # Somebody's ports are on it: nothing is taken away from under them.
    (note,) = host.call(network.remove)
    assert "port0, port1" in note
    one.run("ping", "-c1", "-W2", "203.0.113.1")
    for number in range(2):
        host.run("ip", "link", "del", f"port{number}")
    assert host.call(network.remove) == []
    assert snapshot(host) == before
    assert host.call(network.remove) == []


def test_prepared_again_it_is_the_same(network: Network, host: Namespace, paths: Paths) -> None:
    first = host.call(network.prepare)
    service = host.call(DhcpService(paths).processes)
    before = snapshot(host)
    assert host.call(network.prepare) == first
    assert snapshot(host) == before
    assert host.call(DhcpService(paths).processes) == service  # the same process: it outlives every daemon
    assert len(service) == 1
    host.call(network.remove)
    assert host.call(DhcpService(paths).processes) == []


def test_what_was_lost_is_repaired(network: Network, host: Namespace, paths: Paths) -> None:
    first = host.call(network.prepare)
    host.call(DhcpService(paths).stop)
    assert host.call(network.status).notes == ("the DHCP service of the guests does not run",)
    host.call(network.maintain)
    assert host.call(network.status) == first
    host.run("nft", "flush", "ruleset")
    host.run("ip", "addr", "flush", "dev", "vmbr0")
    assert host.call(network.prepare) == first
    assert "masquerade" in host.run("nft", "list", "ruleset")
    paths.network_json.unlink()  # the alias on the bridge is enough
    assert host.call(network.prepare) == first
    host.run("ip", "link", "set", "vmbr0", "alias", "")  # and so is the record
    assert host.call(network.prepare) == first
    host.run("ip", "link", "del", "vmbr0")
    again = host.call(network.prepare)
    assert again.subnet == first.subnet  # guests keep their addresses
    host.call(network.remove)


def test_a_damaged_record_is_refused(network: Network, host: Namespace, paths: Paths) -> None:
    host.call(network.prepare)
    good = paths.network_json.read_bytes()
    paths.network_json.write_bytes(good[:20])
    for verb in (network.prepare, network.remove, network.status):
        with pytest.raises(Corrupt, match=r"network\.json"):
            host.call(verb)
    assert paths.network_json.read_bytes() == good[:20]
    paths.network_json.write_bytes(good)
    host.call(network.remove)


def test_a_foreign_bridge_is_used_as_it_is(network: Network, host: Namespace, paths: Paths) -> None:
    host.run("ip", "link", "add", "vmbr0", "type", "bridge")
    before = snapshot(host)
    status = host.call(network.prepare)
    assert (status.state, status.subnet, status.dhcp) == ("foreign", None, False)
    assert "was not made by this node" in status.notes[0]
    assert snapshot(host) == before
    assert host.call(DhcpService(paths).processes) == []
    assert host.call(network.remove) == []
    assert snapshot(host) == before


def test_a_bridge_put_in_place_of_ours_is_foreign(network: Network, host: Namespace, paths: Paths) -> None:
    host.call(network.prepare)
    host.run("ip", "link", "del", "vmbr0")
    host.run("ip", "link", "add", "vmbr0", "type", "bridge")
    assert host.call(network.prepare).state == "foreign"
    assert host.call(DhcpService(paths).processes) == []
    assert "masquerade" not in host.run("nft", "list", "ruleset")
    assert not paths.network_json.exists()
    host.call(network.remove)
    assert host.ok("ip", "link", "show", "vmbr0")


def test_a_second_root_uses_the_bridge_of_the_first(network: Network, host: Namespace, tmp_path: Path) -> None:
    host.call(network.prepare)
    other_paths = Paths.of(tmp_path / "other")
    other_paths.create()
    other = Network(other_paths, "n2")
    before = snapshot(host)
    assert host.call(other.prepare).state == "foreign"
    assert host.call(other.remove) == []
    assert snapshot(host) == before
    assert host.call(network.status).dhcp
    host.call(network.remove)


def test_the_subnet_avoids_what_the_host_uses(network: Network, host: Namespace) -> None:
    host.run("ip", "route", "add", "10.64.0.0/13", "via", "203.0.113.1")
    host.run("ip", "addr", "add", "10.73.0.9/16", "dev", "eth0")
    status = host.call(network.prepare)
    assert status.subnet.subnet_of(IPv4Network("10.64.0.0/12"))
    assert not status.subnet.overlaps(IPv4Network("10.64.0.0/13"))
    assert not status.subnet.overlaps(IPv4Network("10.73.0.0/16"))
    host.call(network.remove)


def test_forwarding_that_was_on_stays_on(network: Network, host: Namespace) -> None:
    host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    host.call(network.prepare)
    host.call(network.remove)
    assert host.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"


DOCKER = """
iptables-nft -P FORWARD DROP
iptables-nft -N DOCKER-USER
iptables-nft -A DOCKER-USER -j RETURN
iptables-nft -A FORWARD -j DOCKER-USER
"""


def test_a_foreign_drop_is_opened_by_its_user_chain(
    network: Network, host: Namespace, guests: list[Namespace], tmp_path: Path
) -> None:
    host.run("sh", "-ec", DOCKER)
    rules = host.run("iptables-nft", "-S")
    status = host.call(network.prepare)
    assert len(status.notes) == 1
    assert "chain 'ip filter FORWARD' drops forwarded packets; guests pass" in status.notes[0]
    plug(host, guests[0], "port0")
    plug(host, guests[1], "port1")
    for number, guest in enumerate(guests):
        ask_for_address(guest, tmp_path, f"guest{number}")
    guests[0].run("ping", "-c1", "-W2", "203.0.113.1")
    neighbour = next(str(lease.address) for lease in host.call(network.leases) if lease.name == "guest1")
    guests[0].run("ping", "-c1", "-W2", neighbour)
    with_ours = host.run("iptables-nft", "-S")  # iptables, and so Docker, still reads its table
    assert host.call(network.prepare).notes == status.notes
    assert host.run("iptables-nft", "-S") == with_ours
    # Docker restarted and wrote its chain anew.
    host.run("iptables-nft", "-F", "DOCKER-USER")
    host.run("iptables-nft", "-A", "DOCKER-USER", "-j", "RETURN")
    assert not guests[0].ok("ping", "-c1", "-W1", "203.0.113.1")
    assert "stay cut off" in host.call(network.status).notes[0]
    host.call(network.maintain)
    guests[0].run("ping", "-c1", "-W2", "203.0.113.1")
    for number in range(2):
        host.run("ip", "link", "del", f"port{number}")
    (kept,) = host.call(network.remove)
    assert "goes on forwarding" in kept  # Docker came to rely on it
    assert host.run("iptables-nft", "-S") == rules
    assert host.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"


def test_other_drops_are_reported(network: Network, host: Namespace) -> None:
    host.run(
        "nft", "add table inet wall; add chain inet wall through { type filter hook forward priority 0; policy drop; }"
    )
    host.run("nft", "add chain inet wall in { type filter hook input priority 0; policy drop; }")
    notes = host.call(network.prepare).notes
    assert "chain 'inet wall through' drops forwarded packets: allow 'vmbr0' there" in notes[0]
    assert "allow UDP 53 and 67 from 'vmbr0'" in notes[1]
    host.call(network.remove)
    assert "policy drop" in host.run("nft", "list", "ruleset")


def test_a_taken_port_is_told_with_the_services_own_words(network: Network, host: Namespace) -> None:
    hold = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('0.0.0.0', 53)); time.sleep(60)"
    taker = host.start(sys.executable, "-c", hold)
    try:
        host.wait_for("grep", "-q", ":0035 ", "/proc/net/udp")
        with pytest.raises(Exception, match=r"DHCP service failed to start: .*in use"):
            host.call(network.prepare)
        assert not host.call(network.status).dhcp
    finally:
        taker.kill()
        taker.wait()
    assert host.call(network.prepare).dhcp
    host.call(network.remove)
