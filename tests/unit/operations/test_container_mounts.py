# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orrery.drivers.storage.base import VolumeInfo
from orrery.errors import NotFound, ParameterError
from orrery.operations.container_create import complete
from orrery.operations.container_mounts import (
    SETUP_PLACES,
    check_mount,
    container_mount,
    final_text,
    is_upon,
    own_mounts,
    read_mount,
    volume_format,
)
from orrery.store.memory import MemoryStore
from orrery.system.mounts import Folder, LoopImage

MIB = 1 << 20


class Storage:
    """A storage with one volume of guest 100 and one of guest 101."""

    def __init__(self, formats: tuple[str, ...] = ("raw", "subvol"), *, sized: bool = False) -> None:
        self.name = "local"
        self.contents = frozenset(("rootdir",))
        self.container_formats = formats
        self.sized_folders = sized

    def info(self, name: str) -> VolumeInfo:
        owner, _, leaf = name.partition("/")
        if not leaf.startswith(("vm-", "subvol-")) or "-9" in leaf:
            raise NotFound(f"volume 'local:{name}' does not exist")
        kind = leaf.rpartition(".")[2]
        return VolumeInfo(f"local:{name}", "images", kind, 64 * MIB if kind == "raw" else 0, 0, 0, vmid=int(owner))

    def path(self, name: str) -> Path:
        return Path("/storage") / name


class Storages:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def get(self, name: str) -> Storage:
        if name != "local":
            raise NotFound(f"storage '{name}' does not exist")
        return self._storage

    def volume(self, volid: str) -> tuple[Storage, str]:
        storage, _, name = volid.partition(":")
        return self.get(storage), name


def context(storage: Storage | None = None) -> Any:
    return SimpleNamespace(storages=Storages(storage or Storage()), store=MemoryStore())


@pytest.mark.parametrize(
    ("formats", "sized", "size", "expected"),
    [
        (("raw", "subvol"), False, 64 * MIB, "raw"),
        (("raw", "subvol"), False, 0, "subvol"),
        (("subvol",), True, 64 * MIB, "subvol"),
        (("subvol",), True, 0, "subvol"),
    ],
)
def test_the_format_follows_the_size(formats: tuple[str, ...], sized: bool, size: int, expected: str) -> None:
    storage: Any = Storage(formats, sized=sized)
    assert volume_format(storage, "mp0", size) == expected


@pytest.mark.parametrize(
    ("formats", "size", "words"),
    [(("raw",), 0, "plain folders"), (("subvol",), MIB, "with a size"), (("raw", "subvol"), MIB, "at least 8 MiB")],
)
def test_a_storage_that_would_not_hold_the_size_is_refused(formats: tuple[str, ...], size: int, words: str) -> None:
    storage: Any = Storage(formats)
    with pytest.raises(ParameterError) as caught:
        volume_format(storage, "mp0", size)
    assert words in caught.value.errors["mp0"]


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("mp0", "local:100/vm-100-disk-9.raw,mp=/x", "does not exist"),
        ("mp0", "local:101/vm-101-disk-0.raw,mp=/x", "belongs to guest 101"),
        ("mp0", "local:100/vm-100-disk-0.qcow2,mp=/x", "no volume that a container can use"),
        ("mp0", "/no/such/folder,mp=/x", "does not exist on this host"),
        ("mp0", "/dev/null,mp=/x", "no block device"),
        ("unused0", "local:1", "is one that exists"),
    ],
)
def test_what_cannot_be_mounted(key: str, text: str, words: str) -> None:
    with pytest.raises(ParameterError) as caught:
        check_mount(context(), 100, key, text)
    assert words in caught.value.errors[key]


def test_what_can_be_mounted(tmp_path: Path) -> None:
    for text in ("local:1,mp=/x", "local:0,mp=/x", "local:100/vm-100-disk-0.raw,mp=/x", f"{tmp_path},mp=/x"):
        check_mount(context(), 100, "mp0", text)


def test_the_option_names_its_volume_and_size() -> None:
    text = final_text("mp0", "local:8,mp=/data,backup=1", "local:100/vm-100-disk-1.raw", 64 * MIB)
    assert text == "local:100/vm-100-disk-1.raw,backup=1,mp=/data,size=64M"
    assert final_text("mp0", "local:0,mp=/data", "local:100/subvol-100-disk-1.subvol", 0).endswith("mp=/data")
    assert final_text("unused0", "local:8,mp=/data", "local:100/vm-100-disk-1.raw", 1) == "local:100/vm-100-disk-1.raw"


def test_an_unused_volume_is_read_as_one() -> None:
    found = read_mount("unused3", "local:100/vm-100-disk-0.raw")
    assert (found.key, found.mp, str(found.volume)) == ("unused3", "", "local:100/vm-100-disk-0.raw")


def test_how_a_volume_is_mounted(tmp_path: Path) -> None:
    image = container_mount(context(), read_mount("rootfs", "local:100/vm-100-disk-0.raw,acl=1,mountoptions=noatime"))
    assert image.source == LoopImage(Path("/storage/100/vm-100-disk-0.raw"))
    assert (image.target, image.options, image.mapped) == ("/", ("noatime", "acl"), True)
    folder = container_mount(context(), read_mount("mp0", "local:100/subvol-100-disk-0.subvol,mp=/d,acl=1,ro=1"))
    assert folder.source == Folder(Path("/storage/100/subvol-100-disk-0.subvol"), recursive=False)
    assert (folder.target, folder.options, folder.read_only) == ("/d", (), True)
    bind = container_mount(context(), read_mount("mp0", f"{tmp_path},mp=/d"))
    assert (bind.source, bind.mapped) == (Folder(tmp_path), False)


def test_folders_of_the_host_are_never_written_to_by_us(tmp_path: Path) -> None:
    options = {
        "rootfs": "local:100/vm-100-disk-0.raw",
        "mp0": f"{tmp_path},mp=/etc",
        "mp1": "local:100/vm-100-disk-1.raw,mp=/srv",
        "mp2": "local:100/vm-100-disk-2.raw,mp=/etc/ssh,ro=1",
    }
    assert list(own_mounts(context(), options)) == ["rootfs", "mp1", "mp2"]
    assert list(own_mounts(context(), options, SETUP_PLACES)) == ["rootfs", "mp2"]
    assert not own_mounts(context(), options)["mp2"].read_only


@pytest.mark.parametrize(
    ("place", "mp", "expected"),
    [
        ("/etc", "/", True),
        ("/etc", "/etc", True),
        ("/etc", "/etc/ssh", True),
        ("/root", "/root/", True),
        ("/etc", "/etcetera", False),
        ("/etc", "/srv", False),
    ],
)
def test_what_lies_upon_what(place: str, mp: str, expected: bool) -> None:
    assert is_upon(place, mp) is expected


def test_a_new_container_gets_a_name_and_addresses() -> None:
    options = complete({"net0": "name=eth0,bridge=vmbr0", "net1": "name=eth1,hwaddr=BC:24:11:00:00:01"}, 100, context())
    assert (options["hostname"], options["unprivileged"], options["arch"]) == ("CT100", "1", "amd64")
    assert "hwaddr=BC:24:11:" in options["net0"]
    assert "hwaddr=BC:24:11:00:00:01" in options["net1"]
    assert complete({"unprivileged": "0", "hostname": "a"}, 100, context())["unprivileged"] == "0"
