# SPDX-License-Identifier: AGPL-3.0-or-later
"""Image servers that speak simplestreams, as those of LXC, Incus and LXD do.

`streams/v1/index.json` (format `index:1.0`) names lists of products (`products:1.0`); a product has versions, whose
names sort by age, and a version has items: `root.tar.xz` or a `squashfs` for containers, `disk-kvm.img` (a qcow2 image)
for machines, each with its path below the server, size and SHA-256.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from orrery.drivers.images.base import IMAGE, INDEX, Digest, Fetched, Workshop, parse_json, read
from orrery.errors import Failure, NotFound, NotSupported, OrreryError
from orrery.model.images import ARCHITECTURE, ImageEntry, Kind, Stream

_CONTAINER_ITEMS: Final = {"root.tar.xz": "tar.xz", "root.tar.gz": "tar.gz", "root.tar.zst": "tar.zst"}
_MACHINE_ITEMS: Final = {"disk-kvm.img": "qcow2", "disk1.img": "qcow2"}
_MAX_LISTS: Final = 8
_PATH = re.compile(r"[A-Za-z0-9_.:+~@%-]+(?:/[A-Za-z0-9_.:+~@%-]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_DEFAULT_VARIANTS: Final = ("default", "cloud")


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a product's newest version."""

    url: str
    digest: Digest
    size: int
    ending: str
    version: str


def entries(workshop: Workshop, server: str) -> list[ImageEntry]:
    """What a server offers for this architecture. Raises Failure."""
    found = []
    for name, product in products(workshop, server).items():
        for kind in _kinds(product):
            entry = _entry(server, name, product, kind)
            if entry is not None:
                found.append(entry)
    return found


def products(workshop: Workshop, server: str) -> dict[str, dict[str, Any]]:
    """The products of a server by name. Raises Failure for answers that are none of an image server's."""
    index = parse_json(read(workshop, f"{server}/streams/v1/index.json", limit=INDEX), "the server's index")
    lists = index.get("index")
    if index.get("format") != "index:1.0" or not isinstance(lists, dict):
        raise Failure(f"'{server}' is no image server: its index has another format")
    found: dict[str, dict[str, Any]] = {}
    for _, each in sorted(lists.items())[:_MAX_LISTS]:
        if isinstance(each, dict) and each.get("datatype") == "image-downloads":
            url = f"{server}/{_path(each.get('path'))}"
            listed = parse_json(read(workshop, url, limit=INDEX), "the server's list of products")
            content = listed.get("products")
            for name, product in (content if isinstance(content, dict) else {}).items():
                if isinstance(product, dict) and product.get("arch") == ARCHITECTURE:
                    found.setdefault(str(name), product)
    return found


def newest(product: dict[str, Any], server: str, kind: Kind) -> Item:
    """The file that a guest of this kind is made from. Raises NotFound, or NotSupported for a squashfs alone."""
    squashed = False
    for version, items in _versions(product):
        endings = _CONTAINER_ITEMS if kind == "container" else _MACHINE_ITEMS
        for item in items:
            kind_of_file = str(item.get("ftype", ""))
            squashed = squashed or (kind == "container" and kind_of_file == "squashfs")
            if kind_of_file in endings:
                return _item(item, server, endings[kind_of_file], version)
    if squashed:
        raise NotSupported(
            "the image server has this image as squashfs only, which is not supported; it needs root.tar.xz"
        )
    raise NotFound(f"the image server has no such image for a {kind}")


def find(workshop: Workshop, source: Stream, kind: Kind) -> Item:
    """The newest file of a product. Raises NotFound, Failure."""
    product = products(workshop, source.server).get(source.product)
    if product is None:
        raise NotFound(f"image server '{source.server}' has no product '{source.product}' any more")
    return newest(product, source.server, kind)


def fetch(workshop: Workshop, item: Item) -> Fetched:
    """The image. Raises Failure."""
    file = workshop.download(item.url, item.digest, size=item.size, what="image")
    return Fetched(file, item.ending, item.version, item.url)


def _versions(product: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Versions with their items, the newest first."""
    versions: Any = product.get("versions")
    if not isinstance(versions, dict):
        return
    for name in sorted(versions, reverse=True):
        items = versions[name].get("items") if isinstance(versions[name], dict) else None
        if isinstance(items, dict):
            yield str(name), [item for _, item in sorted(items.items()) if isinstance(item, dict)]


def _item(item: dict[str, Any], server: str, ending: str, version: str) -> Item:
    size = item.get("size")
    if not isinstance(size, int) or not 0 < size <= IMAGE:
        raise Failure("the image server does not tell the size of the image")
    return Item(
        f"{server}/{_path(item.get('path'))}", Digest.of_text(f"sha256:{item.get('sha256')}"), size, ending, version
    )


def _path(value: Any) -> str:
    """A path below the server. Raises Failure for what could be something else."""
    text = str(value)
    if not _PATH.fullmatch(text) or any(part in (".", "..") for part in text.split("/")):
        raise Failure(f"the image server names the path '{text[:100]}', which is none")
    return text


def _kinds(product: dict[str, Any]) -> list[Kind]:
    files = {str(item.get("ftype", "")) for _, items in _versions(product) for item in items}
    found: list[Kind] = []
    if files & {*_CONTAINER_ITEMS}:
        found.append("container")
    if files & {*_MACHINE_ITEMS}:
        found.append("machine")
    return found


def _entry(server: str, name: str, product: dict[str, Any], kind: Kind) -> ImageEntry | None:
    """A product as an entry of the catalogue; None when its words cannot be parts of a file's name."""
    system, release = str(product.get("os", "")).lower(), str(product.get("release", "")).lower()
    number, variant = str(product.get("release_title", "")).lower(), str(product.get("variant", "default"))
    alias = f"{system}-{release}" + ("" if variant == "default" else f"-{variant}")
    if not _NAME.fullmatch(alias):
        return None
    suffix = "" if variant in _DEFAULT_VARIANTS[:1] else f"-{variant}"
    also = (f"{system}-{number}{suffix}",) if _NAME.fullmatch(number) and number != release else ()
    title = " ".join(filter(None, (str(product.get("os", "")), release, variant)))[:100]
    try:
        ending = newest(product, server, kind).ending
    except OrreryError:
        return None  # a product that is told of badly keeps nobody from the others
    user = system if kind == "machine" and variant == "cloud" else ""
    memory, disk = (512, 4) if kind == "container" else (1024, 10)
    source = Stream(server, name)
    return ImageEntry(f"{alias}", kind, system, release, title, source, ending, user, also, memory, disk)
