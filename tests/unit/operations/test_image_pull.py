# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images come from servers of their real formats, whole and verified, or not at all."""

import hashlib
import http.server
import json
import lzma
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.drivers.images.imagesite import alpine_index, entry, folder, image_server, qcow2, tar
from tests.unit.drivers.storage.test_fetch import Answer, page, redirect, serving
from tests.unit.operations.test_volume import Node, node

from orrery.drivers.images import debootstrap
from orrery.drivers.storage import fetch, usage
from orrery.drivers.storage.base import Usage
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.errors import AlreadyExists, Cancelled, Failure, NoSpace, NotFound
from orrery.model.images import CATALOGUE, KINDS, Cloud, find_entry
from orrery.operations.image_pull import PullImage, RemoveImage
from orrery.operations.image_records import entries, present
from orrery.store.documents import encode_document

__all__ = ["node"]

ROOT = tar(folder("etc"), entry("etc/os-release", b"ID=debian\n"))
ALPINE = "alpine-minirootfs-3.22.2-x86_64.tar.gz"
ALPINE_DATA = b"\x1f\x8b" + bytes(range(256)) * 300
ALPINE_BASE = "/alpine/v3.22/releases/x86_64"
DISK = qcow2(1 << 20)


def configure(node: Node, **options: str) -> None:
    node.store.put("/cluster/images", encode_document({key.replace("_", "-"): text for key, text in options.items()}))


def mirror_all(node: Node, url: str) -> None:
    """Has every address of the catalogue read from a test's server."""
    hosts = {"https://dl-cdn.alpinelinux.org"}
    hosts |= {"/".join(entry.source.url.split("/")[:3]) for entry in CATALOGUE if isinstance(entry.source, Cloud)}
    configure(node, mirrors=",".join(f"{host}/={url}/" for host in hosts))


def debian_pages(disk: bytes, sums: bytes | None = None) -> dict[str, Answer]:
    base = "/images/cloud/bookworm/latest"
    name = "debian-12-genericcloud-amd64.qcow2"
    listed = sums or f"{hashlib.sha512(disk).hexdigest()}  {name}\n".encode()
    return {f"{base}/{name}": page(disk), f"{base}/SHA512SUMS": page(listed)}


def alpine_pages(data: bytes = ALPINE_DATA, told: bytes = ALPINE_DATA) -> dict[str, Answer]:
    return {
        f"{ALPINE_BASE}/latest-releases.yaml": page(alpine_index(ALPINE, told)),
        f"{ALPINE_BASE}/{ALPINE}": page(data),
    }


def pull(image: str = "alpine-3.22", guest: str = "container", **options: Any) -> PullImage:
    kind: Any = guest
    found = find_entry(image, kind)
    volume = found.volume if found is not None else options.pop("volume")
    return PullImage("local", image, guest, volume, **options)


ALPINE_FILE = "template/cache/alpine-3.22_amd64.tar.gz"
DEBIAN_FILE = "import/debian-12_amd64.qcow2"


def test_mini_root(node: Node) -> None:
    with serving(alpine_pages()) as site:
        mirror_all(node, site.url)
        task = node.run(pull())
        assert (node.root / ALPINE_FILE).read_bytes() == ALPINE_DATA
        assert node.everything() == {ALPINE_FILE}
        (found,) = present(node.ctx)
        assert found.record is not None
        assert (found.record.alias, found.record.source) == ("alpine-3.22", "minirootfs")
        assert any("checksum is as expected" in line for line in task.lines)
        node.run(pull())
        assert len(site.seen) == 3  # index and archive, then the index alone


def test_cloud_image_is_refreshed_only_when_changed(node: Node) -> None:
    with serving(debian_pages(DISK)) as site:
        mirror_all(node, site.url)
        node.run(pull("debian-12", "machine"))
        node.run(pull("debian-12", "machine"))
        assert len(site.seen) == 3
        newer = qcow2(1 << 21)
        site.pages |= debian_pages(newer)
        node.run(pull("debian-12", "machine"))
        assert (node.root / DEBIAN_FILE).read_bytes() == newer
        assert node.everything() == {DEBIAN_FILE}
        (found,) = present(node.ctx)
        assert found.record is not None
        assert found.record.default_user == "debian"


