# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storages of every type, empty, on file systems that vanish with the tests, however these end."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contract.storages import DRIVERS

from orrery.drivers.storage.base import StorageDriver
from orrery.system import mounts


@pytest.fixture(scope="session")
def own_mounts() -> None:
    """The test process has mounts of its own from here on, which go with it even when it is killed.

    It stays with them: a process that has ever had other threads cannot return (setns(2)).
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    mounts.leave()


@pytest.fixture(scope="module")
def btrfs_top(own_mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A btrfs of 4 GiB in a file, mounted for this process and its children alone."""
    place = tmp_path_factory.mktemp("btrfs")
    image, top = place / "image", place / "top"
    top.mkdir()
    image.touch()
    os.truncate(image, 4 << 30)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, top], check=True)
    yield top
    subprocess.run(["umount", "--lazy", top], check=True)
    image.unlink()


@pytest.fixture(params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Path:
    """Where the storage lies; its folder does not exist yet."""
    if kind == "dir":
        return tmp_path / "storage"
    top: Path = request.getfixturevalue("btrfs_top")
    return top / tmp_path.name / "storage"


@pytest.fixture
def make(kind: str, root: Path) -> Callable[..., StorageDriver]:
    def build(**options: object) -> StorageDriver:
        driver = DRIVERS[kind](root, **options)
        driver.activate()
        return driver

    return build


@pytest.fixture
def driver(make: Callable[..., StorageDriver]) -> StorageDriver:
    return make()
