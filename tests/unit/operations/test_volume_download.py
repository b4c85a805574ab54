# SPDX-License-Identifier: AGPL-3.0-or-later
"""Downloads end as whole, verified volumes or not at all."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest
from tests.unit.drivers.storage.test_fetch import page, serving
from tests.unit.operations.test_volume import Node, node, publish_late

from orrery.drivers.storage import usage
from orrery.drivers.storage.base import Usage
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.errors import AlreadyExists, Cancelled, Failure, NoSpace
from orrery.operations.volume_download import DownloadUrl, hasher
from orrery.tasks import registry

__all__ = ["node"]

DATA = b"\x01" + bytes(range(256)) * 10_000


def download(url: str, name: str = "iso/x.iso", **options: Any) -> DownloadUrl:
    return DownloadUrl("local", name, url, **options)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha224", "sha256", "sha384", "sha512"])
def test_verified_download(node: Node, algorithm: str) -> None:
    expected = hashlib.new(algorithm, DATA).hexdigest().upper()
    with serving({"/x": page(DATA)}) as site:
        task = node.run(download(f"{site.url}/x", checksum=expected, algorithm=algorithm))
    assert (node.root / "template/iso/x.iso").read_bytes() == DATA
    assert node.everything() == {"template/iso/x.iso"}
    assert task.steps[-1] == (len(DATA), len(DATA))


def test_wrong_checksum(node: Node) -> None:
    with serving({"/x": page(DATA)}) as site, pytest.raises(Failure, match="checksum mismatch"):
        node.run(download(f"{site.url}/x", checksum="00", algorithm="sha256"))
    assert node.everything() == set()


def test_unknown_algorithm() -> None:
    with pytest.raises(Failure, match="not known"):
        hasher("crc32")


def test_compressed_download(node: Node) -> None:
    packed = gzip.compress(DATA)
    expected = hashlib.sha256(packed).hexdigest()
    with serving({"/x.img.gz": page(packed)}) as site:
        operation = download(
            f"{site.url}/x.img.gz", "iso/x.img", checksum=expected, algorithm="sha256", compression="gz"
        )
        node.run(operation)
    assert (node.root / "template/iso/x.img").read_bytes() == DATA
    assert len(node.everything()) == 1


def test_compression_that_is_none(node: Node) -> None:
    with serving({"/x": page(DATA)}) as site, pytest.raises(Failure, match="unable to unpack"):
        node.run(download(f"{site.url}/x", compression="gz"))
    assert node.everything() == set()


def test_existing_files_stay(node: Node) -> None:
    with serving({"/x": page(DATA), "/y": page(b"other")}) as site:
        node.run(download(f"{site.url}/x"))
        with pytest.raises(AlreadyExists, match=r"refusing to override existing file 'x\.iso'"):
            node.run(download(f"{site.url}/y"))
    assert (node.root / "template/iso/x.iso").read_bytes() == DATA


def test_error_pages_are_no_files(node: Node) -> None:
    with serving({"/x": page(b"<!doctype html><title>Not found</title>"), "/gone": page(status=404)}) as site:
        with pytest.raises(Failure, match="a web page"):
            node.run(download(f"{site.url}/x"))
        with pytest.raises(Failure, match="answered 404"):
            node.run(download(f"{site.url}/gone"))
    assert node.everything() == set()


def test_import_images_are_examined(node: Node) -> None:
    with serving({"/x": page(b"QFI\xfb" + bytes(2000))}) as site, pytest.raises(Failure):
        node.run(download(f"{site.url}/x", "import/x.qcow2"))
    assert node.everything() == set()


def test_cancel(node: Node) -> None:
    with serving({"/x": page(DATA)}) as site, pytest.raises(Cancelled):
        node.run(download(f"{site.url}/x"), stop=True)
    assert node.everything() == set()


def test_a_download_cancelled_too_late_is_there(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_late(node, monkeypatch)
    with serving({"/x": page(DATA)}) as site:
        assert node.run(download(f"{site.url}/x")).committed
    assert node.everything() == {"template/iso/x.iso"}


def test_too_large_is_refused_before_it_starts(node: Node) -> None:
    with (
        serving({"/x": page(b"", Content_Length=str(1 << 50))}) as site,
        pytest.raises(NoSpace, match="storage 'local'"),
    ):
        node.run(download(f"{site.url}/x"))
    assert node.everything() == set()


def test_a_bomb_stops_before_the_storage_is_full(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 30, 1 << 30, 1 << 29])
    monkeypatch.setattr(DirectoryStorage, "usage", lambda self: Usage(1 << 40, 0, next(free, 1 << 20)))
    monkeypatch.setattr(usage, "RESERVE", 1 << 21)
    packed = gzip.compress(bytes(1 << 30), 1)
    with serving({"/x": page(packed)}) as site, pytest.raises(NoSpace):
        node.run(download(f"{site.url}/x", compression="gz"))
    assert node.everything() == set()


def test_secrets_of_the_address_stay_secret(node: Node, tmp_path: Path) -> None:
    with serving({"/x?sig=s3cret": page(DATA)}) as site:
        operation = download(f"{site.url.replace('//', '//anna:geheim@')}/x?sig=s3cret")
        task = node.run(operation)
        assert site.seen[0][1]["authorization"].startswith("Basic ")
    assert "s3cret" not in "\n".join(task.lines)
    assert "geheim" not in "\n".join(task.lines)
    assert "url" not in registry.public(operation)
    assert operation.subject() == "x.iso"


def test_proxy_of_the_installation_is_used(node: Node) -> None:
    from orrery.store.documents import encode_document

    with serving({"http://mirror.example/x": page(DATA)}) as proxy:
        node.store.put("/cluster/options", encode_document({"http_proxy": proxy.url}))
        node.run(download("http://mirror.example/x"))
        with pytest.raises(Failure, match="nothing is downloaded"):
            node.run(download("http://169.254.169.254/x", "iso/y.iso"))
    assert (node.root / "template/iso/x.iso").read_bytes() == DATA
