# SPDX-License-Identifier: AGPL-3.0-or-later
"""The layers of an OCI image flattened into one archive, without unpacking them (OCI Image Specification, layer.md).

Each layer is read as a list of entries that change a tree in memory; the tree then is written as one archive, with the
data of each file copied out of the layer that had it last. So nothing that a layer says reaches a file system: a path
is resolved within the tree, symbolic links in between included, as if it were a root.

`.wh.NAME` removes NAME that a lower layer had, `.wh..wh..opq` all that lower layers had in its folder.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, cast

from orrery.errors import Failure

MAX_LAYERS: Final = 256
MAX_ENTRIES: Final = 1_000_000
MAX_TEXT: Final = 256 << 20
"""Bytes of names and attributes that all files of an image have together; they are held in memory."""
_METADATA: Final = 1 << 20
_CHUNK: Final = 4 << 20
_LINKS: Final = 40
_NAME_MAX: Final = 255
_PATH_MAX: Final = 4096
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_KEPT_HEADERS: Final = "SCHILY.xattr."

Tick = Callable[[int], None]
"""Called with the bytes that were just written; may raise."""


@dataclass(slots=True)
class Node:
    """A file of the tree; several names may lead to one (hard links). `children` is None for all but folders.

    `layer` and `offset` say where the data of a plain file lies.
    """

    info: tarfile.TarInfo
    layer: int = 0
    offset: int = 0
    children: dict[str, "Node"] | None = None


class Tree:
    """What the layers so far make up."""

    def __init__(self) -> None:
        self.root = _folder()
        self._entries = 0
        self._text = 0

    def apply(self, layer: int, file: Path) -> None:
        """Changes the tree by a layer, a plain tar archive. Raises Failure for one that is none or hostile."""
        try:
            with file.open("rb") as stream:
                for parts in _names(stream):
                    if parts[-1].startswith(_WHITEOUT):
                        self._white_out(parts)
                stream.seek(0)
                with tarfile.open(fileobj=watched(stream), mode="r:", errorlevel=2) as archive:
                    for member in archive:
                        self._count(member)
                        self._take(layer, member)
                        forget(archive)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise Failure(f"layer {layer + 1} of the image is no tar archive, or a damaged one: {error}") from error

    def write(self, layers: list[Path], target: Path, tick: Tick) -> None:
        """Writes the tree as an archive. Raises OSError when the disk is full, Failure for a layer cut short."""
        opened: list[IO[bytes]] = [file.open("rb") for file in layers]
        try:
            with target.open("wb") as stream:
                _Writer(stream, opened, tick).write(self.root)
        finally:
            for file in opened:
                file.close()

    # --- changes

    def _count(self, member: tarfile.TarInfo) -> None:
        """Has an entry hold no more than is wanted. Raises Failure for too many, or when all hold too much."""
        kept = {key: value for key, value in member.pax_headers.items() if key.startswith(_KEPT_HEADERS)}
        member.pax_headers = kept
        self._entries += 1
        self._text += len(member.name) + len(member.linkname) + sum(len(key) + len(text) for key, text in kept.items())
        if self._entries > MAX_ENTRIES or self._text > MAX_TEXT:
            raise Failure(f"the image has more than {MAX_ENTRIES} files, or {MAX_TEXT >> 20} MiB of names alone")

    def _white_out(self, parts: tuple[str, ...]) -> None:
        folder = self._resolve(parts[:-1], make=False)
        if folder is None or folder.children is None:
            return
        if parts[-1] == _OPAQUE:
            folder.children.clear()
        else:
            folder.children.pop(parts[-1].removeprefix(_WHITEOUT), None)

    def _take(self, layer: int, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts:
            if member.isdir():
                self.root.info = member
            return
        if parts[-1].startswith(_WHITEOUT):
            return
        folder = self._resolve(parts[:-1], make=True)
        if folder is None or folder.children is None:
            raise Failure(f"the image has '{member.name[:200]}' below a file that is no folder")
        node = self._node(layer, member)
        if node is None:
            return
        before = folder.children.get(parts[-1])
        if before is not None and before.children is not None and node.children is not None:
            before.info = node.info  # a folder again: what is in it stays
        else:
            folder.children[parts[-1]] = node

    def _node(self, layer: int, member: tarfile.TarInfo) -> Node | None:
        if member.isdir():
            return Node(member, children={})
        if member.islnk():
            target = _parts(member.linkname)
            folder = self._resolve(target[:-1], make=False) if target else None
            found = (folder.children or {}).get(target[-1]) if folder is not None else None
            if found is None or found.children is not None:
                raise Failure(
                    f"the image has '{member.name[:200]}' as a link to '{member.linkname[:200]}', which is no file"
                )
            return found
        if member.sparse is not None:
            raise Failure(f"the image has '{member.name[:200]}' as a sparse file, which is not supported")
        if member.isreg():
            return Node(member, layer, member.offset_data)
        if member.issym() or member.ischr() or member.isblk() or member.isfifo():
            return Node(member)
        return None  # sockets and the like have no place in an archive

    def _resolve(self, parts: tuple[str, ...], *, make: bool) -> Node | None:
        """The folder that a path means within the tree; missing ones are made if asked, else None."""
        path: list[Node] = [self.root]
        rest = list(reversed(parts))
        links = 0
        while rest:
            part = rest.pop()
            if part == "..":
                path = path[:-1] or path
                continue
            children = path[-1].children
            assert children is not None  # noqa: S101  (only folders come onto the path)
            found = children.get(part)
            if found is None:
                if not make:
                    return None
                found = children[part] = _folder()
            if found.info.issym():
                links += 1
                if links > _LINKS:
                    raise Failure("the image has symbolic links that lead in circles")
                if found.info.linkname.startswith("/"):
                    path = path[:1]
                rest.extend(reversed([piece for piece in found.info.linkname.split("/") if piece not in ("", ".")]))
            elif found.children is None:
                return None
            else:
                path.append(found)
        return path[-1]


def forget(archive: tarfile.TarFile) -> None:
    """Has an archive that is read member by member not remember them all."""
    archive.members = []  # type: ignore[attr-defined]


def _folder() -> Node:
    info = tarfile.TarInfo()
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return Node(info, children={})


def _names(stream: IO[bytes]) -> Iterator[tuple[str, ...]]:
    with tarfile.open(fileobj=watched(stream), mode="r:", errorlevel=2) as archive:
        for member in archive:
            forget(archive)
            if parts := _parts(member.name):
                yield parts


def _parts(name: str) -> tuple[str, ...]:
    """The components of a path in an archive. Raises Failure for one that leads out of it."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if (
        ".." in parts
        or "\0" in name
        or len(name) > _PATH_MAX
        or any(len(part.encode("utf-8", "surrogateescape")) > _NAME_MAX for part in parts)
    ):
        raise Failure(f"the image has a file by the name '{name[:200]}', which is refused")
    return parts


