# SPDX-License-Identifier: AGPL-3.0-or-later
"""Archives that strangers made, unpacked into the trees of containers.

Three programs in a row, none of which can reach more than it needs: a decompressor that sees no file at all, we, who
judge the stream (`tarstream`), and GNU tar in a jail whose only writable place is the new tree. It is root there, with
the capabilities that give files to others and nothing else: no device can be made, nothing be mounted, nothing outside
be named. Ids are stored as the archive has them, as the container sees them.
"""

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from orrery.drivers.storage import signature, trees, untrusted
from orrery.drivers.storage.base import Progress
from orrery.drivers.storage.tarstream import TarFilter
from orrery.drivers.storage.usage import reserve_of
from orrery.errors import Failure, NoSpace, OrreryError
from orrery.system import files, process
from orrery.system.jail import Bind, Capability, Jail

PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"gz": ("gzip", "-dc"), "xz": ("xz", "-dc"), "zst": ("zstd", "-dc", "-q", "--no-sparse"), "bz2": ("bzip2", "-dc")}
)
"""The program for each kind of compression, from standard input to standard output."""

_TREE: Final = "/tree"
_TAR: Final = (
    *("tar", "--extract", "--file=-", f"--directory={_TREE}", "--numeric-owner", "--same-owner"),
    *(
        "--preserve-permissions",
        "--acls",
        "--xattrs",
        "--xattrs-include=security.capability",
        "--xattrs-include=user.*",
    ),
    *("--warning=no-timestamp", "--warning=no-unknown-keyword"),
)
_RIGHTS: Final = frozenset(
    (Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FOWNER, Capability.FSETID, Capability.SETFCAP)
)
_MADE_BY_MKE2FS: Final = "lost+found"
_PIPE: Final = 1 << 20
_CHUNK: Final = 1 << 20
_MEMORY: Final = 4 << 30
_MAX_COMPLAINTS: Final = 16 << 10
_MAX_PADDING: Final = 16 << 20
_STALL_SECONDS: Final = 900.0
_UNHELPFUL: Final = ("Exiting with failure status", "Removing leading", "Error is not recoverable")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: `size` in bytes of the archive unpacked, `skipped` entries that were left out."""

    entries: int
    size: int
    skipped: int


def unpack(
    archive: Path,
    tree: Path,
    limit: int | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> Unpacked:
    """Unpacks a tar archive, packed by whatever program, into the empty folder `tree` (a file system's top is one).

    `limit`: bytes that may come out of the decompressor, by default what is free there, less a reserve. `progress`
    counts the bytes of the archive file; what it raises ends it. `log` is told what was left out. When it returns, all
    is on the disk. Raises NoSpace or Failure; then the tree is empty again.
    """
    _require_empty(tree)
    try:
        descriptor = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            kind = _kind(archive)
            room = files.space(tree)
            bound = room.available - reserve_of(room.total) if limit is None else min(limit, room.available)
            with ExitStack() as stack:
                made = _Unpacking(descriptor, kind, tree, bound, progress, stack).run()
        finally:
            os.close(descriptor)
        for note in made.notes:
            (log or _silent)(note)
        if made.skipped > len(made.notes):
            (log or _silent)(f"left out {made.skipped - len(made.notes)} more")
        _sync(tree)
    except BaseException as error:
        with contextlib.suppress(OrreryError):  # what went wrong first is what counts
            trees.empty(tree, keep=(_MADE_BY_MKE2FS,))
        if isinstance(error, OSError):
            raise files.failure(error, f"unable to unpack '{archive.name}'") from error
        raise
    return Unpacked(made.entries, made.size, made.skipped)


def _silent(note: str) -> None:
    del note


def _kind(archive: Path) -> str:
    """Compression by the file's first bytes, empty for none, whatever its name says. Raises Failure, OSError."""
    kind = signature.detect(archive)
    if kind in PROGRAMS:
        process.find(PROGRAMS[kind][0])
        return kind
    if kind not in ("tar", ""):
        raise Failure(f"'{archive.name}' is no tar archive: it is {signature.WORDS.get(kind, kind)}")
    return ""


def _require_empty(tree: Path) -> None:
    try:
        names = [name for name in os.listdir(tree) if name != _MADE_BY_MKE2FS]  # noqa: PTH208
    except OSError as error:
        raise files.failure(error, f"unable to look at '{tree}'") from error
    if names:
        raise Failure(f"'{tree}' is not empty")


def _sync(tree: Path) -> None:
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


class _Pipe:
    """Both ends of a pipe; each is closed once, at the end at the latest."""

    def __init__(self, stack: ExitStack) -> None:
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        self._open = {self.reading, self.writing}
        stack.callback(self.close)
        with contextlib.suppress(OSError):  # above what the host allows for one user
            fcntl.fcntl(self.reading, fcntl.F_SETPIPE_SZ, _PIPE)

    def close(self, *ends: int) -> None:
        """Closes the ends that are named, or both."""
        for end in self._open & set(ends or self._open):
            self._open.remove(end)
            os.close(end)


class _Program:
    """A child and what it complains about; only the beginning of that is kept."""

    def __init__(self, argv: tuple[str, ...], jail: Jail, stack: ExitStack, *, stdin: int, stdout: int | None) -> None:
        self.name = argv[0]
        self._said = bytearray()
        pipe = _Pipe(stack)
        self.errors = pipe.reading
        self._child = process.spawn(
            argv, jail=jail, stdin=stdin, stdout=stdout, stderr=pipe.writing, die_with_parent=True
        )
        pipe.close(pipe.writing)
        stack.callback(self._end)

    def _end(self) -> None:
        process.signal(self._child, signal.SIGKILL)
        process.terminate(self._child)

    def listen(self) -> bool:
        """Takes what it says; False once it has nothing more to say."""
        piece = os.read(self.errors, _CHUNK)
        self._said += piece[: _MAX_COMPLAINTS - len(self._said)]
        return bool(piece)

    def finish(self) -> None:
        """Raises NoSpace or Failure unless it ends well."""
        while self.listen():
            pass
        if not process.wait(self._child, _STALL_SECONDS):
            raise Failure(f"{self.name} does not end")
        code = process.reap(self._child)
        if code == 0:
            return
        lines = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if line and not any(words in line for words in _UNHELPFUL)]
        if any(untrusted.is_full(line) for line in lines):
            raise NoSpace("there is no space left for what the archive holds; choose a larger size, or free some space")
        reason = lines[0] if lines else f"{self.name} ended with {code}"
        raise Failure(f"the archive cannot be unpacked: {reason.removeprefix(f'{self.name}: ')}")


