# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disk images made, converted, grown and distrusted, by `qemu-img`.

`qemu-img` reads some file names as protocols (`nbd:…`, `json:…`) and follows references in images to other files. So
names are always given with `file:` in front, formats are always told and never guessed, and an image of unknown origin
is first looked at by ourselves (`header`) and then opened only in a jail that shows nothing but that image.
"""

import json
import os
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from orrery.drivers.storage.base import Progress
from orrery.drivers.storage.header import MAX_VIRTUAL_SIZE, read_header
from orrery.drivers.storage.untrusted import SEEN_SOURCE, SEEN_TARGET, is_full, jail_of, run_jailed
from orrery.errors import Failure, NoSpace, NotSupported
from orrery.system import files, process
from orrery.system.jail import Jail

_BLOCK: Final = 4096
_QUICK: Final = 300.0
_LONG: Final = 7 * 86400.0
_PERCENT: Final = re.compile(rb"\(\s*([0-9.]+)/100%\)")
_INSPECT_SECONDS: Final = 60
_MAX_ANSWER: Final = 1 << 20


def create(path: Path, image_format: str, size: int, preallocation: str) -> None:
    """Turns the empty file `path` into an empty image of `size` bytes. Raises NoSpace or Failure."""
    if size > MAX_VIRTUAL_SIZE:
        raise Failure(f"an image may have at most {MAX_VIRTUAL_SIZE} bytes, not {size}")
    if image_format == "raw" and preallocation != "full":
        _set_length(path, size, reserve=preallocation == "falloc")
        return
    options = [] if image_format == "vmdk" else ["-o", f"preallocation={preallocation}"]
    _qemu_img(["create", "-q", "-f", image_format, *options, f"file:{path}", str(size)], _patience(preallocation))


def grow(path: Path, image_format: str, size: int, preallocation: str) -> None:
    """Gives an image that nobody has open a larger size. Raises NoSpace, NotSupported or Failure."""
    if size > MAX_VIRTUAL_SIZE:
        raise Failure(f"an image may have at most {MAX_VIRTUAL_SIZE} bytes, not {size}")
    if image_format == "vmdk":
        raise NotSupported("images of format vmdk cannot be resized; move the disk to qcow2 or raw first")
    if image_format == "raw" and preallocation != "full":
        _set_length(path, size, reserve=preallocation == "falloc")
        return
    reserve = preallocation if preallocation in ("falloc", "full") else "off"
    options = [f"--preallocation={reserve}", f"file:{path}", str(size)]
    _qemu_img(["resize", "-q", "-f", image_format, *options], _patience(preallocation))


def whole_blocks(size: int) -> int:
    """The size rounded up so that QEMU can open the file without the page cache, also on disks of 4 KiB sectors."""
    return -(-size // _BLOCK) * _BLOCK


def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    *,
    preallocation: str,
    trusted: bool,
    rate: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Fills the empty file `target` with the contents of the image `source`; holes stay holes.

    Only a `trusted` source may refer to other files; any other is read in a jail. What `progress` raises ends the
    copy. `rate` limits the bytes per second. Raises NoSpace or Failure.
    """
    size = _require_sound(source, source_format, trusted=trusted)
    create(target, target_format, whole_blocks(size), preallocation)
    meter = _Meter(size, progress)
    options = ["convert", "-p", "-n", "--target-is-zero", "-f", source_format, "-O", target_format]
    if rate:
        options += ["-r", str(rate)]
    if trusted:
        _qemu_img([*options, f"file:{source}", f"file:{target}"], _LONG, meter)
    else:
        _convert_jailed(options, source, target, meter)
    meter.finish()


