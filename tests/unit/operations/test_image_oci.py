# SPDX-License-Identifier: AGPL-3.0-or-later
"""OCI images from a registry that speaks the protocol, and from archives: verified, flattened, and remembered."""

import gzip
import http.server
import json
import subprocess
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.drivers.images.imagesite import OciImage, entry, folder, sha256, tar
from tests.unit.drivers.storage.test_fetch import Answer, Site, page, redirect, serving
from tests.unit.operations.test_image_pull import configure
from tests.unit.operations.test_volume import Node, node

from orrery.drivers.images.registry import Registry
from orrery.errors import AlreadyExists, Failure, NotFound, NotSupported
from orrery.model.images import Reference
from orrery.operations.image_oci import OciImport, OciPull
from orrery.operations.image_records import oci_options, present
from orrery.operations.image_workshop import Web

__all__ = ["node"]

BASE = tar(folder("etc"), entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n"), entry("etc/old", b"x"))
UPPER = tar(entry("etc/.wh.old"), entry("app", b"binary", mode=0o755))
RUN = {
    "Entrypoint": ["/app"],
    "Cmd": ["--listen", "a b"],
    "Env": ["PATH=/bin:/usr/bin", "GREETING=hello world"],
    "WorkingDir": "/srv",
    "User": "www",
}
VOLUME = "vztmpl/app_1.tar"
FILE = "template/cache/app_1.tar"


def host(site: Site) -> str:
    return site.url.removeprefix("http://")


def pull(node: Node, site: Site, name: str = "team/app:1") -> OciPull:
    configure(node, insecure_registries=host(site))
    return OciPull("local", f"{host(site)}/{name}", VOLUME)


def members(node: Node, file: str = FILE) -> dict[str, bytes | None]:
    with tarfile.open(node.root / file, "r:") as archive:
        return {
            member.name: (stream.read() if (stream := archive.extractfile(member)) else None)
            for member in archive.getmembers()
        }


def test_pull(node: Node) -> None:
    image = OciImage(BASE, UPPER, run=RUN)
    with serving(image.pages("team/app", "1")) as site:
        node.run(pull(node, site))
        assert members(node) == {
            ".": None,
            "app": b"binary",
            "etc": None,
            "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
        }
        assert node.everything() == {FILE}
        before = len(site.seen)
        node.run(pull(node, site))
        assert len(site.seen) - before == 3  # index, manifest and configuration, and no layer
    (found,) = present(node.ctx)
    assert found.record is not None
    assert found.record.mark == image.manifest_digest
    assert found.record.oci["workdir"] == "/srv"
    assert oci_options(node.ctx, f"local:{VOLUME}") == {
        "entrypoint": "/app --listen 'a b'",
        "env": "PATH=/bin:/usr/bin\0GREETING=hello world",
    }


def with_token(pages: dict[str, Answer], url: str) -> dict[str, Answer]:
    """Pages that are shown to bearers of a token only."""

    def guarded(answer: Answer) -> Answer:
        def ask(request: http.server.BaseHTTPRequestHandler) -> None:
            if request.headers.get("authorization") == "Bearer s3cret":
                return answer(request)
            challenge = f'Bearer realm="{url}/token",service="registry.example",scope="repository:x:pull"'
            return page(status=401, WWW_Authenticate=challenge)(request)

        return ask

    query = "scope=repository%3Ateam%2Fapp%3Apull&service=registry.example"
    token = {f"/token?{query}": page(json.dumps({"token": "s3cret"}).encode())}
    return {path: guarded(answer) for path, answer in pages.items()} | token


def test_a_registry_that_wants_a_token(node: Node) -> None:
    with serving({}) as site:
        site.pages = with_token(OciImage(BASE).pages("team/app", "1"), site.url)
        task = node.run(pull(node, site))
    assert "etc/passwd" in members(node)
    assert "s3cret" not in "\n".join(task.lines)


def test_the_token_stays_with_the_registry(node: Node) -> None:
    """Registries send to other servers for layers; these get no token of theirs."""
    image = OciImage(BASE)
    digest = image.manifest["layers"][0]["digest"]
    with serving({"/layer": page(image.blobs[digest])}) as store, serving({}) as site:
        pages = image.pages("team/app", "1") | {f"/v2/team/app/blobs/{digest}": redirect(f"{store.url}/layer")}
        site.pages = with_token(pages, site.url)
        node.run(pull(node, site))
        ((_, headers),) = store.seen
    assert "authorization" not in headers
    assert "etc/passwd" in members(node)


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ("Basic realm=x", "wants a login"),
        ('Bearer realm="ftp://x/"', "wants a login"),
        ('Bearer realm="http://169.254.169.254/token"', "nothing is downloaded"),
        ("", "wants a login"),
    ],
)
def test_challenges_that_are_refused(node: Node, challenge: str, words: str) -> None:
    with (
        serving({"/v2/team/app/manifests/1": page(status=401, WWW_Authenticate=challenge)}) as site,
        pytest.raises(Failure, match=words),
    ):
        node.run(pull(node, site))


def swapped(image: OciImage, digest: str, data: bytes) -> OciImage:
    image.blobs[digest] = data
    return image


def _manifest_of(change: Callable[[dict[str, Any]], Any]) -> OciImage:
    image = OciImage(BASE, UPPER)
    change(image.manifest)
    image.seal()
    return image


def _swap_layer() -> OciImage:
    image = OciImage(BASE)
    digest = image.manifest["layers"][0]["digest"]
    forged = bytearray(image.blobs[digest])
    forged[-1] ^= 1
    return swapped(image, digest, bytes(forged))