class _Unpacking:
    """One archive on its way through the programs, which end with `stack`."""

    def __init__(
        self, archive: int, kind: str, tree: Path, limit: int, progress: Progress | None, stack: ExitStack
    ) -> None:
        self._archive = archive
        self._kind = kind
        self._tree = tree
        self._filter = TarFilter(limit)
        self._progress = progress
        self._stack = stack
        self._programs: list[_Program] = []
        self._talking: list[_Program] = []

    def run(self) -> TarFilter:
        """Raises NoSpace, Failure, what `progress` raises."""
        source = self._decompressor() if self._kind else self._archive
        pipe = _Pipe(self._stack)
        os.set_blocking(pipe.writing, False)
        tar = _Program(_TAR, _jail(self._tree), self._stack, stdin=pipe.reading, stdout=None)
        self._enter(tar)
        pipe.close(pipe.reading)
        try:
            self._pass_on(source, pipe.writing)
        except BrokenPipeError:
            tar.finish()
            raise Failure("the archive cannot be unpacked: tar ended before it") from None
        pipe.close(pipe.writing)
        for program in self._programs:
            program.finish()
        self._report(os.fstat(self._archive).st_size)
        return self._filter

    def _decompressor(self) -> int:
        pipe = _Pipe(self._stack)
        argv = PROGRAMS[self._kind]
        program = _Program(argv, untrusted.filter_jail(), self._stack, stdin=self._archive, stdout=pipe.writing)
        self._enter(program)
        pipe.close(pipe.writing)
        return pipe.reading

    def _enter(self, program: _Program) -> None:
        self._programs.append(program)
        self._talking.append(program)

    def _pass_on(self, source: int, sink: int) -> None:
        padding = 0
        while piece := self._read(source):
            if self._filter.ended:
                # Archives are filled up to whole records; that the decompressor finds no fault shows at its end only.
                padding += len(piece)
                if padding > _MAX_PADDING:
                    raise Failure("the archive is refused: something else follows its end")
            for part in self._filter.feed(piece):
                self._write(sink, part)
            self._report(os.lseek(self._archive, 0, os.SEEK_CUR))
        if not self._filter.ended and self._kind:
            self._programs[0].finish()  # knows better what is wrong
        self._filter.finish()

    def _read(self, source: int) -> bytes:
        self._wait(source, select.POLLIN)
        return os.read(source, _CHUNK)

    def _write(self, sink: int, part: memoryview | bytes) -> None:
        rest = memoryview(part)
        while rest:
            try:
                rest = rest[os.write(sink, rest) :]
            except BlockingIOError:
                self._wait(sink, select.POLLOUT)

    def _wait(self, descriptor: int, event: int) -> None:
        """Until the descriptor is ready; hears what the programs say meanwhile, lest they wait for us."""
        while True:
            poll = select.poll()
            poll.register(descriptor, event)
            for program in self._talking:
                poll.register(program.errors, select.POLLIN)
            ready = {number for number, _ in poll.poll(_STALL_SECONDS * 1000)}
            if not ready:
                raise Failure(f"unpacking has come to a standstill for {_STALL_SECONDS:g} seconds")
            self._talking = [program for program in self._talking if program.errors not in ready or program.listen()]
            if descriptor in ready:
                return

    def _report(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, os.fstat(self._archive).st_size)


def _jail(tree: Path) -> Jail:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: _MEMORY}
    bind = Bind(tree, _TREE, writable=True)
    return Jail(
        *(0, 0),
        user="nobody",
        capabilities=_RIGHTS,
        network=False,
        binds=(bind,),
        tmp_size=0,
        proc=False,
        alone=True,
        limits=limits,
    )
