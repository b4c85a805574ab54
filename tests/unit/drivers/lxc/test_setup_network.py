# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cards in the files of each family: on skeleton trees, since most distributions' systems are not at hand."""

import subprocess

import pytest
from tests.unit.drivers.lxc.skeletons import OSTYPES, SKELETONS, Nic, build, contents, wishes

from orrery.drivers.lxc.setup import detect, set_up
from orrery.drivers.lxc.setup.plan import Static, card
from orrery.drivers.lxc.tree import Tree
from orrery.errors import Failure

BOTH = Nic(ip="192.0.2.5/24", gw="192.0.2.1", ip6="2001:db8::5/64", gw6="2001:db8::1")
FAR = Nic(ip="203.0.113.7/32", gw="198.51.100.1", ip6="2001:db8:1::7/128", gw6="2001:db8:2::1")
DYNAMIC = Nic(ip="dhcp", ip6="auto")
DHCP6 = Nic(ip6="dhcp")
CASES = {"both": BOTH, "far": FAR, "dynamic": DYNAMIC, "dhcp6": DHCP6}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


def run(root, name, *nics, **more):
    """Set a skeleton up; returns what was noted."""
    notes: list[str] = []
    with Tree(root) as tree:
        set_up(tree, wishes(name, nics=nics, **more), notes.append)
    return notes


def text(root, path):
    return (root / path).read_text()


# --- which


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_every_family_is_known_by_its_files(root, name):
    build(root, name)
    with Tree(root) as tree:
        assert detect(tree) == OSTYPES[name]


@pytest.mark.parametrize(
    ("files", "ostype"),
    [
        ({"etc/os-release": "ID='linuxmint'\nID_LIKE=\"ubuntu debian\"\n"}, "ubuntu"),
        ({"etc/os-release": "ID=unheard\n", "etc/alpine-release": "3.1\n"}, "alpine"),
        ({"etc/os-release": 'ID="broken\n', "etc/debian_version": "9.1\n"}, "debian"),
        ({"etc/lsb-release": "DISTRIB_ID=Ubuntu\n", "etc/debian_version": "jessie/sid\n"}, "ubuntu"),
        ({"etc/SuSE-release": "openSUSE 13.1\n"}, "opensuse"),
        ({"etc/fedora-release": "", "etc/redhat-release": ""}, "fedora"),
        ({"etc/os-release/odd": ""}, "unmanaged"),
    ],
)
def test_derivatives_and_old_releases(root, files, ostype):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    with Tree(root) as tree:
        assert detect(tree) == ostype


def test_a_huge_os_release_is_no_obstacle(root):
    build(root, "alpine")
    (root / "etc/alpine-release").touch()
    with (root / "etc/os-release").open("wb") as handle:
        handle.truncate(1 << 30)
    with Tree(root) as tree:
        assert detect(tree) == "alpine"


# --- every family, every way


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_twice_changes_nothing(root, name, case):
    build(root, name)
    first = run(root, name, CASES[case], timezone="UTC", nameserver="192.0.2.53")
    before = contents(root)
    assert run(root, name, CASES[case], timezone="UTC", nameserver="192.0.2.53") == first == []
    assert contents(root) == before


@pytest.mark.parametrize("name", ["nixos", "busybox"])
def test_what_is_not_known_is_left_as_found(root, name):
    build(root, name)
    before = contents(root)
    assert run(root, name, BOTH) == []
    assert contents(root) == before
    [note] = run(root, name, BOTH, fresh=True, password_hash="$6$x")
    assert "password and keys are not set" in note
    assert contents(root) == before


def test_a_tree_without_any_reader_is_told(root):
    build(root, "arch")
    (root / "usr/lib/systemd/systemd-networkd").unlink()
    assert run(root, "arch", BOTH) == ["nothing in the container is known to set up its network: eth0"]
    assert run(root, "arch", Nic(ip="manual")) == []


# --- ifupdown


