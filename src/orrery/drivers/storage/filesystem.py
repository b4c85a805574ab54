# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems in raw images: made, checked and grown while nobody has them mounted, by the e2fsprogs in a jail.

What lies in such an image was written by a container, so its programs get nothing but the image. The user is root, as
whom the file belongs, but without any capability.
"""

import fcntl
import os
import resource
import struct
from pathlib import Path
from typing import Final

from orrery.drivers.storage import untrusted
from orrery.drivers.storage.base import StorageDriver
from orrery.errors import Failure, NoSpace
from orrery.model.volume import SUBVOL, parse_volname
from orrery.system import files
from orrery.system.jail import Bind, Jail

FSTYPE: Final = "ext4"
MIN_SIZE: Final = 8 << 20
"""Bytes below which there is no room for a journal and a tree."""

_OPTIONS: Final = (
    *("-b", "4096", "-I", "256", "-m", "0", "-e", "remount-ro"),
    *("-E", "nodiscard,assume_storage_prezeroed=1,root_owner=0:0"),
)
_IMAGE: Final = "/image"
_LABEL_BYTES: Final = 16
_QUICK: Final = 600.0
_LONG: Final = 86400.0
_MEMORY: Final = 8 << 30
_MAX_ANSWER: Final = 1 << 20
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64_BYTES: Final = 232
_FSCK_OPERATIONAL: Final = 4
"""e2fsck(8): 1 and 2 are errors that were corrected; from 4 on the file system is not sound."""


def make(image: Path, label: str = "") -> None:
    """Makes an ext4 file system over a whole raw image that is new, all zeros. Raises NoSpace or Failure.

    Nothing is kept back for root, since whoever asks for 8 GiB means 8 GiB. A new image reads as zeros, so tables and
    journal need no zeroing, neither now nor in the background of the first mount. On the first error the kernel stops
    writing. `label` is cut to 16 bytes.
    """
    size = _size(image)
    if size < MIN_SIZE:
        raise Failure(f"an image of {size} bytes is too small for a file system; it needs {MIN_SIZE} bytes")
    _run(
        ["mke2fs", "-q", "-F", "-t", FSTYPE, *_OPTIONS, "-L", _label(label), _IMAGE],
        image,
        _QUICK,
    )


def check(image: Path) -> None:
    """Checks a file system and repairs what can be repaired without asking. Raises Failure when it is not sound."""
    _run(["e2fsck", "-f", "-p", _IMAGE], image, _LONG, tolerated=_FSCK_OPERATIONAL)


def grow(image: Path) -> None:
    """Makes a file system as large as its image, which grew. Raises NoSpace or Failure; it is whole in any case."""
    check(image)
    _run(["resize2fs", _IMAGE], image, _LONG)


def make_volume(driver: StorageDriver, volume: str, size: int) -> None:
    """A container's new volume: a folder with its limit, or an image with a file system. A failure leaves nothing."""
    driver.allocate(volume, size)
    if _is_folder(volume):
        return
    try:
        make(driver.path(volume), label_of(volume))
    except BaseException:
        driver.free(volume)
        raise


def grow_volume(driver: StorageDriver, volume: str, size: int) -> None:
    """Grows a container's volume that is not mounted, its file system too. May be repeated after a failure."""
    driver.resize(volume, size)
    if not _is_folder(volume):
        grow(driver.path(volume))


def label_of(volume: str) -> str:
    """The label of a volume's file system, for people who look at the file (`100-disk-0`)."""
    return parse_volname(volume).leaf.rpartition(".")[0].removeprefix("vm-")


def _is_folder(volume: str) -> bool:
    return parse_volname(volume).format == SUBVOL


def _label(text: str) -> str:
    return text.encode("ascii", "replace")[:_LABEL_BYTES].decode()


def _size(image: Path) -> int:
    try:
        return image.stat().st_size
    except OSError as error:
        raise files.failure(error, f"unable to look at the image '{image.name}'") from error


def _refuse_used(image: Path) -> None:
    """Raises Failure when a loop device holds the image, in whatever namespace it is mounted (`loop.h`)."""
    state = image.stat()
    for name in Path("/sys/block").glob("loop*/loop"):
        try:
            descriptor = os.open(f"/dev/{name.parent.name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            answer = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
        except OSError:  # it has let go
            continue
        finally:
            os.close(descriptor)
        if struct.unpack_from("=QQ", answer) == (state.st_dev, state.st_ino):
            raise Failure(f"'{image.name}' is mounted; stop the container that uses it first")


def _run(argv: list[str], image: Path, timeout: float, tolerated: int = 1) -> None:
    try:
        _refuse_used(image)
    except OSError as error:
        raise files.failure(error, f"unable to look at the image '{image.name}'") from error
    said = bytearray()
    code, complaints = untrusted.run_jailed(argv, _jail(image), timeout, said.extend, limit=_MAX_ANSWER)
    if 0 <= code < tolerated:
        return
    lines = [line.strip() for line in (complaints or bytes(said)).decode("utf-8", "replace").splitlines()]
    text = next((line for line in reversed(lines) if line), f"exit code {code}").replace(_IMAGE, image.name)
    if untrusted.is_full(text):
        raise NoSpace(f"no space left for '{image.name}'; free some space and try again")
    raise Failure(f"{argv[0]} failed: {text}")


def _jail(image: Path) -> Jail:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: _MEMORY}
    bind = Bind(image, _IMAGE, writable=True)
    # The programs want to see that the image is not mounted; in here nothing is, so we look ourselves (`_refuse_used`).
    no_mounts = {"/etc/mtab": ""}
    return Jail(
        *(0, 0),
        user="nobody",
        network=False,
        binds=(bind,),
        files=no_mounts,
        tmp_size=0,
        proc=False,
        alone=True,
        limits=limits,
    )