def test_image_server(node: Node) -> None:
    root = lzma.compress(ROOT)
    with serving(image_server(root, DISK)) as site:
        configure(node, simplestreams=site.url)
        found = {(each.alias, each.kind): each for each in entries(node.ctx) if each.source.name == "simplestreams"}
        assert set(found) == {("debian-bookworm", "container"), ("debian-bookworm", "machine")}
        container, volume = (found["debian-bookworm", kind].volume for kind in KINDS)
        for kind, name, data in (("container", container, root), ("machine", volume, DISK)):
            node.run(pull("debian-bookworm", kind, volume=name))
            assert node.ctx.storages.get("local").path(name).read_bytes() == data
        before = len(site.seen)
        node.run(pull("debian-bookworm", "machine", volume=volume))
        assert len(site.seen) - before <= 4  # the lists, and no image
    assert len(node.everything()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: images.update(products=[]), "catalogue has no image"),
        (lambda images: _item(images).update(path="../../etc/shadow"), "catalogue has no image"),
        (lambda images: _item(images).update(path="//evil.example/x"), "catalogue has no image"),
        (lambda images: _item(images).update(sha256="0" * 64), "checksum mismatch"),
        (lambda images: _item(images).update(size=3), "bytes"),
        (lambda images: _item(images).pop("size"), "catalogue has no image"),
    ],
)
def test_image_servers_that_lie(node: Node, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    root = lzma.compress(ROOT)
    pages = image_server(root, DISK)
    with serving(pages) as site:
        images = json.loads(fetch.ask(f"{site.url}/streams/v1/images.json", verify=True, limit=1 << 20).body)
        images["products"]["debian:bookworm:amd64:default"]["versions"].pop("20250101_05:24")
        change(images)
        site.pages["/streams/v1/images.json"] = page(json.dumps(images).encode())
        configure(node, simplestreams=site.url)
        operation = pull("debian-bookworm", volume="vztmpl/debian-bookworm_amd64.tar.xz")
        with pytest.raises(Failure if "catalogue" not in words else (Failure, NotFound), match=words):
            node.run(operation)
    assert node.everything() == set()


def _item(images: dict[str, Any]) -> dict[str, Any]:
    product = images["products"]["debian:bookworm:amd64:default"]
    found: dict[str, Any] = product["versions"]["20261120_05:24"]["items"]["root.tar.xz"]
    return found


# --- what goes wrong


def stall(request: http.server.BaseHTTPRequestHandler) -> None:
    """Begins well, and then says nothing more."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(ALPINE_DATA)))
    request.end_headers()
    request.wfile.write(ALPINE_DATA[:1000])
    request.wfile.flush()
    time.sleep(3)


def cut(request: http.server.BaseHTTPRequestHandler) -> None:
    """Ends in the middle."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(ALPINE_DATA)))
    request.end_headers()
    request.wfile.write(ALPINE_DATA[:1000])


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    """Sends more than it may."""
    request.send_response(200)
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(bytes(1 << 16))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (stall, "no data came in time"),
        (cut, "unable to download|broke off"),
        (endless, "sends more than"),
        (page(ALPINE_DATA[:-1] + b"x"), "checksum mismatch"),
        (page(ALPINE_DATA + b"x"), "bytes for the root archive"),
        (page(status=404), "answered 404"),
        (redirect("file:///etc/shadow"), "not an http or https|unable to download"),
        (redirect("http://169.254.169.254/latest/meta-data"), "nothing is downloaded"),
    ],
)
def test_mirrors_that_fail(node: Node, answer: Answer, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.5)
    with serving({**alpine_pages(), f"{ALPINE_BASE}/{ALPINE}": answer}) as site:
        mirror_all(node, site.url)
        with pytest.raises(Failure, match=words):
            node.run(pull())
    assert node.everything() == set()
    assert present(node.ctx) == []


