# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options of storages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import ParameterError
from orrery.model.storage import (
    STORAGE_OPTIONS,
    STORAGE_TYPES,
    unsupported_storage,
    validate_change,
    validate_storage,
)

FOLDER = {"type": "dir", "path": "/srv/vm", "content": "iso,images"}


def faults(options: dict[str, str]) -> dict[str, str]:
    with pytest.raises(ParameterError) as caught:
        validate_storage(options)
    return caught.value.errors


def test_a_folder() -> None:
    options = FOLDER | {
        "is_mountpoint": "1",
        "prune-backups": "keep-last=3,keep-daily=7",
        "shared": "0",
        "nodes": "a b",
    }
    assert validate_storage(options) == {
        "type": "dir",
        "path": "/srv/vm",
        "content": "images,iso",
        "is_mountpoint": "yes",
        "prune-backups": "keep-daily=7,keep-last=3",
        "shared": "0",
        "nodes": "a,b",
    }
    assert unsupported_storage(validate_storage(options)) == {}


def test_faults_by_parameter() -> None:
    found = faults(
        {"type": "dir", "path": "../x", "content": "images,none", "vgname": "vg0", "foo": "1", "format": "qed"}
    )
    assert set(found) == {"path", "content", "vgname", "foo", "format"}
    assert found["vgname"].startswith("unexpected property 'vgname'")
    assert faults({"type": "dir"}) == {"path": "property is missing and it is not optional"}
    assert faults({"path": "/x"}) == {"type": "property is missing and it is not optional"}
    assert set(faults({"type": "floppy"})) == {"type"}
    assert set(faults(FOLDER | {"is_mountpoint": "maybe"})) == {"is_mountpoint"}


def test_other_types_are_known_and_not_supported() -> None:
    options = validate_storage({"type": "nfs", "server": "nas", "export": "/x", "content": "iso"})
    assert unsupported_storage(options) == {"type": 'storage type "nfs" is not supported yet'}
    chain = validate_storage(FOLDER | {"snapshot-as-volume-chain": "1"})
    assert unsupported_storage(chain) == {"snapshot-as-volume-chain": '"snapshot-as-volume-chain" is not supported yet'}
    assert unsupported_storage(chain | {"snapshot-as-volume-chain": "0"}) == {}


def test_btrfs_is_a_folder_too() -> None:
    options = {"type": "btrfs", "path": "/srv/vm", "content": "rootdir,images", "nocow": "1"}
    assert validate_storage(options)["content"] == "images,rootdir"
    assert unsupported_storage(validate_storage(options)) == {}
    assert faults({"type": "btrfs"}) == {"path": "property is missing and it is not optional"}
    assert set(faults(FOLDER | {"nocow": "1"})) == {"nocow"}


def test_changes() -> None:
    current = validate_storage(FOLDER | {"nodes": "a"})
    changed = validate_change(current, {"content": "iso", "disable": "1"}, ["nodes"])
    assert changed == {"type": "dir", "path": "/srv/vm", "content": "iso", "disable": "1"}
    assert validate_change(current, {"path": "/srv/vm"}) == current
    for changes, delete, fault in [
        ({"path": "/other"}, (), "path"),
        ({"nodes": "b"}, ("nodes",), "delete"),
        ({}, ("path",), "delete"),
        ({}, ("vgname",), "delete"),
        ({"vgname": "x"}, (), "vgname"),
        ({"bwlimit": "clone=-1"}, (), "bwlimit"),
    ]:
        with pytest.raises(ParameterError) as caught:
            validate_change(current, changes, delete)
        assert fault in caught.value.errors


def test_the_table_is_sound() -> None:
    for name, option in STORAGE_OPTIONS.items():
        assert option.name == name
        assert option.types
        assert option.types <= set(STORAGE_TYPES)
        if option.default is not None:
            assert option.canonical(option.default) == option.default


@given(st.dictionaries(st.sampled_from(sorted(STORAGE_OPTIONS)), st.text(max_size=20), max_size=5))
def test_any_options_are_read_or_refused(options: dict[str, str]) -> None:
    try:
        canonical = validate_storage({**options, **FOLDER})
    except ParameterError:
        return
    assert validate_storage(canonical) == canonical
