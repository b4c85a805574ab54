# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volume ids and volume names."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.volume import (
    ParsedVolume,
    VolumeId,
    content_for,
    image_name,
    parse_volname,
    upload_name,
    volume_stem,
)

KNOWN = [
    ("100/vm-100-disk-0.qcow2", "images", "qcow2", 100, None, "images/100/vm-100-disk-0.qcow2"),
    ("100/vm-100-cloudinit.raw", "images", "raw", 100, None, "images/100/vm-100-cloudinit.raw"),
    ("100/base-100-disk-0.raw", "images", "raw", 100, None, "images/100/base-100-disk-0.raw"),
    (
        "100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2",
        "images",
        "qcow2",
        101,
        "100/base-100-disk-0.qcow2",
        "images/101/vm-101-disk-0.qcow2",
    ),
    ("100/subvol-100-disk-0.subvol", "images", "subvol", 100, None, "images/100/subvol-100-disk-0.subvol"),
    ("iso/debian 12.iso", "iso", "iso", None, None, "template/iso/debian 12.iso"),
    ("iso/disk.IMG", "iso", "iso", None, None, "template/iso/disk.IMG"),
    ("vztmpl/debian.tar.zst", "vztmpl", "tzst", None, None, "template/cache/debian.tar.zst"),
    ("vztmpl/debian.tar", "vztmpl", "tar", None, None, "template/cache/debian.tar"),
    (
        "backup/vzdump-qemu-100-2026_11_22-10_00_00.vma.zst",
        "backup",
        "vma.zst",
        100,
        None,
        "dump/vzdump-qemu-100-2026_11_22-10_00_00.vma.zst",
    ),
    ("backup/other.tar", "backup", "tar", None, None, "dump/other.tar"),
    ("snippets/hook.sh", "snippets", "snippet", None, None, "snippets/hook.sh"),
    ("import/x.qcow2", "import", "qcow2", None, None, "import/x.qcow2"),
    ("import/x.ova", "import", "ova", None, None, "import/x.ova"),
    ("import/x.ova/disk.vmdk", "import", "ova+vmdk", None, "import/x.ova", "import/x.ova"),
]


@pytest.mark.parametrize(("name", "content", "format_", "vmid", "base", "path"), KNOWN)
def test_parses(name: str, content: str, format_: str, vmid: int | None, base: str | None, path: str) -> None:
    parsed = parse_volname(name)
    assert parsed == ParsedVolume(name, content, name.rpartition("/")[2], format_, vmid, base)
    assert parsed.relative_path() == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "100",
        "100/",
        "/100/x.raw",
        "100//x.raw",
        "100/../x.raw",
        "100/./x.raw",
        "../x",
        "iso/../../etc/passwd",
        "99/vm-99-disk-0.raw",
        "100/vm-100-disk-0",
        "100/vm-100-disk-0.qed",
        "100/vm-101-disk-0.raw",
        "100/.raw",
        "100/.hidden.raw",
        "100/-x.raw",
        "100/vm-100 disk.raw",
        "100/a\x00.raw",
        "100/a\n.raw",
        "iso/a\n.iso",
        "iso/.iso",
        "iso/x.qcow2",
        "iso/a/b.iso",
        "vztmpl/x.zip",
        "backup/x.vma.xz",
        "import/x.iso",
        "import/x.qcow2/y.vmdk",
        "100/vm-100-disk-0.qcow2/101/vm-101-disk-0.qcow2",
        "images/100/vm-100-disk-0.raw",
        "iso/" + "x" * 252 + ".iso",
        "100/base-100-disk-0.qcow2/101",
        "snippets/.x",
        "iso/a\u202e.iso",
        "iso/\udcff.iso",
        "iso/" + "ü" * 126 + ".iso",
    ],
)
def test_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_volname(name)


