# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files are known by their bytes, not by their names."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from pathlib import Path

import pytest

from orrery.drivers.storage.signature import detect, require_kind
from orrery.errors import Failure


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("etc/hostname")
        archive.addfile(info, io.BytesIO(b""))
    return buffer.getvalue()


def iso(folder: Path) -> bytes:
    (folder / "content").mkdir()
    (folder / "content" / "file").write_text("x")
    target = folder / "made.iso"
    subprocess.run(["genisoimage", "-quiet", "-o", target, folder / "content"], check=True, capture_output=True)
    return target.read_bytes()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", ""),
        (b"\0" * 1000, ""),
        (b"hello", ""),
        (gzip.compress(b"x", mtime=0), "gz"),
        (lzma.compress(b"x"), "xz"),
        (bz2.compress(b"x"), "bz2"),
        (b"\x28\xb5\x2f\xfd\x00", "zst"),
        (tar(), "tar"),
        (b"\n<!DOCTYPE HTML><title>404</title>", "html"),
    ],
)
def test_detect(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert detect(path) == kind


@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "qed", "vhdx", "vdi", "luks"])
def test_disk_images(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / "image"
    extra = ["--object", "secret,id=s,data=abc", "-o", "key-secret=s,iter-time=10"] if image_format == "luks" else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", image_format, *extra, path, "8M"], check=True, capture_output=True
    )
    assert detect(path) == image_format


def test_cd_image(tmp_path: Path) -> None:
    path = tmp_path / "x.iso"
    path.write_bytes(iso(tmp_path))
    assert detect(path) == "iso"
    require_kind(path, "iso", "iso")
    with pytest.raises(Failure, match="a CD image"):
        require_kind(path, "import", "qcow2")


@pytest.mark.parametrize(
    ("data", "content", "image_format", "fits"),
    [
        (b"anything", "iso", "iso", True),
        (b"QFI\xfb" + bytes(200), "iso", "iso", False),
        (gzip.compress(b"x", mtime=0), "iso", "iso", False),
        (b"<html>not found</html>", "iso", "iso", False),
        (b"<html>not found</html>", "vztmpl", "tgz", False),
        (gzip.compress(b"x", mtime=0), "vztmpl", "tgz", True),
        (gzip.compress(b"x", mtime=0), "vztmpl", "tzst", False),
        (lzma.compress(b"x"), "vztmpl", "txz", True),
        (tar(), "vztmpl", "tar", True),
        (tar(), "import", "ova", True),
        (gzip.compress(b"x", mtime=0), "import", "raw", False),
        (bytes(2000), "import", "raw", True),
        (b"KDMV" + bytes(200), "import", "qcow2", False),
        (b"QFI\xfb" + bytes(200), "import", "qcow2", True),
        (b"#cloud-config\n", "snippets", "snippet", True),
    ],
)
def test_fitting(tmp_path: Path, data: bytes, content: str, image_format: str, fits: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    if fits:
        require_kind(path, content, image_format)
    else:
        with pytest.raises(Failure, match="does not fit its name"):
            require_kind(path, content, image_format)
