# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fixtures of tests with real machines."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.lxc_lab import Lab

from orrery.demo import image as demo
from orrery.drivers.lxc.driver import LxcDriver
from orrery.drivers.qemu.driver import QemuDriver
from orrery.system import cgroup
from orrery.system.paths import Paths

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Linux on a disk that boots by BIOS; built once."""
    path = tmp_path_factory.mktemp("image") / "demo.qcow2"
    demo.build(path, cache=CHECKOUT / "build" / "demo", login=demo.Login("lab"))
    return path


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[QemuDriver]:
    """A driver of a root of its own; its machines end with the test."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    paths = Paths.of(tmp_path / "root")
    paths.create()
    driver = QemuDriver(paths)
    yield driver
    for vmid in [*driver.running(), *driver.leftovers()]:
        driver.discard(vmid)
    cgroup.remove_root(paths.root_hash)


@pytest.fixture
def lxc(tmp_path: Path) -> Iterator[Lab]:
    """A container driver of a root of its own; its containers end with the test, and nothing may stay of them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    paths = Paths.of(tmp_path / "root")
    paths.create()
    lab = Lab(LxcDriver(paths), tmp_path)
    yield lab
    for vmid in [*lab.driver.running(), *lab.driver.leftovers()]:
        lab.driver.discard(vmid)
    assert lab.traces() == []
    cgroup.remove_root(paths.root_hash)
