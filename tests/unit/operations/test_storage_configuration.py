# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where storages may lie, and changes that meet."""

from pathlib import Path
from typing import Any

import pytest

from orrery.drivers.storage.registry import PREFIX, StorageRegistry
from orrery.errors import AlreadyExists, Conflict, Failure, NotSupported, ParameterError
from orrery.operations.storage_configuration import StorageConfiguration
from orrery.store.documents import encode_document
from orrery.store.memory import MemoryStore
from orrery.system.paths import Paths


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.of(tmp_path / "node")


@pytest.fixture
def configuration(store: MemoryStore, paths: Paths) -> StorageConfiguration:
    return StorageConfiguration(store, StorageRegistry(store, paths, "n1"), paths, "n1")


def create(configuration: StorageConfiguration, name: str, path: Any, **options: str) -> dict[str, str]:
    return configuration.create(name, {"type": "dir", "path": str(path), **options})


def fault(configuration: StorageConfiguration, path: Any) -> str:
    with pytest.raises(ParameterError) as caught:
        create(configuration, "fresh", path)
    return caught.value.errors["path"]


def test_storages_keep_off_each_other(configuration: StorageConfiguration, tmp_path: Path) -> None:
    create(configuration, "one", tmp_path / "a/one")
    assert "is the folder of storage 'one' already" in fault(configuration, tmp_path / "a/one")
    assert "lies within the folder of storage 'one'" in fault(configuration, tmp_path / "a/one/images")
    assert "holds the folder of storage 'one'" in fault(configuration, tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a/one")
    assert "'one' already" in fault(configuration, tmp_path / "link")
    assert "within" in fault(configuration, tmp_path / "link/x")
    create(configuration, "two", tmp_path / "a/one-more")
    assert not (tmp_path / "a/one/images/images").exists()


@pytest.mark.parametrize(
    "path",
    ["/", "/etc", "/etc/x", "/usr", "/usr/local/vm", "/boot", "/proc/1", "/sys", "/dev", "/run", "/run/vm", "/bin/x"],
)
def test_no_storage_in_the_system(configuration: StorageConfiguration, path: str) -> None:
    assert "belongs to the operating system; choose another folder" in fault(configuration, path)


@pytest.mark.parametrize("path", ["/root", "/home", "/var", "/var/lib", "/tmp", "/mnt", "/opt"])
def test_no_storage_takes_a_shared_folder(configuration: StorageConfiguration, path: str) -> None:
    assert f"such as '{path}/orrery'" in fault(configuration, path)


def test_no_storage_in_the_nodes_state(configuration: StorageConfiguration, paths: Paths, tmp_path: Path) -> None:
    for path in (paths.lib, paths.etc / "x", paths.lib / "storage/other", tmp_path / "node", tmp_path):
        assert "this node's own state" in fault(configuration, path)


def test_two_at_once_see_each_other(
    configuration: StorageConfiguration, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another storage is entered after the paths were compared for the first time."""
    original = configuration._try

    def slowly(name: str, options: Any) -> None:
        original(name, options)
        monkeypatch.setattr(configuration, "_try", original)
        create(configuration, "quick", tmp_path / "a")

    monkeypatch.setattr(configuration, "_try", slowly)
    with pytest.raises(ParameterError) as caught:
        create(configuration, "slow", tmp_path / "a/slow")
    assert "within the folder of storage 'quick'" in caught.value.errors["path"]
    assert store.get(PREFIX + "slow") is None
    assert store.get(PREFIX + "quick") is not None


def test_digest_is_compared_within_the_change(
    configuration: StorageConfiguration, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's change, entered while ours is under way, is not overwritten."""
    create(configuration, "one", tmp_path / "one")
    digest = configuration.digest()
    original = configuration._try

    def slowly(name: str, options: Any) -> None:
        original(name, options)
        monkeypatch.setattr(configuration, "_try", original)
        configuration.update("one", {"content": "iso"})

    monkeypatch.setattr(configuration, "_try", slowly)
    with pytest.raises(Conflict):
        configuration.update("one", {"nodes": "n1"}, digest=digest)
    assert configuration.describe("one")["content"] == "iso"
    assert "nodes" not in configuration.describe("one")
    configuration.update("one", {"nodes": "n1"}, digest=configuration.digest())
    with pytest.raises(Conflict):
        configuration.update("one", {"nodes": "n1"}, digest=digest)


def test_other_nodes_have_other_folders(configuration: StorageConfiguration, tmp_path: Path) -> None:
    create(configuration, "there", tmp_path / "a", nodes="n2,n3")
    create(configuration, "here", tmp_path / "a", nodes="n1")
    assert "storage 'here'" in fault(configuration, tmp_path / "a")


def test_names_and_types(configuration: StorageConfiguration, store: MemoryStore, tmp_path: Path) -> None:
    create(configuration, "one", tmp_path / "one")
    for name in ("one", "local"):
        with pytest.raises(AlreadyExists):
            create(configuration, name, tmp_path / "other")
    with pytest.raises(NotSupported, match="nfs"):
        configuration.create("far", {"type": "nfs", "server": "nas", "export": "/x"})
    with pytest.raises(Failure, match="does not lie on btrfs"):
        configuration.create("sub", {"type": "btrfs", "path": str(tmp_path / "sub")})
    assert store.get(PREFIX + "sub") is None


def test_what_was_stored_by_others_is_judged_too(
    configuration: StorageConfiguration, store: MemoryStore, tmp_path: Path
) -> None:
    store.put(PREFIX + "far", encode_document({"type": "nfs", "path": str(tmp_path / "far"), "server": "nas"}))
    assert "storage 'far'" in fault(configuration, tmp_path / "far/within")
