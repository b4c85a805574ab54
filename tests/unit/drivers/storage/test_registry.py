# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storages come from the store; `local` is always there."""

from pathlib import Path
from typing import Any

import pytest

from orrery.drivers.storage.registry import StorageRegistry, require_content
from orrery.errors import Failure, NotFound, NotSupported
from orrery.store.documents import encode_document
from orrery.store.memory import MemoryStore
from orrery.system.paths import Paths


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore, tmp_path: Path) -> StorageRegistry:
    return StorageRegistry(store, Paths.of(tmp_path), "n1")


def define(store: MemoryStore, name: str, **options: Any) -> None:
    store.put(f"/storage/{name}", encode_document({"type": "dir", "path": f"/tank/{name}", **options}))


def test_local_is_built_in(registry: StorageRegistry, tmp_path: Path) -> None:
    assert registry.names() == ["local"]
    driver = registry.get("local")
    driver.activate()
    driver.allocate("100/vm-100-disk-0.raw", 512)
    assert (tmp_path / "lib/storage/local/images/100/vm-100-disk-0.raw").exists()
    assert driver.contents == {"images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import"}


def test_local_can_be_configured(registry: StorageRegistry, store: MemoryStore) -> None:
    define(store, "local", content="iso")
    assert registry.get("local").contents == {"iso"}
    assert registry.definition("local")["path"] == "/tank/local"


def test_unknown_disabled_and_elsewhere(registry: StorageRegistry, store: MemoryStore) -> None:
    define(store, "off", disable=1)
    define(store, "far", nodes="n2,n3")
    define(store, "near", nodes="n2,n1")
    define(store, "new", type="zfspool")
    with pytest.raises(NotFound, match=r"^storage 'x' does not exist$"):
        registry.get("x")
    with pytest.raises(Failure, match="storage 'off' is disabled"):
        registry.get("off")
    with pytest.raises(Failure, match="storage 'far' is not available on node 'n1'"):
        registry.get("far")
    with pytest.raises(NotSupported, match="zfspool"):
        registry.get("new")
    assert registry.get("near").name == "near"
    assert registry.names() == ["local", "near", "new"]
    assert list(registry.definitions()) == ["far", "local", "near", "new", "off"]


def test_volumes(registry: StorageRegistry, store: MemoryStore) -> None:
    driver, name = registry.volume("local:iso/x.iso")
    assert (driver.name, name) == ("local", "iso/x.iso")
    with pytest.raises(NotFound, match="storage 'gone' does not exist"):
        registry.volume("gone:iso/x.iso")
    for text in ("", "local", "iso/x.iso", ":x", "local:", "local:../x", "lo/cal:x"):
        with pytest.raises(Failure, match="unable to parse volume ID"):
            registry.volume(text)


def test_content(registry: StorageRegistry, store: MemoryStore) -> None:
    define(store, "media", content="iso")
    assert registry.content_allowed("media", "iso").name == "media"
    with pytest.raises(Failure, match="storage 'media' does not support content-type 'images'"):
        require_content(registry.get("media"), "images")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"path": ""}, "absolute path"),
        ({"path": "tank"}, "absolute path"),
        ({"content": "iso,films"}, "films"),
        ({"format": "qed"}, "format"),
        ({"preallocation": "some"}, "preallocation"),
        ({"content-dirs": "iso=../x"}, "plain folder"),
        ({"content-dirs": "iso=/x"}, "plain folder"),
        ({"content-dirs": "films=x"}, "content-dirs"),
        ({"content-dirs": "iso=dump"}, "same folder"),
        ({"disable": "perhaps"}, "not a boolean"),
    ],
)
def test_damaged_options_are_named(
    registry: StorageRegistry, store: MemoryStore, options: dict[str, str], word: str
) -> None:
    define(store, "bad", **options)
    with pytest.raises(Failure, match=word):
        registry.get("bad")


def test_folders_and_mount_points(registry: StorageRegistry, store: MemoryStore, tmp_path: Path) -> None:
    define(store, "own", path=str(tmp_path / "own"), content="iso", **{"content-dirs": "iso=media/cd"})
    driver = registry.get("own")
    driver.activate()
    assert driver.path("iso/x.iso") == tmp_path / "own/media/cd/x.iso"
    assert (tmp_path / "own/media/cd").is_dir()
    define(store, "bare", path=str(tmp_path / "bare"), mkdir=0)
    with pytest.raises(Failure, match="does not exist"):
        registry.get("bare").activate()
    assert not (tmp_path / "bare").exists()
    define(store, "mounted", path=str(tmp_path / "own"), is_mountpoint="yes")
    with pytest.raises(Failure, match="nothing is mounted"):
        registry.get("mounted").activate()
    define(store, "mounted", path="/proc", is_mountpoint=1, mkdir=0, **{"create-subdirs": 0})
    registry.get("mounted").activate()


def test_links_do_not_lead_out(registry: StorageRegistry, store: MemoryStore, tmp_path: Path) -> None:
    define(store, "own", path=str(tmp_path / "own"), content="iso,images")
    driver = registry.get("own")
    driver.activate()
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "x.iso").write_bytes(b"secret")
    (tmp_path / "own/template/iso/x.iso").symlink_to(outside / "x.iso")
    (tmp_path / "own/images/100").symlink_to(outside)
    (outside / "vm-100-disk-0.raw").write_bytes(b"secret")
    assert driver.list({"iso", "images"}) == []
    for volume in ("iso/x.iso", "100/vm-100-disk-0.raw"):
        with pytest.raises(Failure, match="leads out"):
            driver.path(volume)
        with pytest.raises(Failure, match="leads out"):
            driver.free(volume)
        with pytest.raises(Failure, match="leads out"):
            driver.info(volume)
    with pytest.raises(Failure, match="leads out"):
        driver.allocate("100/vm-100-disk-1.raw", 512)
    assert sorted(path.name for path in outside.iterdir()) == ["vm-100-disk-0.raw", "x.iso"]
