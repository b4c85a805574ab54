# SPDX-License-Identifier: AGPL-3.0-or-later
"""The options of a `dir` storage as values that the driver works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Self

from orrery.errors import Failure
from orrery.model.properties import BWLIMIT
from orrery.model.volume import CONTENT_FOLDERS, CONTENT_TYPES

FORMATS = ("raw", "qcow2", "vmdk")
PREALLOCATIONS = ("off", "metadata", "falloc", "full")
DEFAULT_CONTENT = "images,rootdir"
_TRUE = ("1", "yes", "on", "true")
_FALSE = ("0", "no", "off", "false")


def flag(value: Any, default: bool) -> bool:
    """A boolean as a stored option has it: JSON's own, 1 and 0, or a word. Raises Failure."""
    if value is None:
        return default
    text = str(value).lower() if not isinstance(value, bool) else ("1" if value else "0")
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise Failure(f"'{value}' is not a boolean")


def content_set(options: Mapping[str, Any]) -> frozenset[str]:
    """The content types that a storage may hold. Raises Failure for unknown ones."""
    text = options.get("content") or DEFAULT_CONTENT
    names = [str(name) for name in text] if isinstance(text, list | tuple) else str(text).replace(",", " ").split()
    if unknown := sorted(set(names) - {*CONTENT_TYPES, "none"}):
        raise Failure(f"content type '{unknown[0]}' is not known")
    return frozenset(names) - {"none"}


def content_folders(text: str | None) -> Mapping[str, str]:
    """Folder per content type, from `content-dirs` (`iso=media/iso,backup=dumps`). Raises Failure.

    Every folder must lie below the storage, and no two types may share one.
    """
    folders = dict(CONTENT_FOLDERS)
    for item in (text or "").replace(",", " ").split():
        content, equals, folder = item.partition("=")
        parts = PurePosixPath(folder).parts
        if content not in CONTENT_FOLDERS or not equals:
            raise Failure(f"content-dirs: '{item}' is not TYPE=FOLDER with one of {', '.join(CONTENT_FOLDERS)}")
        if not parts or parts[0] == "/" or any(part.startswith(".") or not part.isprintable() for part in parts):
            raise Failure(f"content-dirs: '{folder}' is not a plain folder below the storage")
        folders[content] = "/".join(parts)
    taken: dict[str, str] = {}
    for content, folder in folders.items():
        if folder in taken:
            raise Failure(f"content-dirs: '{content}' and '{taken[folder]}' have the same folder '{folder}'")
        taken[folder] = content
    return MappingProxyType(folders)


@dataclass(frozen=True, slots=True)
class DirectoryOptions:
    """What the driver reads from a storage's configuration.

    `mountpoint`: a folder that must be a mount point before the storage may be used (so that a missing disk does not
    fill the root file system). `preallocation`: how much of a new image is reserved at once. `rate`: bytes per second
    for copies, None for no limit.
    """

    path: Path
    contents: frozenset[str]
    folders: Mapping[str, str]
    formats: tuple[str, ...]
    preallocation: str
    mountpoint: Path | None
    create_base: bool
    create_folders: bool
    shared: bool
    rate: int | None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Reads stored options. Raises Failure that names the option."""
        path = Path(str(options.get("path") or ""))
        if not path.is_absolute():
            raise Failure("path: the storage needs an absolute path")
        first = str(options.get("format") or "raw")
        if first not in FORMATS:
            raise Failure(f"format: '{first}' is not one of {', '.join(FORMATS)}")
        preallocation = str(options.get("preallocation") or "metadata")
        if preallocation not in PREALLOCATIONS:
            raise Failure(f"preallocation: '{preallocation}' is not one of {', '.join(PREALLOCATIONS)}")
        mkdir = flag(options.get("mkdir"), True)
        return cls(
            path=path,
            contents=content_set(options),
            folders=content_folders(options.get("content-dirs")),
            formats=(first, *(name for name in FORMATS if name != first)),
            preallocation=preallocation,
            mountpoint=_mountpoint(options.get("is_mountpoint"), path),
            create_base=flag(options.get("create-base-path"), mkdir),
            create_folders=flag(options.get("create-subdirs"), mkdir),
            shared=flag(options.get("shared"), False),
            rate=copy_rate(options.get("bwlimit")),
        )


def copy_rate(bwlimit: Any) -> int | None:
    """The limit for copies in bytes per second, from `bwlimit` in KiB/s (`move`, else `default`; 0 is none)."""
    if not bwlimit:
        return None
    try:
        parts = BWLIMIT.parse(str(bwlimit), "bwlimit")
    except ValueError as error:
        raise Failure(f"bwlimit: {error}") from error
    limit = float(parts.get("move", parts.get("default", 0)))
    return int(limit * 1024) or None


def _mountpoint(value: Any, path: Path) -> Path | None:
    """`is_mountpoint` is a boolean (the storage's own path) or another absolute path."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value)
    return path if flag(value, False) else None
