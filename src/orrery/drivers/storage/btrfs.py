# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storage `btrfs`: as `dir`, with subvolumes in the guests' folders, laid out as Proxmox lays them out.

images/VMID/vm-VMID-disk-N/disk.raw      a raw image, alone in a subvolume
images/VMID/subvol-VMID-disk-N.subvol    a container's tree, a subvolume whose quota group holds its size
images/VMID/vm-VMID-disk-N.qcow2         other images are plain files
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orrery.drivers.storage import subvolumes, trees
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.drivers.storage.options import flag
from orrery.errors import Failure
from orrery.model.volume import IMAGE_FORMATS, SUBVOL
from orrery.system import files, process

MIN_SIZE: Final = 1 << 20
"""Bytes below which a limit leaves no room for the subvolume itself."""
MAX_SIZE: Final = 1 << 60

_RAW: Final = ".raw"
_DISK: Final = "disk.raw"
_PLAIN: Final = tuple(f".{name}" for name in IMAGE_FORMATS if name != "raw")
_PLACE_MODE: Final = 0o700


def open_storage(name: str, options: Mapping[str, Any], node: str) -> DirectoryStorage:
    """The driver for stored options. Raises Failure that names the option."""
    return DirectoryStorage(name, options, node, SubvolumeLayout(in_place=flag(options.get("nocow"), False)))


class SubvolumeLayout:
    """See `layout.Layout`. `in_place`: new raw images are written in place, which is fast and knows no checksums."""

    kind = "btrfs"
    container_formats: tuple[str, ...] = (SUBVOL,)
    sized_folders = True

    def __init__(self, *, in_place: bool) -> None:
        self._in_place = in_place

    def activate(self, top: Path) -> None:
        process.find("btrfs")
        if subvolumes.identity(top) is None:
            raise Failure(f"'{top}' does not lie on btrfs; mount one there, or make it a storage of type dir")

    def place_name(self, leaf: str) -> str:
        return leaf.removesuffix(_RAW)

    def leaf(self, place: str) -> str:
        if place.endswith(_RAW):
            return ""  # a plain file, which we would look for elsewhere
        return place if place.endswith(_PLAIN) else place + _RAW

    def file(self, place: Path, leaf: str) -> Path:
        return place / _DISK if leaf.endswith(_RAW) else place

    def create(self, place: Path, image_format: str, size: int) -> None:
        if image_format == SUBVOL:
            self._check_size(size)
            subvolumes.create(place, trees.MODE)
            if size:
                subvolumes.limit(place, size)
        elif image_format == "raw":
            subvolumes.create(place, _PLACE_MODE)
            self._create_file(place / _DISK)
        else:
            self._create_file(place)

    def _create_file(self, path: Path) -> None:
        try:
            path.touch(mode=0o600, exist_ok=False)
            if self._in_place:
                subvolumes.avoid_copies(path)
        except OSError as error:
            raise files.failure(error, f"unable to write to '{path.parent}'") from error

    def sizes(self, top: Path) -> Mapping[int, tuple[int, int]]:
        return subvolumes.sizes(top)

    def tree_id(self, tree: Path) -> int:
        return subvolumes.identity(tree) or 0

    def resize_tree(self, tree: Path, size: int) -> None:
        self._check_size(size)
        subvolumes.limit(tree, size)

    def _check_size(self, size: int) -> None:
        if size and not MIN_SIZE <= size <= MAX_SIZE:
            raise Failure(f"a folder cannot have a size of {size} bytes: at least {MIN_SIZE}, or 0 for no limit")
