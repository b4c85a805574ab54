# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every storage driver offers. Sizes are bytes; volume names are the part of a volume id after the colon.

Drivers share no behaviour by inheritance; the contract suite in `tests/contract` holds them to this page.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Feature(StrEnum):
    """What a driver can do beyond the methods that all have; asked before an operation is offered."""

    SNAPSHOT = "snapshot"
    CLONE = "clone"
    ENCRYPTION = "encryption"
    UPLOAD = "upload"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Usage:
    """Space of a storage in bytes."""

    total: int
    used: int
    available: int


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """One volume: `size` as the guest sees it, `used` as it lies on the storage, `ctime` in seconds since 1970.

    A folder's `size` is its limit, 0 for none; what it uses is 0 where the storage does not know without looking.
    """

    volid: str
    content: str
    format: str
    size: int
    used: int
    ctime: int
    vmid: int | None = None
    parent: str | None = None
    notes: str | None = None
    protected: bool = False


Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; may raise `Cancelled`."""


class StorageDriver(Protocol):
    """One configured storage. Errors: `NotFound`, `AlreadyExists`, `NoSpace`, `Failure`, `NotSupported`."""

    name: str
    kind: str
    features: frozenset[Feature]
    contents: frozenset[str]
    formats: tuple[str, ...]
    """Formats that images of machines may have here, the default first."""
    container_formats: tuple[str, ...]
    """Formats that volumes of containers may have here, the default first; `subvol` is a folder."""
    sized_folders: bool
    """Whether a `subvol` may have a size, which then is a limit that holds; else its size is 0."""

    def activate(self) -> None:
        """Makes the storage usable (folders, mounts) and removes what crashed tasks left half made.

        Idempotent, cheap, and safe while others work. Raises `Failure` with what to do.
        """
        ...

    def usage(self) -> Usage:
        """Space now; may wait for the storage, so never called from a request that lists."""
        ...

    def list(self, contents: Collection[str], vmid: int | None = None) -> list[VolumeInfo]:
        """Volumes of the given content types, optionally of one guest only; never slower for large volumes.

        A name does not tell whether a machine or a container owns an image, so `images` and `rootdir` both mean the
        volumes of guests here, and all of these have the content `images`; see `model.volume.content_for`.
        """
        ...

    def info(self, volume: str) -> VolumeInfo:
        """One volume; raises `NotFound`."""
        ...

    def path(self, volume: str) -> Path:
        """Where a volume can be opened; checked against the storage's own folder. It need not exist yet."""
        ...

    def next_name(self, vmid: int, image_format: str, stem: str = "disk") -> str:
        """A volume name for a new image that is free now; nothing is made.

        `100/vm-100-disk-0.qcow2`, and `100/subvol-100-disk-0.subvol` for a folder.
        """
        ...

    def allocate(self, volume: str, size: int) -> None:
        """Makes an empty image or folder of that very name; raises `AlreadyExists`. A failure leaves nothing behind.

        The `size` of a folder is its limit, 0 for none; raises `Failure` where it would not hold (`sized_folders`).
        """
        ...

    def resize(self, volume: str, size: int) -> None:
        """Grows an image that no guest has open, or a folder's limit; raises `Failure` when it would shrink."""
        ...

    def free(self, volume: str) -> None:
        """Removes a volume; one that is gone already is no error. A folder goes with all in it, whatever that is.

        Raises `Failure` for protected ones and for bases in use.
        """
        ...

    def copy_in(
        self,
        source: Path,
        source_format: str,
        volume: str,
        progress: Progress | None = None,
        *,
        trusted: bool = False,
        rate: int | None = None,
    ) -> None:
        """Makes image `volume` with the contents of the file `source`, converting formats; a failure leaves nothing.

        A `trusted` source was made here for a guest, and may be based on another image; any other, such as an upload,
        is refused when it refers to other files, and is read in a jail. `rate` in bytes per second, by default the
        storage's own limit; 0 for none.
        """
        ...

    def staging(self, volume: str) -> Path:
        """A private file beside the volume's place, in which an upload or download grows before `publish`.

        It belongs to this process: when that is dead, `activate` removes the file. It is empty, mode 0600.
        """
        ...

    def adopt(self, staged: Path) -> Path:
        """Makes this process the owner of a staged file, which gets another path for it; raises `NotFound`."""
        ...

    def discard(self, staged: Path) -> None:
        """Removes a staged file, also by the path that it had before `adopt`; absent is no error."""
        ...

    def publish(self, staged: Path, volume: str, *, replace: bool = False) -> None:
        """Gives a staged file its name, durably; raises `AlreadyExists`."""
        ...

    def set_attributes(self, volume: str, *, notes: str | None = None, protected: bool | None = None) -> None:
        """Changes notes or protection where the content type has them, else `NotSupported`."""
        ...