def test_ifupdown_with_fixed_addresses(root):
    build(root, "debian")
    run(root, "debian", BOTH)
    assert text(root, "etc/network/interfaces") == (
        "# made by the installer\nauto lo\niface lo inet loopback\n\n"
        "auto eth0\n#orrery# iface eth0 inet dhcp\n#orrery# \tmetric 5\n"
        "# --- BEGIN ORRERY ---\n"
        "iface eth0 inet static\n\taddress 192.0.2.5\n\tnetmask 255.255.255.0\n\tgateway 192.0.2.1\n"
        "iface eth0 inet6 static\n\taddress 2001:db8::5\n\tnetmask 64\n\tgateway 2001:db8::1\n"
        "# --- END ORRERY ---\n"
    )


def test_ifupdown_gives_a_card_back_to_the_inside(root):
    build(root, "debian")
    before = text(root, "etc/network/interfaces")
    run(root, "debian", BOTH)
    run(root, "debian", Nic(ip="manual", ip6="manual"))
    assert text(root, "etc/network/interfaces") == before


def test_ifupdown_reaches_a_gateway_outside_the_subnet(root):
    build(root, "alpine")
    run(root, "alpine", FAR)
    assert text(root, "etc/network/interfaces") == (
        "# --- BEGIN ORRERY ---\nauto lo\niface lo inet loopback\n\n"
        "auto eth0\niface eth0 inet static\n\taddress 203.0.113.7\n\tnetmask 255.255.255.255\n"
        "\tup ip route replace 198.51.100.1/32 dev eth0\n"
        "\tup ip route replace default via 198.51.100.1 dev eth0\n"
        "iface eth0 inet6 static\n\taddress 2001:db8:1::7\n\tnetmask 128\n"
        "\tup ip -6 route replace 2001:db8:2::1/128 dev eth0\n"
        "\tup ip -6 route replace default via 2001:db8:2::1 dev eth0\n"
        "# --- END ORRERY ---\n"
    )