def test_an_index_that_never_ends(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({f"{ALPINE_BASE}/latest-releases.yaml": endless}) as site:
        mirror_all(node, site.url)
        with pytest.raises(Failure, match="larger than"):
            node.run(pull())

    def trickle(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(40):
            request.wfile.write(b"#\n")
            request.wfile.flush()
            time.sleep(0.1)

    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 1.0)
    with serving({f"{ALPINE_BASE}/latest-releases.yaml": trickle}) as site:
        mirror_all(node, site.url)
        with pytest.raises(Failure, match="did not come within 1 seconds"):
            node.run(pull())
    assert node.everything() == set()


def test_what_is_there_outlives_a_failure(node: Node) -> None:
    with serving(debian_pages(DISK)) as site:
        mirror_all(node, site.url)
        node.run(pull("debian-12", "machine"))
        site.pages |= debian_pages(DISK + b"x", f"{'0' * 128}  debian-12-genericcloud-amd64.qcow2".encode())
        with pytest.raises(Failure, match="checksum mismatch"):
            node.run(pull("debian-12", "machine"))
    assert (node.root / DEBIAN_FILE).read_bytes() == DISK
    assert present(node.ctx)[0].record is not None


def test_an_image_that_is_none(node: Node) -> None:
    with serving(debian_pages(b"<!doctype html><title>Sorry</title>")) as site:
        mirror_all(node, site.url)
        with pytest.raises(Failure, match="a web page"):
            node.run(pull("debian-12", "machine"))
    assert node.everything() == set()
    assert present(node.ctx) == []


def test_space_runs_out_in_the_middle(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 40])
    monkeypatch.setattr(DirectoryStorage, "usage", lambda self: Usage(1 << 40, 0, next(free, 1 << 20)))
    monkeypatch.setattr(usage, "RESERVE", 1 << 21)
    data = bytes(80 << 20)
    with serving(alpine_pages(data, data)) as site:
        mirror_all(node, site.url)
        with pytest.raises(NoSpace, match="storage 'local'"):
            node.run(pull())
    assert node.everything() == set()


def test_cancel(node: Node) -> None:
    with serving(alpine_pages()) as site:
        mirror_all(node, site.url)
        with pytest.raises(Cancelled):
            node.run(pull(), stop=True)
    assert node.everything() == set()


def test_files_of_others_are_not_replaced_unasked(node: Node) -> None:
    (node.root / ALPINE_FILE).write_bytes(b"mine")
    with serving(alpine_pages()) as site:
        mirror_all(node, site.url)
        with pytest.raises(AlreadyExists, match="did not come from the catalogue"):
            node.run(pull())
        assert (node.root / ALPINE_FILE).read_bytes() == b"mine"
        node.run(pull(force=True))
        assert (node.root / ALPINE_FILE).read_bytes() == ALPINE_DATA
        (node.root / ALPINE_FILE).write_bytes(b"mine again")
        assert present(node.ctx)[0].record is None
        with pytest.raises(AlreadyExists, match="did not come from the catalogue"):
            node.run(pull())


def test_remove(node: Node) -> None:
    with serving(alpine_pages()) as site:
        mirror_all(node, site.url)
        node.run(pull())
    node.run(RemoveImage("local:vztmpl/alpine-3.22_amd64.tar.gz"))
    assert node.everything() == set()
    assert node.store.get("/images/local:vztmpl/alpine-3.22_amd64.tar.gz") is None
    with pytest.raises(NotFound):
        node.run(RemoveImage("local:vztmpl/alpine-3.22_amd64.tar.gz"))
    with pytest.raises(Failure, match="neither"):
        node.run(RemoveImage("local:iso/x.iso"))


def test_a_build_that_fails_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(what: Any, folder: Any, target: Any, log: Any, tick: Any) -> None:
        (folder / "half").write_text("x")
        target.write_bytes(b"half")
        raise Failure("mmdebstrap failed: E: no mirror")

    monkeypatch.setattr(debootstrap, "build", build)
    monkeypatch.setattr(debootstrap, "require_programs", lambda source: None)
    with pytest.raises(Failure, match="no mirror"):
        node.run(pull("debian-12"))
    assert node.everything() == set()
    assert list((node.ctx.paths.lib / "build").iterdir()) == []