def watched(stream: IO[bytes]) -> IO[bytes]:
    """A file as tarfile should read it: never much at a time. Reading raises Failure for absurdly large headers."""
    return cast(IO[bytes], _Watched(stream))


class _Watched:
    """A layer as tarfile reads it: never much at a time, since only names and the like are read in this way."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.name, self.mode = "layer", "rb"
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        """As a file. Raises Failure for a header that is absurdly large."""
        if not 0 <= size <= _METADATA:
            raise Failure("the image has a file whose name or attributes are larger than 1 MiB")
        return self._stream.read(size)


@dataclass
class _Writer:
    """Writes a tree in the pax format; a second name of a file becomes a hard link to the first."""

    stream: IO[bytes]
    layers: list[IO[bytes]]
    tick: Tick
    first: dict[int, str] = field(default_factory=dict)

    def write(self, root: Node) -> None:
        """The whole archive, from the root to the end mark."""
        self._entry(".", root)
        waiting = [(name, node) for name, node in sorted((root.children or {}).items(), reverse=True)]
        while waiting:
            name, node = waiting.pop()
            self._entry(name, node)
            children = sorted((node.children or {}).items(), reverse=True)
            waiting.extend((f"{name}/{child}", below) for child, below in children)
        self.stream.write(bytes(2 * tarfile.BLOCKSIZE))

    def _entry(self, name: str, node: Node) -> None:
        info = tarfile.TarInfo(name)
        before = node.info
        info.mode, info.uid, info.gid, info.mtime = before.mode & 0o7777, before.uid, before.gid, int(before.mtime)
        info.type, info.linkname = before.type, before.linkname
        info.devmajor, info.devminor = before.devmajor, before.devminor
        info.pax_headers = dict(before.pax_headers)
        linked = self.first.setdefault(id(node), name)
        if node.children is None and linked != name:
            info.type, info.linkname = tarfile.LNKTYPE, linked
        elif before.isreg():
            info.type, info.linkname, info.size = tarfile.REGTYPE, "", before.size
        self.stream.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if info.type == tarfile.REGTYPE and info.size:
            self._data(self.layers[node.layer], node.offset, info.size)
        self.tick(tarfile.BLOCKSIZE)

    def _data(self, layer: IO[bytes], offset: int, size: int) -> None:
        self.stream.flush()
        rest = size
        while rest:
            sent = os.sendfile(self.stream.fileno(), layer.fileno(), offset, min(rest, _CHUNK))
            if not sent:
                raise Failure("a layer of the image ends in the middle of a file")
            offset, rest = offset + sent, rest - sent
            self.tick(sent)
        self.stream.seek(0, os.SEEK_END)
        self.stream.write(bytes(-size % tarfile.BLOCKSIZE))