def refuse_untrusted(path: Path, image_format: str) -> int:
    """Raises Failure unless an image of unknown origin stands alone and is sound; returns its virtual size in bytes.

    Backing files, external data files, extents in other files, encryption and absurd sizes are refused: opened with
    root's rights, they would show files of the host to a guest.
    """
    size = _require_sound(path, image_format, trusted=False)
    if image_format == "raw":
        return size
    described = _inspect(path, image_format)
    extents = described.get("format-specific", {}).get("data", {}).get("extents", [])
    foreign = [extent for extent in extents if extent.get("filename") not in (SEEN_SOURCE, f"file:{SEEN_SOURCE}")]
    if "backing-filename" in described or described.get("encrypted") or foreign:
        raise Failure("the image is refused: it is based on another file or encrypted")
    if described.get("virtual-size") != size:
        raise Failure("the image is refused: its size is not what its header says")
    return size


def _require_sound(path: Path, image_format: str, *, trusted: bool) -> int:
    try:
        header = read_header(path, image_format)
    except OSError as error:
        raise files.failure(error, "unable to read the image") from error
    if header.trouble is not None and not trusted:
        raise Failure(f"the image is refused: {header.trouble}")
    return header.virtual_size


def _inspect(path: Path, image_format: str) -> dict[str, Any]:
    answer = bytearray()
    limits = {resource.RLIMIT_CPU: _INSPECT_SECONDS, resource.RLIMIT_FSIZE: 0}
    argv = ["info", "--output=json", "-f", image_format, f"file:{SEEN_SOURCE}"]
    _qemu_img_jailed(argv, jail_of(path, limits=limits), _INSPECT_SECONDS, answer.extend)
    try:
        described = json.loads(answer)
    except ValueError as error:
        raise Failure("the image is refused: it could not be examined") from error
    return described if isinstance(described, dict) else {}


def _set_length(path: Path, size: int, *, reserve: bool) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if reserve:
                files.allocate(descriptor, size)
            else:
                os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise files.failure(error, f"unable to give the image a size of {size} bytes") from error


def _patience(preallocation: str) -> float:
    return _LONG if preallocation in ("falloc", "full") else _QUICK


# --- running qemu-img


class _Meter:
    """Reads the percentage that `qemu-img -p` prints and reports it as bytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.progress = progress
        self._rest = b""

    def __call__(self, piece: bytes) -> None:
        self._rest = (self._rest + piece)[-256:]
        found = _PERCENT.findall(self._rest)
        if found:
            self._rest = self._rest[self._rest.rindex(b"%)") :]
            self._report(min(float(found[-1]) / 100, 1.0))

    def finish(self) -> None:
        self._report(1.0)

    def _report(self, part: float) -> None:
        if self.progress is not None:
            self.progress(int(self.total * part), self.total)


def _qemu_img(arguments: Sequence[str], timeout: float, on_output: Callable[[bytes], None] | None = None) -> None:
    done = process.run(["qemu-img", *arguments], timeout=timeout, check=False, on_output=on_output)
    if done.returncode != 0:
        raise _complaint(done.stderr, done.returncode)


def _complaint(stderr: bytes, code: int) -> Failure | NoSpace:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    text = lines[-1].strip() if lines else f"exit code {code}"
    if is_full(text):
        return NoSpace("no space left on device; free some space and try again")
    return Failure(f"qemu-img failed: {text}")


def _convert_jailed(options: Sequence[str], source: Path, target: Path, meter: _Meter) -> None:
    jail = jail_of(source, target)
    owner = target.stat()
    try:
        os.chown(target, jail.uid, -1)
        _qemu_img_jailed([*options, f"file:{SEEN_SOURCE}", f"file:{SEEN_TARGET}"], jail, _LONG, meter)
    except OSError as error:
        raise files.failure(error, "unable to hand over the new image") from error
    finally:
        os.chown(target, owner.st_uid, -1)


def _qemu_img_jailed(arguments: Sequence[str], jail: Jail, timeout: float, on_output: Callable[[bytes], None]) -> None:
    code, complaints = run_jailed(["qemu-img", *arguments], jail, timeout, on_output, limit=_MAX_ANSWER)
    if code != 0:
        raise _complaint(complaints, code)