def _swap_content() -> OciImage:
    """A layer whose packed bytes are as the manifest says, but not what the configuration says is in it."""
    image = OciImage(BASE)
    image.manifest["layers"][0] |= image._add(gzip.compress(UPPER))
    image.seal()
    return image


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (_swap_layer(), "checksum mismatch"),
        (_swap_content(), "checksum mismatch"),
        (swapped(i := OciImage(BASE), i.config["digest"], b"{}"), "checksum mismatch of the image's configuration"),
        (swapped(i := OciImage(BASE), i.manifest_digest, b"{}"), "checksum mismatch of the manifest"),
        (OciImage(BASE, architecture="arm64"), "does not exist for linux/amd64"),
        (_manifest_of(lambda m: m["layers"].pop()), "different layers"),
        (_manifest_of(lambda m: m["layers"][0].update(mediaType="application/x-foreign")), "x-foreign"),
        (_manifest_of(lambda m: m["layers"][0].update(size=-1)), "size of a layer"),
        (_manifest_of(lambda m: m["layers"][0].update(digest="md5:" + "0" * 32)), "could forge"),
        (_manifest_of(lambda m: m["layers"][0].update(digest="../../x")), "is not a checksum"),
        (_manifest_of(lambda m: m.update(schemaVersion=1)), "not supported"),
        (OciImage(tar(entry("../../etc/passwd", b"x"))), "refused"),
    ],
)
def test_images_that_lie(node: Node, image: OciImage, words: str) -> None:
    with (
        serving(image.pages("team/app", "1")) as site,
        pytest.raises((Failure, NotFound, NotSupported), match=words),
    ):
        node.run(pull(node, site))
    assert node.everything() == set()


def test_what_does_not_exist(node: Node) -> None:
    with (
        serving({"/v2/team/app/manifests/1": page(status=404)}) as site,
        pytest.raises(NotFound, match="does not exist"),
    ):
        node.run(pull(node, site))


def test_http_is_spoken_to_named_registries_only(node: Node) -> None:
    with serving(OciImage(BASE).pages("team/app", "1")) as site:
        operation = pull(node, site)
        configure(node)
        with pytest.raises(Failure, match="unable to download"):
            node.run(operation)


def test_tags_with_pages(node: Node) -> None:
    with serving({}) as site:
        more = '</v2/team/app/tags/list?n=1000&last=b>; rel="next"'
        site.pages = {
            "/v2/team/app/tags/list?n=1000": page(json.dumps({"tags": ["a", "b", 7, "no/tag"]}).encode(), Link=more),
            "/v2/team/app/tags/list?n=1000&last=b": page(json.dumps({"tags": ["c"]}).encode()),
        }
        configure(node, insecure_registries=host(site))
        web = Web(node.store)
        registry = Registry(web, Reference.parse(f"{host(site)}/team/app"), web.sources.insecure)
        assert registry.tags() == ["a", "b", "c"]
        site.pages["/v2/team/app/tags/list?n=1000"] = page(b"{}", Link='<http://evil.example/x>; rel="next"')
        with pytest.raises(Failure, match="another server"):
            registry.tags()


def test_files_of_others_are_not_replaced(node: Node) -> None:
    (node.root / FILE).write_bytes(b"mine")
    with serving(OciImage(BASE).pages("team/app", "1")) as site, pytest.raises(AlreadyExists, match="refusing"):
        node.run(pull(node, site))


def test_images_of_others_are_not_replaced(node: Node) -> None:
    """`nginx:1` of two registries has one file name: who asks for the second must not get, or lose, the first."""
    pages = OciImage(BASE).pages("team/app", "1") | OciImage(UPPER).pages("other/app", "1")
    with serving(pages) as site:
        node.run(pull(node, site))
        before = members(node)
        with pytest.raises(AlreadyExists, match=r"team/app:1': choose another file name for '.*other/app:1'"):
            node.run(pull(node, site, "other/app:1"))
        assert members(node) == before
        site.pages |= OciImage(UPPER).pages("team/app", "2")
        node.run(pull(node, site, "team/app:2"))
    assert members(node) != before


def test_archives(node: Node) -> None:
    image = OciImage(BASE, UPPER, run=RUN)
    (node.root / "template/cache/up.tar").write_bytes(image.archive())
    node.run(OciImport("local", "local:vztmpl/up.tar", VOLUME))
    assert set(members(node)) == {".", "app", "etc", "etc/passwd"}
    assert oci_options(node.ctx, f"local:{VOLUME}")["entrypoint"].startswith("/app")
    assert oci_options(node.ctx, "local:vztmpl/up.tar") == {}
    (node.root / "template/cache/no.tar").write_bytes(BASE)
    with pytest.raises(Failure, match="no OCI archive"):
        node.run(OciImport("local", "local:vztmpl/no.tar", "vztmpl/y.tar"))
    assert len(node.everything()) == 3


def test_zstd_layers(node: Node) -> None:
    image = OciImage(BASE)
    packed = subprocess.run(["zstd", "-qc"], input=BASE, capture_output=True, check=True).stdout
    kind = "application/vnd.oci.image.layer.v1.tar+zstd"
    image.blobs[sha256(packed)] = packed
    image.manifest["layers"] = [{"mediaType": kind, "digest": sha256(packed), "size": len(packed)}]
    image.seal()
    with serving(image.pages("team/app", "1")) as site:
        node.run(pull(node, site))
    assert "etc/passwd" in members(node)


def test_an_archive_does_not_decide_how_much_memory_is_read_into(node: Node) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    file = node.root / "template/cache/large.tar"
    file.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    with pytest.raises(Failure, match="larger than 1 MiB"):
        node.run(OciImport("local", "local:vztmpl/large.tar", VOLUME))
    assert not (node.root / FILE).exists()
