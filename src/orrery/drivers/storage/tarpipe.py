# SPDX-License-Identifier: AGPL-3.0-or-later
"""A stream of files into a tree: a program that gives it, the judge (`tarstream`), and GNU tar in a jail.

Tar is root in its jail, with the capabilities that give files to others and nothing else: no device can be made,
nothing be mounted, nobody be signalled, and nothing but the tree be reached.
"""

import contextlib
import fcntl
import os
import resource
import select
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orrery.drivers.storage import untrusted
from orrery.drivers.storage.tarstream import TarFilter
from orrery.errors import Failure, NoSpace
from orrery.system import process
from orrery.system.jail import Bind, Capability, Jail

SEEN_TREE: Final = "/tree"
XATTRS: Final = ("--acls", "--xattrs", "--xattrs-include=security.capability", "--xattrs-include=user.*")

_TAR: Final = (
    *("tar", "--extract", "--file=-", f"--directory={SEEN_TREE}", "--numeric-owner", "--same-owner"),
    *("--preserve-permissions", *XATTRS, "--warning=no-timestamp", "--warning=no-unknown-keyword"),
)
_RIGHTS: Final = frozenset(
    (Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FOWNER, Capability.FSETID, Capability.SETFCAP)
)
_PIPE: Final = 1 << 20
_CHUNK: Final = 1 << 20
_MEMORY: Final = 4 << 30
_MAX_COMPLAINTS: Final = 16 << 10
_MAX_PADDING: Final = 16 << 20
_STALL_SECONDS: Final = 900.0
_SHORT_WRITE: Final = "Wrote only "
"""Tar's word when there was room for a part of a block."""
_UNHELPFUL: Final = ("Exiting with failure status", "Removing leading", "Error is not recoverable")


@dataclass(frozen=True, slots=True)
class Producer:
    """A program that writes the stream to its standard output; `stdin` is one of our descriptors, if it has any."""

    argv: tuple[str, ...]
    jail: Jail
    stdin: int | None = None


def run(
    source: Producer | int, tree: Path, judge: TarFilter, what: str, report: Callable[[], None] | None = None
) -> None:
    """Passes a tar archive on into the folder `tree`: what a program writes, or what an open file holds.

    `report` is called now and then; what it raises ends it. `what` begins the message of a failure. Raises NoSpace,
    Failure.
    """
    with ExitStack() as stack:
        _Passage(source, tree, judge, what, report, stack).run()


def jail_with(tree: Path, *, writable: bool) -> Jail:
    """A place for tar that shows `tree` at `SEEN_TREE`, with the rights to all files in it."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: _MEMORY}
    return Jail(
        *(0, 0),
        user="nobody",
        capabilities=_RIGHTS,
        network=False,
        binds=(Bind(tree, SEEN_TREE, writable=writable),),
        tmp_size=0,
        proc=False,
        alone=True,
        limits=limits,
    )


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

    def __init__(
        self, argv: tuple[str, ...], jail: Jail, stack: ExitStack, *, stdin: int | None, stdout: int | None
    ) -> None:
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

    def finish(self, what: str) -> None:
        """Raises NoSpace or Failure, saying `what` could not be done, unless it ends well."""
        while self.listen():
            pass
        if not process.wait(self._child, _STALL_SECONDS):
            raise Failure(f"{self.name} does not end")
        code = process.reap(self._child)
        if code == 0:
            return
        lines = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if line and not any(words in line for words in _UNHELPFUL)]
        if any(untrusted.is_full(line) or _SHORT_WRITE in line for line in lines):
            raise NoSpace("there is no space left for the files; choose a larger size, or free some space")
        reason = lines[0] if lines else f"{self.name} ended with {code}"
        raise Failure(f"{what}: {reason.removeprefix(f'{process.find(self.name)}: ')}")


class _Passage:
    """One stream on its way through the programs, which end with `stack`."""

    def __init__(
        self,
        source: Producer | int,
        tree: Path,
        judge: TarFilter,
        what: str,
        report: Callable[[], None] | None,
        stack: ExitStack,
    ) -> None:
        self._source = source
        self._tree = tree
        self._judge = judge
        self._what = what
        self._report = report
        self._stack = stack
        self._programs: list[_Program] = []
        self._talking: list[_Program] = []

    def run(self) -> None:
        source = self._source if isinstance(self._source, int) else self._produce(self._source)
        pipe = _Pipe(self._stack)
        os.set_blocking(pipe.writing, False)
        tar = _Program(_TAR, jail_with(self._tree, writable=True), self._stack, stdin=pipe.reading, stdout=None)
        self._enter(tar)
        pipe.close(pipe.reading)
        try:
            self._pass_on(source, pipe.writing)
        except BrokenPipeError:
            tar.finish(self._what)
            raise Failure(f"{self._what}: tar ended before it") from None
        pipe.close(pipe.writing)
        for program in self._programs:
            program.finish(self._what)

    def _produce(self, producer: Producer) -> int:
        pipe = _Pipe(self._stack)
        program = _Program(producer.argv, producer.jail, self._stack, stdin=producer.stdin, stdout=pipe.writing)
        self._enter(program)
        pipe.close(pipe.writing)
        return pipe.reading

    def _enter(self, program: _Program) -> None:
        self._programs.append(program)
        self._talking.append(program)

    def _pass_on(self, source: int, sink: int) -> None:
        padding = 0
        while piece := self._read(source):
            if self._judge.ended:
                # Archives are filled up to whole records; that the producer finds no fault shows at its end only.
                padding += len(piece)
                if padding > _MAX_PADDING:
                    raise Failure("the archive is refused: something else follows its end")
            for part in self._judge.feed(piece):
                self._write(sink, part)
            if self._report is not None:
                self._report()
        if not self._judge.ended and not isinstance(self._source, int):
            self._programs[0].finish(self._what)  # knows better what is wrong
        self._judge.finish()

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
                raise Failure(f"no byte could be passed on for {_STALL_SECONDS:g} seconds")
            self._talking = [program for program in self._talking if program.errors not in ready or program.listen()]
            if descriptor in ready:
                return
