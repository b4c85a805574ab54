# SPDX-License-Identifier: AGPL-3.0-or-later
"""Layers are flattened as a runtime that stacks them would show them, and no entry reaches a file system."""

import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.drivers.images.imagesite import entry, folder, hardlink, symlink, tar

from orrery.drivers.images import layers
from orrery.drivers.images.layers import Tree
from orrery.errors import Failure


def flatten(tmp_path: Path, *layers: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes | None]]:
    """The members of the flattened archive by name, with their data; hard links have that of their target."""
    tree, files = Tree(), []
    for number, layer in enumerate(layers):
        file = tmp_path / f"layer{number}"
        file.write_bytes(layer)
        tree.apply(number, file)
        files.append(file)
    tree.write(files, tmp_path / "out.tar", lambda written: None)
    found: dict[str, tuple[tarfile.TarInfo, bytes | None]] = {}
    with tarfile.open(tmp_path / "out.tar", "r:") as archive:
        for member in archive.getmembers():
            stream = archive.extractfile(member) if member.isreg() or member.islnk() else None
            assert member.name not in found
            found[member.name] = member, stream.read() if stream else None
    return found


def names(found: dict[str, tuple[tarfile.TarInfo, bytes | None]]) -> set[str]:
    return set(found) - {"."}


def test_upper_layers_win(tmp_path: Path) -> None:
    found = flatten(
        tmp_path,
        tar(folder("etc", 0o700), entry("etc/a", b"old"), entry("etc/b", b"kept", uid=7, gid=8, mode=0o4711)),
        tar(folder("etc", 0o755), entry("./etc/a", b"new" * 10_000), entry("/usr/c", b"c")),
    )
    assert names(found) == {"etc", "etc/a", "etc/b", "usr", "usr/c"}
    assert found["etc/a"][1] == b"new" * 10_000
    member, data = found["etc/b"]
    assert (data, member.uid, member.gid, member.mode) == (b"kept", 7, 8, 0o4711)
    assert found["etc"][0].mode == 0o755


def test_white_outs(tmp_path: Path) -> None:
    found = flatten(
        tmp_path,
        tar(entry("d/a", b"1"), entry("d/b", b"2"), entry("o/x", b"3"), entry("o/s/y", b"4")),
        tar(entry("d/.wh.a"), entry("o/new", b"5"), entry("o/.wh..wh..opq"), entry("none/.wh.gone")),
    )
    assert names(found) == {"d", "d/b", "o", "o/new"}


def test_a_white_out_spares_its_own_layer(tmp_path: Path) -> None:
    found = flatten(tmp_path, tar(entry("a", b"1")), tar(entry("a", b"2"), entry(".wh.a")))
    assert found["a"][1] == b"2"


def test_a_file_replaces_a_folder_and_the_other_way_round(tmp_path: Path) -> None:
    found = flatten(
        tmp_path, tar(entry("x/y", b"1"), entry("z", b"2")), tar(entry("x", b"3"), folder("z"), entry("z/w", b"4"))
    )
    assert names(found) == {"x", "z", "z/w"}


def test_hard_links_across_layers(tmp_path: Path) -> None:
    found = flatten(
        tmp_path,
        tar(entry("b", b"old"), hardlink("a", "b")),
        tar(entry("b", b"new"), hardlink("c", "/a")),
    )
    assert {name: data for name, (_, data) in found.items()} == {".": None, "a": b"old", "b": b"new", "c": b"old"}
    assert found["c"][0].islnk()


def test_paths_through_links_stay_within(tmp_path: Path) -> None:
    found = flatten(
        tmp_path,
        tar(folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), symlink("up", "../../../../etc")),
        tar(entry("lib/x", b"1"), entry("up/passwd", b"2")),
    )
    assert names(found) == {"usr", "usr/lib", "usr/lib/x", "lib", "up", "etc", "etc/passwd"}


def test_only_so_much_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_ENTRIES", 5)
    monkeypatch.setattr(layers, "MAX_TEXT", 1000)
    headers = {"comment": "c" * 2000}
    flatten(tmp_path, tar(*(entry(f"a{number}", b"x", pax_headers=headers) for number in range(5))))
    with pytest.raises(Failure, match="more than 5 files"):
        flatten(tmp_path, tar(*(entry(f"a{number}", b"x") for number in range(6))))
    with pytest.raises(Failure, match="of names alone"):
        flatten(tmp_path, tar(entry("a", b"x", pax_headers={"SCHILY.xattr.user.x": "v" * 2000})))


def test_devices_and_attributes_are_kept(tmp_path: Path) -> None:
    attributes = {"SCHILY.xattr.security.capability": "\x01", "path.of.nobody": "x", "comment": "no"}
    found = flatten(
        tmp_path,
        tar(
            entry("dev/null", None, type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("ping", b"elf", pax_headers=attributes),
            entry("ümlaut" * 20, b"long"),
        ),
    )
    member, _ = found["dev/null"]
    assert (member.ischr(), member.devmajor, member.devminor) == (True, 1, 3)
    assert found["ping"][0].pax_headers == {"SCHILY.xattr.security.capability": "\x01"}
    assert found["ümlaut" * 20][1] == b"long"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (tar(entry("../etc/passwd", b"x")), "refused"),
        (tar(entry("a/../../b", b"x")), "refused"),
        (tar(entry("n" * 256, b"x")), "refused"),
        (tar(hardlink("a", "/etc/shadow")), "is no file"),
        (tar(hardlink("a", "../../etc/shadow")), "refused"),
        (tar(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"")), "circles"),
        (tar(entry("a", b"x"), entry("a/b", b"y")), "no folder"),
        (b"no archive at all" * 100, "no tar archive"),
        (tar(entry("a", b"x" * 5000))[:2000], "no tar archive"),
        (tar(entry("a", b"x", pax_headers={"SCHILY.xattr.user.x": "y" * (2 << 20)})), "larger than 1 MiB"),
    ],
)
def test_hostile_layers(tmp_path: Path, layer: bytes, words: str) -> None:
    with pytest.raises(Failure, match=words):
        flatten(tmp_path, layer)


_NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "l", "l/x", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "../x", "/a"])
_ENTRIES = st.lists(
    st.one_of(
        st.builds(lambda name: entry(name, b"data"), _NAMES),
        st.builds(folder, _NAMES),
        st.builds(symlink, _NAMES, st.sampled_from(["a", "/", "..", "../../..", "l", "/a/b"])),
        st.builds(hardlink, _NAMES, _NAMES),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_ENTRIES, min_size=1, max_size=3))
def test_any_layers_end_in_an_archive_within_itself_or_are_refused(tmp_path_factory, layers) -> None:
    try:
        found = flatten(tmp_path_factory.mktemp("layers"), *(tar(*entries) for entries in layers))
    except Failure:
        return
    for name, (member, _) in found.items():
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert ".wh." not in name
        if name != "." and "/" in name:
            assert found[name.rpartition("/")[0]][0].isdir()
        if member.islnk():
            assert member.linkname in found


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 1500))
def test_damaged_layers_raise_nothing_else(tmp_path_factory, noise: bytes, at: int) -> None:
    good = bytearray(tar(entry("a", b"x" * 600), folder("b"), symlink("c", "a")))
    good[at : at + len(noise)] = noise
    try:
        flatten(tmp_path_factory.mktemp("noise"), bytes(good))
    except Failure:
        return
