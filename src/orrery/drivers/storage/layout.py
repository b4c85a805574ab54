# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a storage of folders keeps the volumes of guests, where types of storage differ: plain files, or subvolumes.

A volume's *place* is what bears its name in the guest's folder and is made, moved and removed as one. The place of a
folder and of a plain image is the volume itself; an image may also lie as a file within its place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from orrery.drivers.storage import staging, trees
from orrery.errors import Failure
from orrery.model.volume import SUBVOL

NO_SIZES: Mapping[int, tuple[int, int]] = {}


class Layout(Protocol):
    """What `DirectoryStorage` asks of a type of storage."""

    kind: str
    container_formats: tuple[str, ...]
    sized_folders: bool

    def activate(self, top: Path) -> None:
        """Raises Failure unless the storage's folder `top` lies where such a storage can be."""
        ...

    def place_name(self, leaf: str) -> str:
        """The name of the place of the volume `leaf` (`vm-100-disk-0.raw`)."""
        ...

    def leaf(self, place: str) -> str:
        """The volume whose place has this name; for foreign files a name that is no volume's."""
        ...

    def file(self, place: Path, leaf: str) -> Path:
        """Where the volume `leaf` is opened, given its place."""
        ...

    def create(self, place: Path, image_format: str, size: int) -> None:
        """Makes an empty place of that path. A folder gets `size` as its limit, an image is an empty file."""
        ...

    def sizes(self, top: Path) -> Mapping[int, tuple[int, int]]:
        """Limit and use of folders by `tree_id`, in bytes; empty where there are no such numbers."""
        ...

    def tree_id(self, tree: Path) -> int:
        """The number of a folder in `sizes`."""
        ...

    def resize_tree(self, tree: Path, size: int) -> None:
        """Gives a folder another limit. Raises Failure where there is none."""
        ...


class PlainLayout:
    """Storage `dir`: `VMID/vm-VMID-disk-N.FORMAT`, and folders without limits."""

    kind = "dir"
    container_formats: tuple[str, ...] = ("raw", SUBVOL)
    sized_folders = False

    def activate(self, top: Path) -> None:
        del top

    def place_name(self, leaf: str) -> str:
        return leaf

    def leaf(self, place: str) -> str:
        return place

    def file(self, place: Path, leaf: str) -> Path:
        del leaf
        return place

    def create(self, place: Path, image_format: str, size: int) -> None:
        if image_format != SUBVOL:
            staging.create_file(place)
            return
        if size != 0:
            raise Failure(
                f"a folder cannot be held to {size} bytes here; ask for size 0, which has no limit, "
                "or for an image of format 'raw', which has one"
            )
        staging.create_folder(place, trees.MODE)

    def sizes(self, top: Path) -> Mapping[int, tuple[int, int]]:
        del top
        return NO_SIZES

    def tree_id(self, tree: Path) -> int:
        del tree
        return 0

    def resize_tree(self, tree: Path, size: int) -> None:
        del size
        raise Failure(f"'{tree.name}' is a folder without a size, and this storage cannot limit it")
