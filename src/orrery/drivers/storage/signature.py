# SPDX-License-Identifier: AGPL-3.0-or-later
"""What kind of file a file really is, told by its first bytes: keeps a disk image from passing as a CD and the like.

Signatures: ISO 9660 (ECMA-119, 8.1: `CD001` in the descriptor at sector 16), UDF (ECMA-167, 2/9.1), ustar (POSIX), the
compressors' own documents, QEMU's image formats.
"""

import os
from pathlib import Path
from typing import Final

from orrery.errors import Failure

_ISO_DESCRIPTOR: Final = 16 * 2048 + 1
_USTAR: Final = 257
_VDI: Final = 64

_STARTS: Final = (
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"QED\x00", "qed"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vhd"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"LUKS\xba\xbe", "luks"),
    (b"\x1f\x8b", "gz"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"BZh", "bz2"),
    (b"\x89LZO\x00\r\n\x1a\n", "lzo"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"VMA\x00", "vma"),
)
_WEB_PAGE: Final = (b"<!doctype html", b"<html", b"<?xml")

IMAGES: Final = frozenset({"qcow2", "vmdk", "qed", "vhdx", "vhd", "parallels", "luks", "vdi"})
PACKED: Final = frozenset({"gz", "xz", "zst", "bz2", "lzo", "zip", "7z"})

WORDS: Final = (
    {
        "iso": "a CD image",
        "tar": "a tar archive",
        "html": "a web page",
        "vma": "a backup archive",
        "": "of no known kind",
    }
    | {name: f"a disk image of format {name}" for name in IMAGES}
    | {name: f"packed ({name})" for name in PACKED}
)


def detect(path: Path) -> str:
    """A word for the kind of file (`iso`, `tar`, `qcow2`, `html`, …), empty when it is not known. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, 512, 0)
        disc = os.pread(descriptor, 5, _ISO_DESCRIPTOR)
    finally:
        os.close(descriptor)
    # A hybrid CD image begins with a boot sector, or with anything else that its maker liked: look there first.
    if disc in (b"CD001", b"BEA01"):
        return "iso"
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[_USTAR : _USTAR + 5] == b"ustar":
        return "tar"
    if head[_VDI : _VDI + 4] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head.lstrip()[:16].lower().startswith(_WEB_PAGE):
        return "html"
    return ""


_EXPECTED: Final = {"tgz": "gz", "txz": "xz", "tzst": "zst", "tbz2": "bz2", "tar": "tar", "ova": "tar"}


def require_kind(path: Path, content: str, image_format: str) -> None:
    """Raises Failure when the file is evidently something else than a volume of this content type and format.

    A file without known signature passes: raw disk images have none.
    """
    kind = detect(path)
    if not kind:
        return
    if content == "iso":
        fits = kind not in IMAGES | PACKED | {"html", "vma"}
    elif image_format in _EXPECTED:
        fits = kind == _EXPECTED[image_format]
    elif content == "import" and image_format == "raw":
        fits = kind not in IMAGES | PACKED | {"html"}
    elif content == "import" and image_format in ("qcow2", "vmdk"):
        fits = kind == image_format
    else:
        fits = kind != "html"
    if not fits:
        raise Failure(f"the file does not fit its name: it is {WORDS.get(kind, kind)}")
