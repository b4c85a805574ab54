# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images and servers of images for tests: archives, layers, registries, image servers, in their real formats."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.unit.drivers.storage.test_fetch import Answer, page


def qcow2(size: int) -> bytes:
    """A real, empty disk image."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), str(size)], check=True)
        return file.read_bytes()


def entry(name: str, data: bytes | None = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes | None]:
    """A member of an archive; `data` None for what is no plain file."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    if data is not None:
        info.size = len(data)
    return info, data


def folder(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, None]:
    return entry(name, None, type=tarfile.DIRTYPE, mode=mode)[0], None


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, None]:
    return entry(name, None, type=tarfile.SYMTYPE, linkname=target)[0], None


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, None]:
    return entry(name, None, type=tarfile.LNKTYPE, linkname=target)[0], None


def tar(*entries: tuple[tarfile.TarInfo, bytes | None]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class OciImage:
    """An image as it lies in a registry: blobs by digest, and the index that leads to them."""

    def __init__(self, *layers: bytes, run: dict[str, Any] | None = None, architecture: str = "amd64") -> None:
        self.blobs: dict[str, bytes] = {}
        packed = [gzip.compress(layer, 1) for layer in layers]
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": run or {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        self.config = self._add(json.dumps(config).encode())
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **self.config},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **self._add(layer)} for layer in packed
            ],
        }
        self.architecture = architecture
        self.seal()

    def _add(self, data: bytes) -> dict[str, Any]:
        self.blobs[sha256(data)] = data
        return {"digest": sha256(data), "size": len(data)}

    def seal(self) -> None:
        """Makes the index anew, after a test changed the manifest."""
        described = self._add(json.dumps(self.manifest).encode())
        other = {"digest": sha256(b"arm"), "size": 3, "platform": {"os": "linux", "architecture": "arm64"}}
        this = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            **described,
            "platform": {"os": "linux", "architecture": self.architecture},
        }
        self.manifest_digest = described["digest"]
        self.index = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [other, this],
            }
        ).encode()

    def pages(self, name: str, tag: str) -> dict[str, Answer]:
        """What a registry answers that has the image by a name and a tag."""
        base = f"/v2/{name}"
        found: dict[str, Answer] = {f"{base}/manifests/{tag}": page(self.index)}
        for digest, data in self.blobs.items():
            found[f"{base}/blobs/{digest}"] = page(data)
            found[f"{base}/manifests/{digest}"] = page(data)
        return found

    def archive(self) -> bytes:
        """The image as an archive with an image layout."""
        listed = {"schemaVersion": 2, "manifests": [{"digest": self.manifest_digest, "size": 1}]}
        return tar(
            entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            entry("index.json", json.dumps(listed).encode()),
            *(entry(f"blobs/{digest.replace(':', '/')}", data) for digest, data in self.blobs.items()),
        )


def image_server(root: bytes, disk: bytes, version: str = "20261120_05:24") -> dict[str, Answer]:
    """An image server with Debian bookworm for containers and machines, and what servers have besides."""

    def item(ftype: str, data: bytes, path: str) -> dict[str, Any]:
        return {"ftype": ftype, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "path": path}

    folder = f"images/debian/bookworm/amd64/default/{version}"
    files = {f"{folder}/rootfs.tar.xz": root, f"{folder}/disk.qcow2": disk}
    product = {
        "aliases": "debian/12/default,debian/12,debian/bookworm",
        "arch": "amd64",
        "os": "Debian",
        "release": "bookworm",
        "release_title": "12",
        "variant": "default",
        "versions": {
            "20250101_05:24": {"items": {"root.tar.xz": item("root.tar.xz", b"old", "images/old/rootfs.tar.xz")}},
            version: {
                "items": {
                    "lxd.tar.xz": item("lxd.tar.xz", b"metadata", f"{folder}/lxd.tar.xz"),
                    "root.squashfs": item("squashfs", b"squash", f"{folder}/rootfs.squashfs"),
                    "root.tar.xz": item("root.tar.xz", root, f"{folder}/rootfs.tar.xz"),
                    "disk.qcow2": item("disk-kvm.img", disk, f"{folder}/disk.qcow2"),
                }
            },
        },
    }
    foreign = {**product, "arch": "arm64"}
    index = {
        "format": "index:1.0",
        "index": {
            "images": {
                "datatype": "image-downloads",
                "path": "streams/v1/images.json",
                "format": "products:1.0",
                "products": ["debian:bookworm:amd64:default"],
            }
        },
    }
    images = {
        "content_id": "images",
        "datatype": "image-downloads",
        "format": "products:1.0",
        "products": {"debian:bookworm:amd64:default": product, "debian:bookworm:arm64:default": foreign},
    }
    found = {f"/{path}": page(data) for path, data in files.items()}
    found["/streams/v1/index.json"] = page(json.dumps(index).encode())
    found["/streams/v1/images.json"] = page(json.dumps(images).encode())
    return found


def alpine_index(file: str, data: bytes, version: str = "3.22.2") -> bytes:
    """`latest-releases.yaml` in the form that Alpine publishes."""
    return f"""---
-
  title: "Standard"
  desc: |
    Alpine as it was intended.
    flavor: alpine-minirootfs
  branch: v3.22
  arch: x86_64
  version: {version}
  flavor: alpine-standard
  file: alpine-standard-{version}-x86_64.iso
  iso: alpine-standard-{version}-x86_64.iso
  date: 2025-10-08
  time: 16:26:06
  size: 354418688
  sha256: {"0" * 64}
  sha512: {"0" * 128}
-
  title: "Mini root filesystem"
  desc: |
    Minimal root filesystem.
    For use in containers
    and minimal chroots.
  branch: v3.22
  arch: x86_64
  version: {version}
  flavor: alpine-minirootfs
  file: {file}
  iso: {file}
  date: 2025-10-08
  time: 16:26:06
  size: {len(data)}
  sha256: {hashlib.sha256(data).hexdigest()}
  sha512: {hashlib.sha512(data).hexdigest()}
""".encode()
