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
import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from orrery.drivers.storage.base import Progress
from orrery.drivers.storage.header import MAX_VIRTUAL_SIZE, read_header
from orrery.errors import Failure, NoSpace, NotSupported
from orrery.system import files, process
from orrery.system.jail import Bind, Jail

_QUICK: Final = 300.0
_LONG: Final = 7 * 86400.0
_PERCENT: Final = re.compile(rb"\(\s*([0-9.]+)/100%\)")
_OUT_OF_SPACE: Final = ("No space left on device", "Disk quota exceeded")
_NOBODY: Final = 65534
_SEEN_SOURCE: Final = "/in/image"
_SEEN_TARGET: Final = "/out/image"
_MEMORY: Final = 4 << 30
_INSPECT_SECONDS: Final = 60
_MAX_ANSWER: Final = 1 << 20
_ENDING_SECONDS: Final = 30
_PIPE_CHUNK: Final = 1 << 16


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


def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    *,
    preallocation: str,
    trusted: bool,
    progress: Progress | None = None,
) -> None:
    """Fills the empty file `target` with the contents of the image `source`; holes stay holes.

    Only a `trusted` source may refer to other files; any other is read in a jail. What `progress` raises ends the
    copy. Raises NoSpace or Failure.
    """
    size = _require_sound(source, source_format, trusted=trusted)
    create(target, target_format, size, preallocation)
    meter = _Meter(size, progress)
    options = ["convert", "-p", "-n", "--target-is-zero", "-f", source_format, "-O", target_format]
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
    foreign = [extent for extent in extents if extent.get("filename") not in (_SEEN_SOURCE, f"file:{_SEEN_SOURCE}")]
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
    argv = ["info", "--output=json", "-f", image_format, f"file:{_SEEN_SOURCE}"]
    _jailed(argv, _jail(path, None, limits), _INSPECT_SECONDS, answer.extend)
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
    if any(words in text for words in _OUT_OF_SPACE):
        return NoSpace("no space left on device; free some space and try again")
    return Failure(f"qemu-img failed: {text}")


def _jail(source: Path, target: Path | None, limits: dict[int, int] | None = None) -> Jail:
    """Shows the source, and the target to write to, and nothing else of the host's data; no network.

    The user is nobody where the source's rights allow it, else the source's owner without any capability.
    """
    state = source.stat()
    uid = _NOBODY if state.st_mode & 0o004 else state.st_uid
    binds = [Bind(source, _SEEN_SOURCE)]
    if target is not None:
        binds.append(Bind(target, _SEEN_TARGET, writable=True))
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: _MEMORY, **(limits or {})}
    return Jail(uid, _NOBODY, user="image", network=False, binds=tuple(binds), tmp_size=0, proc=False, limits=bounds)


def _convert_jailed(options: Sequence[str], source: Path, target: Path, meter: _Meter) -> None:
    jail = _jail(source, target)
    owner = target.stat()
    try:
        os.chown(target, jail.uid, -1)
        _jailed([*options, f"file:{_SEEN_SOURCE}", f"file:{_SEEN_TARGET}"], jail, _LONG, meter)
    except OSError as error:
        raise files.failure(error, "unable to hand over the new image") from error
    finally:
        os.chown(target, owner.st_uid, -1)


def _jailed(arguments: Sequence[str], jail: Jail, timeout: float, on_output: Callable[[bytes], None]) -> None:
    """Runs qemu-img in a jail to its end; any exception here ends it."""
    with ExitStack() as stack:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, reading)
        complaints = os.memfd_create("stderr", os.MFD_CLOEXEC)
        stack.callback(os.close, complaints)
        try:
            child = process.spawn(
                ["qemu-img", *arguments], jail=jail, stdout=writing, stderr=complaints, die_with_parent=True
            )
        finally:
            os.close(writing)
        try:
            _listen(reading, timeout, on_output)
            code = _ended(child)
        except BaseException:
            process.terminate(child, grace=0)
            raise
        if code != 0:
            raise _complaint(os.pread(complaints, _MAX_ANSWER, 0), code)


def _ended(child: process.ProcessId) -> int:
    """The exit code of a child that has closed its output; its last threads may still need a moment to go."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while process.wait(child, max(deadline - time.monotonic(), 0)):
        code = process.reap(child)
        if code is not None:
            return code
        if time.monotonic() >= deadline:
            break
        time.sleep(0.002)
    raise Failure("qemu-img did not end")


def _listen(reading: int, timeout: float, on_output: Callable[[bytes], None]) -> None:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    deadline = time.monotonic() + timeout
    heard = 0
    while True:
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise Failure(f"qemu-img did not finish within {timeout:g} seconds")
        piece = os.read(reading, _PIPE_CHUNK)
        if not piece:
            return
        heard += len(piece)
        if heard > _MAX_ANSWER:
            raise Failure("qemu-img says too much")
        on_output(piece)
