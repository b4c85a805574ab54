# SPDX-License-Identifier: AGPL-3.0-or-later
"""A host, the world outside and guests, each a network namespace with real programs in it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.network.namespaces import Namespace, join, namespace

from orrery.drivers.network.dhcp import DhcpService
from orrery.drivers.network.network import Network
from orrery.system import process
from orrery.system.paths import Paths

NEEDED = ("nft", "dnsmasq", "ip", "busybox", "ping", "iptables-nft")
UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "dns=$dns"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests need root; where it is absent they are skipped, where a program is absent they fail."""
    for item in items:
        if "tests/network" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces"))


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    if os.geteuid() == 0:
        missing = [name for name in NEEDED if shutil.which(name, path=process.SEARCH_PATH) is None]
        assert not missing, f"install the packages of the tests: {missing} are missing"


@pytest.fixture
def world() -> Iterator[Namespace]:
    """The network outside: it has no route to any guest."""
    with namespace() as made:
        yield made


@pytest.fixture
def host(world: Namespace, tmp_path: Path) -> Iterator[Namespace]:
    """A host with one address and a default route into the world, which is its name server too."""
    with namespace() as made:
        join(made, "eth0", world, "out0")
        made.run("ip", "addr", "add", "203.0.113.2/24", "dev", "eth0")
        world.run("ip", "addr", "add", "203.0.113.1/24", "dev", "out0")
        made.run("ip", "route", "add", "default", "via", "203.0.113.1")
        (tmp_path / "resolv.conf").write_text("nameserver 203.0.113.1\n")
        made.run("mount", "--bind", str(tmp_path / "resolv.conf"), "/etc/resolv.conf")
        yield made


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths.of(tmp_path / "node")
    made.create()
    return made


@pytest.fixture
def network(paths: Paths, host: Namespace) -> Iterator[Network]:
    """The driver; whatever a test leaves of its service is ended."""
    yield Network(paths, "n1")
    host.call(DhcpService(paths).stop)


@pytest.fixture
def guests(host: Namespace) -> Iterator[list[Namespace]]:
    """Two guests with a network card each: `plug` puts them into a bridge."""
    with namespace() as one, namespace() as two:
        yield [one, two]


def plug(host: Namespace, guest: Namespace, port: str, bridge: str = "vmbr0") -> None:
    """Connect a guest's eth0 with a bridge of the host."""
    join(host, port, guest, "eth0")
    host.run("ip", "link", "set", port, "master", bridge)


def ask_for_address(guest: Namespace, folder: Path, name: str) -> str:
    """Run a DHCP client in the guest; gives what it printed."""
    script = folder / "udhcpc.sh"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    options = ["-i", "eth0", "-f", "-q", "-n", "-t", "5", "-T", "1", "-x", f"hostname:{name}", "-s", str(script)]
    return guest.run("busybox", "udhcpc", *options)
