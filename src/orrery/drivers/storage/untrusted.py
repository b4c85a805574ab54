# SPDX-License-Identifier: AGPL-3.0-or-later
"""Programs that read files of unknown origin: each runs in a jail that shows nothing but that file, without network."""

import os
import resource
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from orrery.errors import Failure
from orrery.system import process
from orrery.system.jail import Bind, Jail

SEEN_SOURCE: Final = "/in/file"
SEEN_TARGET: Final = "/out/file"

_NOBODY: Final = 65534
_MEMORY: Final = 4 << 30
_ENDING_SECONDS: Final = 30
_CHUNK: Final = 1 << 20
_MAX_COMPLAINT: Final = 64 << 10
_OUT_OF_SPACE: Final = ("No space left on device", "Disk quota exceeded", "Could not allocate block")


def is_full(text: str) -> bool:
    """Whether a program's complaint means that there is no space left."""
    return any(words in text for words in _OUT_OF_SPACE)


def jail_of(source: Path, target: Path | None = None, limits: Mapping[int, int] | None = None) -> Jail:
    """A place that shows `source` at `SEEN_SOURCE`, and `target`, writable, at `SEEN_TARGET`.

    The user is nobody where the source's rights allow it, else the source's owner without any capability.
    """
    state = source.stat()
    binds = [Bind(source, SEEN_SOURCE)]
    if target is not None:
        binds.append(Bind(target, SEEN_TARGET, writable=True))
    return _bare(_NOBODY if state.st_mode & 0o004 else state.st_uid, tuple(binds), limits)


def filter_jail() -> Jail:
    """A place that shows nothing at all, for programs that read standard input and write standard output."""
    return _bare(_NOBODY, (), None)


def _bare(uid: int, binds: tuple[Bind, ...], limits: Mapping[int, int] | None) -> Jail:
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: _MEMORY, **(limits or {})}
    return Jail(
        uid, _NOBODY, user="nobody", network=False, binds=binds, tmp_size=0, proc=False, alone=True, limits=bounds
    )


def run_jailed(
    argv: Sequence[str],
    jail: Jail,
    timeout: float,
    on_output: Callable[[bytes], None],
    *,
    stdin: int | None = None,
    limit: int | None = None,
) -> tuple[int, bytes]:
    """Runs a program in a jail to its end: its exit code and the end of its standard error.

    `on_output` gets each piece of standard output, of which `limit` bytes are taken at most; what it raises ends the
    program. Raises Failure when it does not start, or not end within `timeout` seconds.
    """
    with ExitStack() as stack:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, reading)
        complaints = os.memfd_create("stderr", os.MFD_CLOEXEC)
        stack.callback(os.close, complaints)
        try:
            child = process.spawn(argv, jail=jail, stdin=stdin, stdout=writing, stderr=complaints, die_with_parent=True)
        finally:
            os.close(writing)
        try:
            _listen(reading, argv[0], timeout, on_output, limit)
            if not process.wait(child, _ENDING_SECONDS):
                raise Failure(f"{argv[0]} closed its output, but did not end")
        except BaseException:
            process.terminate(child)
            raise
        code = process.reap(child)
        if code is None:
            raise Failure(f"{argv[0]} ended, but did not say how")
        size = os.fstat(complaints).st_size
        return code, os.pread(complaints, _MAX_COMPLAINT, max(size - _MAX_COMPLAINT, 0))


def _listen(reading: int, name: str, timeout: float, on_output: Callable[[bytes], None], limit: int | None) -> None:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    deadline = time.monotonic() + timeout
    heard = 0
    while True:
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise Failure(f"{name} did not finish within {timeout:g} seconds")
        piece = os.read(reading, _CHUNK)
        if not piece:
            return
        heard += len(piece)
        if limit is not None and heard > limit:
            raise Failure(f"{name} says too much")
        on_output(piece)