def test_base_and_folders() -> None:
    assert parse_volname("100/base-100-disk-0.raw").is_base
    assert not parse_volname("100/vm-100-disk-0.raw").is_base
    assert parse_volname("iso/x.iso").relative_path({"iso": "isos"}) == "isos/x.iso"


@pytest.mark.parametrize("text", ["", "local", "local:", ":x", "l:x", "lo cal:x", "local:../x", "local:a\0", "-a:x"])
def test_refuses_volume_id(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        VolumeId.parse(text)


def test_volume_id_keeps_colons_of_the_name() -> None:
    volume = VolumeId.parse("pbs-1:backup/vm/100/2026-01-01T00:00:00Z")
    assert (volume.storage, volume.name) == ("pbs-1", "backup/vm/100/2026-01-01T00:00:00Z")


def test_new_image_name_is_the_guests() -> None:
    assert image_name(100, "vm-100-disk-1.raw") == "100/vm-100-disk-1.raw"
    for leaf in ("vm-101-disk-1.raw", "disk.raw", "../vm-100-disk-1.raw", "x/vm-100-disk-1.raw"):
        with pytest.raises(ValueError, match=r"."):
            image_name(100, leaf)


def test_upload_names() -> None:
    assert upload_name("iso", "my disk ü.iso") == "iso/my_disk__.iso"
    for content, name in [("iso", "x.raw"), ("iso", "../x.iso"), ("iso", "a\\b.iso"), ("images", "x.raw")]:
        with pytest.raises(ValueError, match=r"."):
            upload_name(content, name)
    with pytest.raises(ValueError, match="wrong file extension"):
        upload_name("import", "x.iso")


def within(path: str) -> bool:
    return not path.startswith("/") and not {"..", ".", ""} & set(PurePosixPath(path).parts) and "\0" not in path


pieces = st.sampled_from(
    ["100", "vm-100-disk-0.raw", "base-100-disk-0.qcow2", "iso", "import", "x.ova", "..", ".", "x.iso"]
)


@given(st.one_of(st.text(max_size=40), st.lists(pieces | st.text(max_size=4), max_size=5).map("/".join)))
def test_whatever_parses_stays_within_its_storage(name: str) -> None:
    try:
        parsed = parse_volname(name)
    except ValueError:
        return
    assert parsed.name == name
    assert within(parsed.relative_path())
    assert str(VolumeId.parse(f"local:{name}")) == f"local:{name}"


@given(st.text(max_size=300))
def test_whatever_is_uploaded_has_a_plain_name(name: str) -> None:
    try:
        volname = upload_name("iso", name + ".iso")
    except ValueError:
        return
    assert volname.count("/") == 1
    assert volname.isascii()
    assert parse_volname(volname).content == "iso"


@pytest.mark.parametrize("leaf", ["vm-100-disk-0.subvol", "subvol-100-disk-0.raw", "base-100-disk-0.subvol"])
def test_only_folders_are_called_subvol(leaf: str) -> None:
    with pytest.raises(ValueError, match="illegal name"):
        image_name(100, leaf)
    assert image_name(100, "subvol-100-disk-0.subvol") == "100/subvol-100-disk-0.subvol"


@pytest.mark.parametrize(
    ("name", "owner", "content"),
    [
        ("100/vm-100-disk-0.raw", "qemu", "images"),
        ("100/vm-100-disk-0.raw", None, "images"),
        ("100/vm-100-disk-0.raw", "lxc", "rootdir"),
        ("100/subvol-100-disk-0.subvol", None, "rootdir"),
        ("iso/x.iso", "lxc", "iso"),
    ],
)
def test_content_for_clients(name: str, owner: str | None, content: str) -> None:
    assert content_for(parse_volname(name), owner) == content


def test_stems() -> None:
    assert {volume_stem(leaf) for leaf in ("vm-100-disk-0.raw", "subvol-100-disk-0.subvol", "base-100-disk-0")} == {
        "100-disk-0"
    }
    assert volume_stem("foreign.raw") == "foreign.raw"
