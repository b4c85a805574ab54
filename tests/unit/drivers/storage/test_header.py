# SPDX-License-Identifier: AGPL-3.0-or-later
"""Headers as QEMU writes them are read right, and those that reach for other files are seen through."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.drivers.storage.header import MAX_VIRTUAL_SIZE, ImageHeader, read_header
from orrery.errors import Failure

MIB = 1 << 20


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)
    return path


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "5M")
    return path


@pytest.fixture
def vmdk(tmp_path: Path) -> Path:
    path = tmp_path / "x.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", path, "5M")
    return path


def trouble(path: Path, image_format: str) -> str:
    text = read_header(path, image_format).trouble
    assert text is not None
    return text


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
def test_virtual_size(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", image_format, path, "7M")
    assert read_header(path, image_format) == ImageHeader(image_format, 7 * MIB)


@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "lazy_refcounts=on",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=128k",
        "compression_type=zstd",
    ],
)
def test_every_kind_of_qcow2_that_stands_alone(tmp_path: Path, options: str) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "3M")
    assert read_header(path, "qcow2") == ImageHeader("qcow2", 3 * MIB)


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_every_kind_of_vmdk_that_stands_alone(tmp_path: Path, subformat: str) -> None:
    raw, path = tmp_path / "x.raw", tmp_path / "x.vmdk"
    raw.write_bytes(b"x" * MIB)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, path)
    assert read_header(path, "vmdk") == ImageHeader("vmdk", MIB)


@pytest.mark.parametrize("image_format", ["qcow2", "vmdk"])
def test_backing_file_is_named_and_refused(tmp_path: Path, image_format: str) -> None:
    base, path = tmp_path / "base", tmp_path / "x"
    qemu_img("create", "-q", "-f", image_format, base, "1M")
    qemu_img("create", "-q", "-f", image_format, "-b", base, "-F", image_format, path)
    header = read_header(path, image_format)
    assert header.backing == str(base)
    assert header.trouble is not None
    assert "another file" in header.trouble


def test_external_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", path, "1M")
    assert trouble(path, "qcow2") == "it keeps its data in another file"


def test_data_file_extension_alone_is_refused(qcow2: Path) -> None:
    (length,) = struct.unpack(">I", qcow2.read_bytes()[100:104])
    patched(qcow2, length, struct.pack(">II", 0x44415441, 8) + b"/etc/pwd")
    assert trouble(qcow2, "qcow2") == "it keeps its data in another file"


def test_encrypted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    secret = "secret,id=s,data=abc"
    qemu_img("create", "-q", "-f", "qcow2", "--object", secret, "-o",
             "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M")  # fmt: skip
    assert trouble(path, "qcow2") == "it is encrypted"


@pytest.mark.parametrize(
    ("offset", "data", "word"),
    [
        (24, struct.pack(">Q", 1 << 62), "beyond all reason"),
        (20, struct.pack(">I", 31), "cluster size"),
        (36, struct.pack(">I", 1 << 31), "outside the file"),
        (40, struct.pack(">Q", 1 << 50), "outside the file"),
        (72, struct.pack(">Q", 1 << 40), "not known"),
        (72, struct.pack(">Q", 2), "corrupt"),
    ],
)
def test_absurd_qcow2_is_refused(qcow2: Path, offset: int, data: bytes, word: str) -> None:
    assert word in trouble(patched(qcow2, offset, data), "qcow2")


def test_vmdk_without_size_is_refused(vmdk: Path) -> None:
    assert "other files" in trouble(patched(vmdk, 12, struct.pack("<Q", 0)), "vmdk")


def test_vmdk_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.vmdk"
    path.write_text('# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "/etc/shadow" 0\n')
    assert "other files" in trouble(path, "vmdk")


def test_raw_beyond_reason_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(b"12")
    monkeypatch.setattr("orrery.drivers.storage.header.MAX_VIRTUAL_SIZE", 1)
    assert "beyond all reason" in trouble(path, "raw")
    assert MAX_VIRTUAL_SIZE > 1 << 46


def test_wrong_format_is_said(qcow2: Path, vmdk: Path) -> None:
    with pytest.raises(Failure, match="not a vmdk"):
        read_header(qcow2, "vmdk")
    with pytest.raises(Failure, match="not a qcow2"):
        read_header(vmdk, "qcow2")
    with pytest.raises(Failure, match="not known"):
        read_header(qcow2, "qed")


def test_links_and_pipes_are_not_followed(tmp_path: Path, qcow2: Path) -> None:
    link = tmp_path / "link.qcow2"
    link.symlink_to(qcow2)
    with pytest.raises(OSError, match="symbolic"):
        read_header(link, "qcow2")


@given(data=st.binary(max_size=600), image_format=st.sampled_from(["qcow2", "vmdk", "raw"]))
def test_no_bytes_make_it_stumble(tmp_path_factory: pytest.TempPathFactory, data: bytes, image_format: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    magic = {"qcow2": b"QFI\xfb", "vmdk": b"KDMV", "raw": b""}[image_format]
    path.write_bytes(magic + data)
    try:
        header = read_header(path, image_format)
    except Failure:
        return
    assert header.virtual_size >= 0
