# SPDX-License-Identifier: AGPL-3.0-or-later
"""OCI images, from a registry or from an archive, made into one root archive and what the image says of its start.

An archive is a tar file with an image layout (`oci-layout`, `index.json`, `blobs/sha256/…`; OCI Image Specification,
image-layout.md), as skopeo, podman and newer versions of Docker write it.
"""

import hashlib
import tarfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from orrery.drivers.images.base import IMAGE, Digest, Fetched, Workshop, parse_json
from orrery.drivers.images.layers import MAX_LAYERS, Tree, forget, watched
from orrery.drivers.images.registry import INDEXES, MANIFESTS, Registry
from orrery.errors import Failure, NotFound, NotSupported
from orrery.model.images import ARCHITECTURE, Reference

_COMPRESSIONS: Final[Mapping[str, str]] = {
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gz",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zst",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gz",
    "application/vnd.docker.image.rootfs.diff.tar": "",
}
_HASH_CHUNK: Final = 4 << 20
_MANIFEST_BYTES: Final = 4 << 20
_CONFIG_WORDS: Final = {"Entrypoint": "entrypoint", "Cmd": "cmd", "Env": "env"}


class Source(Protocol):
    """Where manifests and blobs come from; what has a digest is verified by it."""

    def manifest(self, which: str) -> tuple[dict[str, Any], bytes]: ...

    def config(self, digest: Digest) -> bytes: ...

    def blob(self, digest: Digest, size: int, what: str) -> Path: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as the manifest names it: packed size in bytes, and the digest of what is in it."""

    digest: Digest
    size: int
    compression: str
    content: Digest


@dataclass(frozen=True, slots=True)
class Image:
    """What has to be fetched for one architecture."""

    digest: str
    layers: tuple[Layer, ...]
    run: Mapping[str, Any]


def resolve(source: Source, which: str) -> Image:
    """The image of this architecture, by a tag or digest. Raises NotFound, NotSupported, Failure."""
    manifest, data = source.manifest(which)
    if manifest.get("mediaType", "") in INDEXES or "manifests" in manifest:
        which = str(_choose(manifest))
        manifest, data = source.manifest(which)
    if manifest.get("mediaType", MANIFESTS[0]) not in MANIFESTS or manifest.get("schemaVersion") != 2:
        raise NotSupported("the image's manifest has a format that is not supported")
    described = manifest.get("config")
    config = parse_json(source.config(_digest(described)), "the image's configuration")
    if config.get("architecture") not in (None, ARCHITECTURE) or config.get("os") not in (None, "linux"):
        raise NotFound(
            f"the image is for {config.get('os')}/{config.get('architecture')}, not for linux/{ARCHITECTURE}"
        )
    return Image(f"sha256:{hashlib.sha256(data).hexdigest()}", _layers(manifest, config), run_config(config))


def _choose(index: dict[str, Any]) -> Digest:
    listed = index.get("manifests")
    for each in listed if isinstance(listed, list) else ():
        platform = each.get("platform") if isinstance(each, dict) else None
        if isinstance(platform, dict) and (platform.get("os"), platform.get("architecture")) == ("linux", ARCHITECTURE):
            return _digest(each)
    single = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if len(single) == 1 and "platform" not in single[0]:
        return _digest(single[0])
    raise NotFound(f"the image does not exist for linux/{ARCHITECTURE}")


def _digest(described: Any) -> Digest:
    digest = Digest.of_text(str(described.get("digest")) if isinstance(described, dict) else "")
    if digest.algorithm not in ("sha256", "sha512"):
        raise Failure(f"the image names something by {digest.algorithm}, which anybody could forge")
    return digest


def _layers(manifest: dict[str, Any], config: dict[str, Any]) -> tuple[Layer, ...]:
    described, rootfs = manifest.get("layers"), config.get("rootfs")
    contents = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(described, list) or not isinstance(contents, list) or len(described) != len(contents):
        raise Failure("the image's manifest and configuration name different layers")
    if not 0 < len(described) <= MAX_LAYERS:
        raise Failure(f"the image has {len(described)} layers; 1 to {MAX_LAYERS} are supported")
    found = []
    for each, content in zip(described, contents, strict=True):
        kind, size = str(each.get("mediaType")) if isinstance(each, dict) else "", each.get("size")
        if kind not in _COMPRESSIONS:
            raise NotSupported(f"a layer of the image has the type '{kind[:100]}', which is not supported")
        if not isinstance(size, int) or not 0 < size <= IMAGE:
            raise Failure("the image's manifest does not tell the size of a layer")
        found.append(Layer(_digest(each), size, _COMPRESSIONS[kind], Digest.of_text(str(content))))
    return tuple(found)


def run_config(config: dict[str, Any]) -> dict[str, Any]:
    """How the image wants to be run: `entrypoint`, `cmd`, `env` (lists of texts), `workdir`, `user`."""
    section = config.get("config")
    if not isinstance(section, dict):
        return {}
    found: dict[str, Any] = {}
    for theirs, ours in _CONFIG_WORDS.items():
        words = section.get(theirs)
        if isinstance(words, list) and words and all(isinstance(word, str) and "\0" not in word for word in words):
            found[ours] = words
    for theirs, ours in (("WorkingDir", "workdir"), ("User", "user")):
        if isinstance(text := section.get(theirs), str) and text:
            found[ours] = text
    return found


def fetch(workshop: Workshop, source: Source, image: Image, origin: str) -> Fetched:
    """The image as one root archive. Raises NoSpace, Failure."""
    workshop.room(sum(layer.size for layer in image.layers))
    tree, files = Tree(), []
    for number, layer in enumerate(image.layers):
        what = f"layer {number + 1} of {len(image.layers)}"
        packed = source.blob(layer.digest, layer.size, what)
        file = workshop.unpacked(packed, layer.compression) if layer.compression else packed
        if file != packed:
            workshop.discard(packed)
        _verify(file, layer.content, what)
        tree.apply(number, file)
        files.append(file)
        workshop.log(f"{what}: {layer.digest}")
    total = sum(file.stat().st_size for file in files)
    workshop.room(total)
    target = workshop.blank()
    tree.write(files, target, _meter(workshop, total))
    for file in files:
        workshop.discard(file)
    return Fetched(target, "tar", image.digest, origin, image.run)


def _meter(workshop: Workshop, total: int) -> Callable[[int], None]:
    done = 0

    def tick(written: int) -> None:
        nonlocal done
        done += written
        workshop.progress(min(done, total), total, "flatten")

    return tick


def _verify(file: Path, digest: Digest, what: str) -> None:
    computed = hashlib.new(digest.algorithm, usedforsecurity=False)
    with file.open("rb") as stream:
        while piece := stream.read(_HASH_CHUNK):
            computed.update(piece)
    if computed.hexdigest() != digest.value:
        raise Failure(f"{what} is not what the image's configuration says: checksum mismatch ({digest.algorithm})")


def pull(workshop: Workshop, reference: Reference, insecure: Collection[str] = ()) -> Fetched:
    """An image from a registry. Raises NotFound, NotSupported, Failure."""
    registry = Registry(workshop, reference, insecure)
    image = resolve(registry, reference.tag)
    workshop.log(f"{reference} is {image.digest}, {len(image.layers)} layers")
    return fetch(workshop, registry, image, str(reference))


# --- archives


@dataclass
class Archive:
    """An image layout in a tar file. Members are read where they lie; none is unpacked."""

    workshop: Workshop
    file: Path
    members: dict[str, tuple[int, int]]

    @classmethod
    def open(cls, workshop: Workshop, file: Path) -> "Archive | None":
        """The archive; None for a tar file that is no image layout."""
        members: dict[str, tuple[int, int]] = {}
        try:
            with file.open("rb") as stream, tarfile.open(fileobj=watched(stream), mode="r:", errorlevel=2) as archive:
                for member in archive:
                    forget(archive)
                    if member.isreg() and member.sparse is None and len(members) < 4 * MAX_LAYERS:
                        members[member.name.removeprefix("./")] = (member.offset_data, member.size)
        except (tarfile.TarError, ValueError, OverflowError):
            return None
        return cls(workshop, file, members) if "oci-layout" in members and "index.json" in members else None

    def manifest(self, which: str) -> tuple[dict[str, Any], bytes]:
        """A manifest by its digest; `index.json` for anything else."""
        data = self._read(_blob(Digest.of_text(which)) if which.startswith("sha") else "index.json")
        if which.startswith("sha"):
            Digest.of_text(which).check(data, "the manifest")
        return parse_json(data, "the manifest"), data

    def config(self, digest: Digest) -> bytes:
        data = self._read(_blob(digest))
        digest.check(data, "the image's configuration")
        return data

    def blob(self, digest: Digest, size: int, what: str) -> Path:
        """A private file with a layer, verified."""
        offset, length = self._member(_blob(digest))
        if length != size:
            raise Failure(f"{what} has {length} bytes instead of {size}")
        target = self.workshop.blank()
        with self.file.open("rb") as source, target.open("wb") as stream:
            source.seek(offset)
            while length and (piece := source.read(min(length, _HASH_CHUNK))):
                stream.write(piece)
                length -= len(piece)
        _verify(target, digest, what)
        return target

    def _member(self, name: str) -> tuple[int, int]:
        if name not in self.members:
            raise Failure(f"the archive has no '{name}'")
        return self.members[name]

    def _read(self, name: str) -> bytes:
        offset, size = self._member(name)
        if size > _MANIFEST_BYTES:
            raise Failure(f"'{name}' in the archive is too large")
        with self.file.open("rb") as source:
            source.seek(offset)
            return source.read(size)


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.value}"
