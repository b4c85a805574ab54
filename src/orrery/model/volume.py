# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volume ids (`STORAGE:NAME`) and the names of volumes on storages that keep files in folders.

Names, content types and folders are those of the compatible API, so that a storage folder of a Proxmox host can be
taken over as it is. A name never leads out of its storage: every component is checked here, and what a name means on
disk comes from `ParsedVolume.relative_path`, never from the text that a client sent.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

STORAGE_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]")
STORAGE_ID_MAX = 100
VMID = re.compile(r"[1-9][0-9]{2,8}")
NAME_MAX_BYTES = 255

CONTENT_TYPES = ("images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import")
SUBVOL = "subvol"
"""The format of a volume that is a folder: a container's tree."""
IMAGE_FORMATS = ("raw", "qcow2", "vmdk", SUBVOL)

CONTENT_FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "images": "images",
        "rootdir": "private",
        "iso": "template/iso",
        "vztmpl": "template/cache",
        "backup": "dump",
        "snippets": "snippets",
        "import": "import",
    }
)

_PACKED = (".zst", ".gz", ".lzo", ".bz2", "")
EXTENSIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "images": (".raw", ".qcow2", ".vmdk", ".subvol"),
        "iso": (".iso", ".img"),
        "vztmpl": (".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tar"),
        "backup": (*(f".{kind}{packed}" for kind in ("vma", "tar") for packed in _PACKED), ".tgz"),
        "snippets": (),
        "import": (".qcow2", ".raw", ".vmdk", ".ova", ".ovf"),
    }
)
"""Allowed endings per content type; an empty tuple means any."""

_BACKUP = re.compile(r"vzdump-(?:qemu|lxc|openvz)-([1-9][0-9]{2,8})-.+")
_GUEST_IMAGE = re.compile(r"(?:vm|base|subvol|basevol)-([1-9][0-9]{2,8})-[A-Za-z0-9._+-]+")
_STEM = re.compile(r"(?:vm|base|subvol|basevol)-([^.]+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]")


@dataclass(frozen=True, slots=True)
class ParsedVolume:
    """What a volume's name says.

    `format`: raw, qcow2, vmdk, subvol, iso, tgz, txz, tzst, tbz2, tar, vma.zst, …, snippet, ova, ovf, ova+qcow2, …
    `base`: for a linked clone the name of its base volume, for a file within an OVA the name of the OVA.
    `vmid`: the guest that owns the volume, where the name tells. `leaf`: the last component.
    """

    name: str
    content: str
    leaf: str
    format: str
    vmid: int | None = None
    base: str | None = None

    @property
    def is_base(self) -> bool:
        """Whether this is a template's disk, from which linked clones may hang."""
        return self.content == "images" and self.leaf.startswith(("base-", "basevol-"))

    def relative_path(self, folders: Mapping[str, str] = CONTENT_FOLDERS) -> str:
        """Path below the storage's folder; `folders` carries the storage's own folder per content type."""
        if self.content == "images":
            return f"{folders['images']}/{self.vmid}/{self.leaf}"
        if self.base is not None:
            return f"{folders[self.content]}/{self.base.partition('/')[2]}"
        return f"{folders[self.content]}/{self.leaf}"


