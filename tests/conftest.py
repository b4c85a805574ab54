# SPDX-License-Identifier: AGPL-3.0-or-later
"""What all tests may ask for; tests/node/harness.py tells how to use a node."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.node import netns
from tests.node.harness import LIVE, Node

from orrery.demo.image import GENERAL_KERNEL, Prepared, prepared
from orrery.demo.template import prepared_template

# How quick the machine is just now says nothing about the code.
settings.register_profile("orrery", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("orrery")

CHECKOUT = Path(__file__).resolve().parents[1]
IMAGE_CACHE = CHECKOUT / "build" / "demo"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for a node, or says so, needs root and is skipped without.

    Of tests that run side by side, those of one module stay together, since they may share a guest.
    """
    for item in items:
        if item.path.is_relative_to(CHECKOUT / "tests/node"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if {"node", "fresh_node", "node_root", "own_network"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") is not None and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    """A test that fails shows the ends of the logs of the nodes that it used."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for node in LIVE:
            report.sections += node.tail()


@pytest.fixture(scope="session")
def demo_image() -> Prepared:
    """The demonstration guest's image and root's password; built once and kept below build/. Never boot it itself."""
    with netns.outside():
        return prepared(IMAGE_CACHE)


@pytest.fixture(scope="session")
def general_image() -> Prepared:
    """The same guest with Debian's general kernel: slower to boot, but it knows SATA, e1000 and old controllers."""
    with netns.outside():
        return prepared(IMAGE_CACHE, kernel=GENERAL_KERNEL)


@pytest.fixture(scope="session")
def own_network() -> None:
    """The test process is in a network namespace of its own from here on."""
    netns.enter()


@pytest.fixture(scope="session")
def node(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A real node that serves https://127.0.0.1:8006 for the whole session."""
    with Node(tmp_path_factory.mktemp("session") / "node") as made:
        yield made.init().serve()


@pytest.fixture
def node_root(node: Node, tmp_path: Path) -> Iterator[Node]:
    """A node for one test, at port 8106: neither initialized nor served yet, ended and removed in any case.

    The session's node stands first, so that the bridge with its DHCP service is always that one's.
    """
    with Node(tmp_path / "node", port=8106) as made:
        yield made


@pytest.fixture
def fresh_node(node_root: Node) -> Node:
    """A node that serves for one test, beside the session's."""
    return node_root.init().serve()


@pytest.fixture(scope="session")
def demo_volume(node: Node, demo_image: Prepared) -> str:
    """The demonstration guest's image as a volume of the session's node."""
    return node.import_demo(demo_image)


@pytest.fixture(scope="session")
def demo_archive() -> Path:
    """The demonstration container's template; built once and kept below build/."""
    with netns.outside():
        return prepared_template(IMAGE_CACHE)


@pytest.fixture(scope="session")
def template(node: Node, demo_archive: Path) -> str:
    """The demonstration container's template as a volume of the session's node."""
    return node.import_template(demo_archive)