@pytest.mark.parametrize(
    "nics", [(BOTH,), (FAR,), (DYNAMIC,), (DHCP6,), (BOTH, Nic(name="eth1", ip="dhcp", ip6="auto"))]
)
def test_ifup_of_busybox_understands_every_way(root, nics):
    """By BusyBox itself, told to change nothing: its ifup gives up all cards for one word that it does not know."""
    build(root, "alpine")
    (root / "sbin/ifup").unlink()
    (root / "sbin/ifup").symlink_to("/bin/busybox")
    (root / "bin").mkdir()
    (root / "bin/busybox").touch()
    assert run(root, "alpine", *nics) == []
    command = ["busybox", "ifup", "-n", "-a", "-v", "-i", str(root / "etc/network/interfaces")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert "unknown" not in done.stderr
    for nic in nics:
        for address in (nic.ip, nic.ip6):
            if address and "/" in address:
                assert f"addr add {address} dev {nic.name}" in done.stdout.replace("ip -6 ", "ip "), done.stdout


def test_ifupdown_keeps_what_stands_beside(root):
    build(root, "debian")
    run(root, "debian", BOTH, Nic(name="eth1", ip="dhcp"))
    path = root / "etc/network/interfaces"
    path.write_text("# on top\n" + path.read_text() + "\nauto br0\niface br0 inet static\n\taddress 10.9.0.1/24\n")
    run(root, "debian", DYNAMIC)
    found = path.read_text()
    assert found.startswith("# on top\n# made by the installer\n")
    assert found.endswith(
        "# --- BEGIN ORRERY ---\niface eth0 inet dhcp\niface eth0 inet6 auto\n# --- END ORRERY ---\n"
        "\nauto br0\niface br0 inet static\n\taddress 10.9.0.1/24\n"
    )


def test_a_card_of_one_version_leaves_the_other_alone(root):
    build(root, "debian")
    (root / "etc/network/interfaces").write_text("iface eth0 inet6 static\n\taddress fd00::9/64\n")
    run(root, "debian", Nic(ip="dhcp"))
    assert text(root, "etc/network/interfaces").startswith("iface eth0 inet6 static\n\taddress fd00::9/64\n# --- BEGIN")


# --- the others


def test_networkd(root):
    build(root, "arch")
    run(root, "arch", FAR, Nic(name="lan0", ip="dhcp", ip6="dhcp"), fresh=True)
    assert text(root, "etc/systemd/network/50-orrery-eth0.network").splitlines()[1:] == [
        *("[Match]", "Name=eth0", "", "[Network]", "DHCP=no", "IPv6AcceptRA=no"),
        *("Address=203.0.113.7/32", "Address=2001:db8:1::7/128"),
        *("", "[Route]", "Gateway=198.51.100.1", "GatewayOnLink=yes"),
        *("", "[Route]", "Gateway=2001:db8:2::1", "GatewayOnLink=yes"),
    ]
    assert text(root, "etc/systemd/network/50-orrery-lan0.network").splitlines()[1:] == [
        *("[Match]", "Name=lan0", "", "[Network]", "DHCP=yes", "IPv6AcceptRA=yes", "", "[DHCPv6]", "WithoutRA=solicit"),
    ]
    assert (root / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service").is_symlink()
    assert (root / "etc/systemd/system/sockets.target.wants/systemd-networkd.socket").is_symlink()
    (root / "etc/systemd/network/10-mine.network").touch()
    run(root, "arch", FAR)
    names = sorted(path.name for path in (root / "etc/systemd/network").iterdir())
    assert names == ["10-mine.network", "50-orrery-eth0.network"]


def test_netplan(root):
    build(root, "ubuntu")
    run(root, "ubuntu", BOTH, Nic(name="eth1", ip6="auto"))
    path = root / "etc/netplan/90-orrery.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == (
        "# Written by Orrery; changes are lost.\nnetwork:\n  version: 2\n  ethernets:\n"
        '    "eth0":\n      dhcp4: false\n      dhcp6: false\n      accept-ra: false\n'
        '      addresses: ["192.0.2.5/24", "2001:db8::5/64"]\n      routes:\n'
        '        - {to: "0.0.0.0/0", via: "192.0.2.1"}\n        - {to: "::/0", via: "2001:db8::1"}\n'
        '    "eth1":\n      dhcp4: false\n      dhcp6: false\n      accept-ra: true\n'
    )
    run(root, "ubuntu")
    assert not path.exists()
    assert (root / "etc/netplan/10-lxc.yaml").exists()


@pytest.mark.parametrize("name", ["fedora", "almalinux", "rocky", "opensuse-nm"])
def test_network_manager(root, name):
    build(root, name)
    run(root, name, FAR)
    path = root / "etc/NetworkManager/system-connections/orrery-eth0.nmconnection"
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text().splitlines()
    assert "interface-name=eth0" in lines
    assert lines[lines.index("[ipv4]") :] == [
        *("[ipv4]", "method=manual", "address1=203.0.113.7/32", "gateway=198.51.100.1", "route1=198.51.100.1/32", ""),
        *("[ipv6]", "method=manual", "address1=2001:db8:1::7/128", "gateway=2001:db8:2::1", "route1=2001:db8:2::1/128"),
    ]
    run(root, name, DYNAMIC)
    assert path.read_text().splitlines()[-5:] == ["[ipv4]", "method=auto", "", "[ipv6]", "method=auto"]
    run(root, name)
    assert not path.exists()


def test_ifcfg_adds_to_what_is_there(root):
    build(root, "centos-7")
    run(root, "centos-7", BOTH)
    folder = "etc/sysconfig/network-scripts"
    assert text(root, f"{folder}/ifcfg-eth0") == (
        'DEVICE=eth0\nBOOTPROTO=dhcp\nZONE="internal"\n# --- BEGIN ORRERY ---\n'
        "DEVICE=eth0\nTYPE=Ethernet\nONBOOT=yes\nBOOTPROTO=none\nIPADDR=192.0.2.5\nNETMASK=255.255.255.0\n"
        "GATEWAY=192.0.2.1\nIPV6INIT=yes\nIPV6_AUTOCONF=no\nIPV6ADDR=2001:db8::5/64\n"
        "IPV6_DEFAULTGW=2001:db8::1%eth0\n# --- END ORRERY ---\n"
    )
    assert text(root, f"{folder}/ifcfg-lo") == "DEVICE=lo\n"
    run(root, "centos-7", FAR, Nic(name="eth1", ip="dhcp", ip6="dhcp"))
    assert "198.51.100.1/32 dev eth0\ndefault via 198.51.100.1 dev eth0\n" in text(root, f"{folder}/route-eth0")
    assert "DHCPV6C=yes\n" in text(root, f"{folder}/ifcfg-eth1")
    run(root, "centos-7")
    assert text(root, f"{folder}/ifcfg-eth0") == 'DEVICE=eth0\nBOOTPROTO=dhcp\nZONE="internal"\n'
    assert not any((root / folder / name).exists() for name in ("route-eth0", "route6-eth0", "ifcfg-eth1"))


def test_wicked(root):
    build(root, "opensuse-wicked")
    run(root, "opensuse-wicked", FAR)
    folder = "etc/sysconfig/network"
    assert text(root, f"{folder}/ifcfg-eth0").endswith(
        "# --- BEGIN ORRERY ---\nSTARTMODE='auto'\nBOOTPROTO='static'\nIPADDR_0='203.0.113.7/32'\n"
        "IPADDR_1='2001:db8:1::7/128'\n# --- END ORRERY ---\n"
    )
    assert text(root, f"{folder}/ifroute-eth0").splitlines()[1:-1] == [
        *("198.51.100.1/32 - - eth0", "default 198.51.100.1 - eth0"),
        *("2001:db8:2::1/128 - - eth0", "default 2001:db8:2::1 - eth0"),
    ]
    assert text(root, "etc/HOSTNAME") == "web1.example.org\n"
    for nic, word in (
        (DYNAMIC, "dhcp4"),
        (DHCP6, "dhcp6"),
        (Nic(ip6="auto"), "auto6"),
        (Nic(ip="dhcp", ip6="dhcp"), "dhcp"),
    ):
        run(root, "opensuse-wicked", nic)
        assert f"BOOTPROTO='{word}'\n# --- END" in text(root, f"{folder}/ifcfg-eth0")
    assert not (root / folder / "ifroute-eth0").exists()


def test_netifrc(root):
    build(root, "gentoo")
    run(root, "gentoo", FAR, Nic(name="lan.7", ip6="auto"))
    assert text(root, "etc/conf.d/net").splitlines()[1:-1] == [
        *('config_eth0="203.0.113.7/32', '2001:db8:1::7/128"'),
        *('routes_eth0="198.51.100.1/32 dev eth0', "default via 198.51.100.1 dev eth0"),
        *("2001:db8:2::1/128 dev eth0", 'default via 2001:db8:2::1 dev eth0"', 'config_lan_7="null"'),
    ]
    assert (root / "etc/init.d/net.eth0").readlink().name == "net.lo"
    assert str((root / "etc/runlevels/default/net.eth0").readlink()) == "/etc/init.d/net.eth0"
    assert text(root, "etc/conf.d/hostname").splitlines()[-2] == 'hostname="web1"'


def test_alpine_starts_its_network_in_a_new_container_only(root):
    build(root, "alpine")
    run(root, "alpine", DYNAMIC)
    link = root / "etc/runlevels/boot/networking"
    assert not link.is_symlink()
    run(root, "alpine", DYNAMIC, fresh=True)
    assert str(link.readlink()) == "/etc/init.d/networking"


# --- cards


def test_a_gateway_of_the_link_needs_no_route():
    way = card(Nic(ip6="2001:db8::5/64", gw6="fe80::1")).v6
    assert isinstance(way, Static)
    assert not way.on_link


@pytest.mark.parametrize(
    "nic",
    [
        *(Nic(name=name, ip="dhcp") for name in ("", ".", "..", "../../x", "a b", "eth0\n[Match]", "x" * 16)),
        *(Nic(ip=ip) for ip in ("auto", "192.0.2.300/24", "2001:db8::1/64", "x\nup rm")),
        *(Nic(ip6="192.0.2.1/24"), Nic(ip="192.0.2.1/24", gw="fe80::1"), Nic(ip="192.0.2.1/24", gw="x")),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(root, nic):
    with pytest.raises(Failure):
        card(nic)
    build(root, "debian")
    notes = run(root, "debian", nic)
    assert notes
    assert "BEGIN ORRERY" not in text(root, "etc/network/interfaces")