@dataclass(frozen=True, slots=True, order=True)
class VolumeId:
    """`STORAGE:NAME`; the name's grammar is that of its storage (`parse_volname` for folders)."""

    storage: str
    name: str

    def __post_init__(self) -> None:
        if not STORAGE_ID.fullmatch(self.storage) or len(self.storage) > STORAGE_ID_MAX:
            raise ValueError(f"'{self.storage}' is not a storage id")
        _check_name(self.name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `STORAGE:NAME`; ValueError when it is none."""
        storage, colon, name = text.partition(":")
        if not colon:
            raise ValueError(f"'{text}' is not a volume id (STORAGE:NAME)")
        return cls(storage, name)

    def __str__(self) -> str:
        return f"{self.storage}:{self.name}"


def parse_volname(name: str) -> ParsedVolume:
    """Read the name of a volume on a storage that keeps files in folders; ValueError when it is none."""
    _check_name(name)
    parts = name.split("/")
    head = parts[0]
    if VMID.fullmatch(head):
        return _parse_image(name, parts)
    if head in ("iso", "vztmpl", "backup", "snippets", "import"):
        if len(parts) == 2:
            return _parse_file(name, head, parts[1])
        if head == "import" and len(parts) == 3:
            return _parse_packed(name, parts[1], parts[2])
    raise ValueError(f"'{name}' is not the name of a volume (such as 100/vm-100-disk-0.qcow2 or iso/x.iso)")


def image_name(vmid: int, leaf: str) -> str:
    """Name of a guest's new image; ValueError unless the file name is that of the guest, `vm-VMID-….FORMAT`."""
    parsed = parse_volname(f"{vmid}/{leaf}")
    if not parsed.leaf.startswith((f"vm-{vmid}-", f"base-{vmid}-", f"subvol-{vmid}-")):
        raise ValueError(f"illegal name '{leaf}' - should be 'vm-{vmid}-*'")
    if (parsed.format == SUBVOL) != parsed.leaf.startswith("subvol-"):
        raise ValueError(f"illegal name '{leaf}' - a folder, and only a folder, is 'subvol-{vmid}-*.subvol'")
    return parsed.name


def volume_stem(leaf: str) -> str:
    """What makes an image's name its own, without kind and format (`100-disk-0`); the name itself where it has none."""
    match = _STEM.match(leaf)
    return match[1] if match else leaf


def content_for(parsed: ParsedVolume, owner_kind: str | None) -> str:
    """The content type that clients see: a container's volumes are `rootdir`, a machine's are `images`.

    Names tell only of folders that they are a container's; `owner_kind` (`qemu`, `lxc`, None for no such guest) decides
    where names are equal.
    """
    if parsed.content != "images":
        return parsed.content
    return "rootdir" if owner_kind == "lxc" or parsed.format == SUBVOL else "images"


def upload_name(content: str, filename: str) -> str:
    """Volume name of an uploaded file; characters that make trouble in file names become `_`.

    ValueError for a name that is a path, hidden, too long, or ends in nothing that the content type allows.
    """
    if content not in ("iso", "vztmpl", "import", "backup", "snippets"):
        raise ValueError(f"content type '{content}' cannot be uploaded")
    if re.search(r"[/\\\x00-\x1f\x7f]", filename):
        raise ValueError("a file name must not contain '/', '\\' or control characters")
    return parse_volname(f"{content}/{_UNSAFE.sub('_', filename)}").name


def _check_name(name: str) -> None:
    """Refuse what could lead out of a folder, break a line or a record, or not exist as a file."""
    if not name:
        raise ValueError("the volume name is empty")
    if not name.isprintable():
        raise ValueError("a volume name must not contain control or unprintable characters")
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"volume name '{name}' is not a plain path: '..', '.' and empty parts are refused")
        if len(part.encode()) > NAME_MAX_BYTES:
            raise ValueError(f"a volume name's parts may only be {NAME_MAX_BYTES} bytes long")


def _parse_image(name: str, parts: list[str]) -> ParsedVolume:
    if len(parts) == 2:
        base, (vmid, leaf) = None, parts
    elif len(parts) == 4:
        base_vmid, base_leaf, vmid, leaf = parts
        base = f"{base_vmid}/{base_leaf}"
        if not VMID.fullmatch(vmid) or not _image(base, base_leaf, base_vmid, None).is_base:
            raise ValueError(f"'{name}' is not the name of a linked clone (BASEVMID/base-…/VMID/vm-…)")
    else:
        raise ValueError(f"'{name}' is not an image's name (VMID/vm-VMID-disk-N.FORMAT)")
    return _image(name, leaf, vmid, base)


def _image(name: str, leaf: str, vmid: str, base: str | None) -> ParsedVolume:
    stem, _, format_ = leaf.rpartition(".")
    if format_ not in IMAGE_FORMATS:
        raise ValueError(f"image name '{leaf}' must end in one of .{', .'.join(IMAGE_FORMATS)}")
    if leaf.startswith((".", "-")) or " " in leaf:
        raise ValueError(f"image name '{leaf}' starts with '.' or '-' or contains a space")
    owned = _GUEST_IMAGE.fullmatch(stem)
    if owned and owned[1] != vmid:
        raise ValueError(f"image name '{leaf}' names another guest than its folder {vmid}")
    return ParsedVolume(name, "images", leaf, format_, int(vmid), base)


def _parse_file(name: str, content: str, leaf: str) -> ParsedVolume:
    if leaf.startswith("."):
        raise ValueError(f"volume name '{name}' is a hidden file's")
    ending = _ending(content, leaf)
    if content == "backup":
        owner = _BACKUP.fullmatch(leaf)
        return ParsedVolume(name, content, leaf, ending, int(owner[1]) if owner else None)
    if content == "iso":
        return ParsedVolume(name, content, leaf, "iso")
    if content == "vztmpl":
        packed = ending.removeprefix("tar").removeprefix(".")
        return ParsedVolume(name, content, leaf, {"gz": "tgz", "": "tar"}.get(packed, f"t{packed}"))
    return ParsedVolume(name, content, leaf, ending if content == "import" else "snippet")


def _ending(content: str, leaf: str) -> str:
    endings = EXTENSIONS[content]
    if not endings:
        return ""
    for ending in endings:
        if leaf.lower().endswith(ending) and len(leaf) > len(ending):
            return ending[1:]
    raise ValueError(f"wrong file extension: {content} must be one of {', '.join(endings)}")


def _parse_packed(name: str, archive: str, leaf: str) -> ParsedVolume:
    """`import/x.ova/disk.vmdk`: a disk within an OVA."""
    outer = _parse_file(f"import/{archive}", "import", archive)
    inner = _parse_file(name, "import", leaf)
    if outer.format != "ova" or inner.format not in ("vmdk", "qcow2", "raw"):
        raise ValueError(f"'{name}' is not a disk within an OVA (import/x.ova/disk.vmdk)")
    return ParsedVolume(name, "import", leaf, f"ova+{inner.format}", None, outer.name)
