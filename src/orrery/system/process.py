# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one place that starts programs.

`run` is for programs that do a thing and end; `spawn` for those that stay (QEMU, nginx, dnsmasq) and may outlive us.
Programs are argument lists, named, timed and logged with secrets taken out; secrets themselves go through `input` or a
descriptor, never through arguments or environment. A process is known by its pid and start time, so that a number that
the kernel gave to somebody else is never taken for it.
"""

import contextlib
import json
import os
import select
import selectors
import shutil
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from orrery.errors import Failure
from orrery.system import launch
from orrery.system.jail import Jail
from orrery.system.mounts import Shown

_log = structlog.get_logger("orrery.process")

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
_CHUNK: Final = 1 << 16
_DIE_WITH_US: Final = ("/usr/bin/setpriv", "--pdeathsig", "KILL", "--")
_FRESH: Final = "import sys; sys.path.append(sys.argv.pop(1)); from orrery.system import launch; launch.main()"
_OURS: Final = str(Path(launch.__file__).parents[2])
_FIRST_FAKE_PID: Final = 1 << 30  # far above the kernel's highest pid


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process, told apart from a later one of the same number by its start time in clock ticks since boot."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended; `returncode` is negative for a signal."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Call:
    """A program that was to be started, as a recorder sees it."""

    kind: str  # "run" or "spawn"
    argv: tuple[str, ...]
    name: str
    input: bytes | None = None
    jail: Jail | None = None


@dataclass
class Recorder:
    """Stands in for the machine: notes the calls and answers instead of running anything.

    `reply` gives the result of a `run`; without it every program ends well and silently. Spawned programs count as
    alive until they are signalled to end.
    """

    reply: Callable[[Call], Completed] | None = None
    calls: list[Call] = field(default_factory=list)
    running: set[ProcessId] = field(default_factory=set)

    def ran(self, call: Call) -> Completed:
        self.calls.append(call)
        return self.reply(call) if self.reply else Completed(call.argv, 0)

    def spawned(self, call: Call) -> ProcessId:
        self.calls.append(call)
        process = ProcessId(_FIRST_FAKE_PID + len(self.calls), 1)
        self.running.add(process)
        return process


recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
"""Set in a test (or a node that must not touch its machine) to record instead of run."""


@contextlib.contextmanager
def recording(reply: Callable[[Call], Completed] | None = None) -> Iterator[Recorder]:
    """Record all programs started in this context."""
    made = Recorder(reply)
    token = recorder.set(made)
    try:
        yield made
    finally:
        recorder.reset(token)


# --- programs that end


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    name: str | None = None,
    timeout: float,
    input: bytes | None = None,  # noqa: A002  (the word that everybody knows from subprocess)
    check: bool = True,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    redact: Sequence[str] = (),
    stdout: int | None = None,
    on_output: Callable[[bytes], None] | None = None,
    most: int | None = None,
) -> Completed:
    """Run a program to its end; `timeout` in seconds.

    The child sees a small fixed environment plus `env`, and dies with us. `stdout` sends its output to a descriptor;
    `on_output` gets each piece of output as it comes (progress). Of output and errors the first `most` bytes are
    kept, for programs that strangers made. `redact` are texts to keep out of logs and errors.
    Raises Failure with the last line of its standard error when it is missing, ends badly (and `check`), or takes too
    long; any exception here, also one from a signal handler, kills it.
    """
    arguments = tuple(os.fspath(part) for part in argv)
    title = name or Path(arguments[0]).name
    stand_in = recorder.get()
    started = time.monotonic()
    if stand_in is not None:
        done = stand_in.ran(Call("run", arguments, title, input))
    else:
        child = _popen(arguments, title, pass_fds, env, cwd, stdout, has_input=input is not None)
        try:
            out, error = _converse(child, input, started + timeout, on_output, most)
        except BaseException as problem:
            _kill(child)
            if isinstance(problem, TimeoutError):
                raise Failure(f"{title} did not finish within {timeout:g} seconds") from problem
            raise
        done = Completed(arguments, child.returncode, out, error)
    _log.debug(
        "program ran",
        program=title,
        argv=_redacted(arguments, redact),
        returncode=done.returncode,
        seconds=round(time.monotonic() - started, 3),
    )
    if check and done.returncode != 0:
        raise Failure(_complaint(title, done, redact))
    return done


def find(program: str) -> str:
    """Absolute path of an installed program. Raises Failure when there is none."""
    path = program if program.startswith("/") else shutil.which(program, path=SEARCH_PATH)
    if path is None or not Path(path).exists():
        raise Failure(f"the program '{program}' is not installed; install the package that carries it")
    return path


def _popen(
    argv: tuple[str, ...],
    title: str,
    pass_fds: Sequence[int],
    env: Mapping[str, str] | None,
    cwd: Path | None,
    stdout: int | None,
    *,
    has_input: bool,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [*_DIE_WITH_US, find(argv[0]), *argv[1:]],
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            env={**_ENVIRONMENT, **(env or {})},
            cwd=cwd or "/",
            start_new_session=True,
        )
    except OSError as error:
        raise Failure(f"unable to start {title}: {error.strerror}") from error


def _converse(
    child: subprocess.Popen[bytes],
    data: bytes | None,
    deadline: float,
    on_output: Callable[[bytes], None] | None,
    most: int | None,
) -> tuple[bytes, bytes]:
    """Feed the child and collect what it says, until it has ended. Raises TimeoutError."""
    out, error = bytearray(), bytearray()
    rest = memoryview(data or b"")
    with selectors.DefaultSelector() as selector:
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        for stream, sink in ((child.stdout, out), (child.stderr, error)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, sink)
        while selector.get_map():
            for key, _ in selector.select(_left(deadline)):
                if key.fileobj is child.stdin:
                    rest = _feed(child.stdin, rest)
                    if not rest:
                        selector.unregister(child.stdin)
                        _close(child.stdin)
                    continue
                piece = os.read(key.fd, _CHUNK)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.data is out and on_output is not None:
                    on_output(piece)
                key.data.extend(piece if most is None else piece[: most - len(key.data)])
    try:
        child.wait(_left(deadline))
    except subprocess.TimeoutExpired as problem:
        raise TimeoutError from problem
    _close_all(child)
    return bytes(out), bytes(error)


def _feed(stream: Any, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(stream.fileno(), rest[:_CHUNK]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:  # it ended, or does not want more; its exit status tells
        return memoryview(b"")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signals.SIGKILL)
    child.wait()
    _close_all(child)


def _close_all(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            _close(stream)


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):
        stream.close()


def _redacted(argv: Sequence[str], secrets: Sequence[str]) -> str:
    text = " ".join(argv)
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _complaint(title: str, done: Completed, secrets: Sequence[str]) -> str:
    if done.returncode < 0:
        reason = f"killed by signal {-done.returncode}"
    else:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
    return f"{title} failed: {_redacted([reason], secrets)}"


# --- programs that stay


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    name: str | None = None,
    jail: Jail | None = None,
    view: Sequence[Shown] | None = None,
    cgroups: Sequence[Path] = (),
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Mapping[int, int] | Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    new_session: bool = True,
    die_with_parent: bool = False,
    parent_death_signal: int = signals.SIGKILL,
    redact: Sequence[str] = (),
) -> ProcessId:
    """Start a program that stays, and return once it has really begun (or raise Failure saying at which step it ended).

    `pass_fds` maps numbers in the child to our descriptors (a plain sequence keeps the numbers); 0 to 2 not given are
    /dev/null; all others are closed. With a `jail` the paths in `argv` and `cwd` are those inside it; it has its own
    `cgroups`. With a `view` the program sees these mounts beside the host's, and they end with it. With
    `die_with_parent` it gets `parent_death_signal` when the *thread* that called this ends. Reap it with `reap` when it
    is our child.
    """
    arguments = tuple(os.fspath(part) for part in argv)
    title = name or Path(arguments[0]).name
    stand_in = recorder.get()
    if stand_in is not None:
        return stand_in.spawned(Call("spawn", arguments, title, jail=jail))
    started = time.monotonic()
    mapped = dict(pass_fds) if isinstance(pass_fds, Mapping) else {number: number for number in pass_fds}
    mapped.update({number: fd for number, fd in enumerate((stdin, stdout, stderr)) if fd is not None})
    spec = {
        "argv": [find(arguments[0]), *arguments[1:]],
        "env": {**_ENVIRONMENT, **(env or {})},
        "cwd": cwd,
        "session": new_session,
        "fds": {str(number): fd for number, fd in mapped.items()},
        "parent": os.getpid() if die_with_parent else 0,
        "parent_signal": int(parent_death_signal),
        "jail": jail.describe() if jail else None,
        "view": [each.describe() for each in view] if view is not None else None,
        "cgroups": [str(path) for path in (*cgroups, *(jail.cgroups if jail else ()))],
        "nice": jail.nice if jail else 0,
        "umask": jail.umask if jail else 0o077,
        "limits": [list(pair) for pair in jail.limits.items()] if jail else [],
    }
    process = _start(spec, title)
    _log.info(
        "program started",
        program=title,
        argv=_redacted(arguments, redact),
        pid=process.pid,
        seconds=round(time.monotonic() - started, 3),
    )
    return process


def _start(spec: dict[str, Any], title: str) -> ProcessId:
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    try:
        single = len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
        try:
            pid = _fork(spec, error_write) if single else _launch(spec, error_write)
        except OSError as error:
            raise Failure(f"unable to start {title}: {error.strerror}") from error
        finally:
            os.close(error_write)
        report = b""
        while piece := os.read(error_read, _CHUNK):
            report += piece
    finally:
        os.close(error_read)
    if report:
        os.waitpid(pid, 0)
        problem = json.loads(report)
        raise Failure(f"unable to start {title}: {problem['step']}: {os.strerror(problem['errno'])}")
    return identity(pid) or ProcessId(pid, 0)


def _fork(spec: dict[str, Any], error_fd: int) -> int:
    # Our own handlers must not run in the child: signals wait until it has defaults again.
    before = signals.pthread_sigmask(signals.SIG_BLOCK, signals.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            launch.become(spec, error_fd)
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, before)
    return pid


def _launch(spec: dict[str, Any], error_fd: int) -> int:
    """From a process with threads: a fresh interpreter takes the specification, so that no lock is inherited."""
    fds = dict(spec["fds"])
    descriptor = os.memfd_create("launch", os.MFD_CLOEXEC)
    try:
        floor = max([64, error_fd, descriptor, *fds.values()]) + 1
        moved = {number: floor + 2 + index for index, number in enumerate(fds)}
        os.write(descriptor, json.dumps({**spec, "fds": moved}).encode())
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, floor), (os.POSIX_SPAWN_DUP2, error_fd, floor + 1)]
        actions += [(os.POSIX_SPAWN_DUP2, fds[number], target) for number, target in moved.items()]
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _FRESH, _OURS, str(floor), str(floor + 1)],
            _ENVIRONMENT,
            file_actions=actions,
            setsigmask=[],
            setsigdef=signals.valid_signals() - {signals.SIGKILL, signals.SIGSTOP},
        )
    finally:
        os.close(descriptor)


# --- processes, ours and others'


def identity(pid: int) -> ProcessId | None:
    """The process that has this number now, a zombie included; None when there is none."""
    state = _state(pid)
    return None if state is None else ProcessId(pid, state[1])


def alive(process: ProcessId) -> bool:
    """Whether this very process still runs. A zombie is dead."""
    stand_in = recorder.get()
    if stand_in is not None and process in stand_in.running:
        return True
    state = _state(process.pid)
    return state is not None and state[1] == process.start and state[0] not in "ZX"


def _state(pid: int) -> tuple[str, int] | None:
    """State letter and start time from /proc/PID/stat (proc(5), fields 3 and 22).

    A process whose first thread has ended shows as a zombie, though others may still run and write (field 20 counts
    them): it counts as running until the last one is gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    letter = fields[0].decode()
    return ("R" if letter == "Z" and int(fields[17]) > 1 else letter), int(fields[19])


def session_members(leader: ProcessId) -> list[ProcessId]:
    """The living processes of the session that `leader` began (`spawn` gives each program its own), itself included.

    The kernel gives a leader's number to nobody else while a member lives; a later session of that number begins with a
    leader that is not this one, and then nothing is found.
    """
    present = identity(leader.pid)
    if present is not None and present != leader:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _session(int(entry.name)) == leader.pid:
            member = identity(int(entry.name))
            if member is not None and alive(member):
                found.append(member)
    return found


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def search(argument: str) -> list[ProcessId]:
    """Running processes of our network namespace that were started with exactly this argument.

    Finds a child whose identity could not be written down any more. `argument` must be telling, such as the name of a
    file that carries the root's hash.
    """
    ours = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116
    wanted = os.fsencode(argument)
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            matches = wanted in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if matches and os.stat(f"/proc/{name}/ns/net").st_ino == ours:  # noqa: PTH116
                found.append(identity(int(name)))
        except OSError:  # it ended, or is none of our business
            continue
    return sorted(process for process in found if process is not None and alive(process))


def open_pidfd(process: ProcessId) -> int | None:
    """A descriptor that becomes readable when this very process ends; None when it has ended. The caller closes it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if alive(process):  # asked after opening: from here on the number cannot mean another process
        return descriptor
    os.close(descriptor)
    return None


def signal(process: ProcessId, number: int) -> bool:
    """Send a signal to this very process; False when it is dead already. Raises Failure when it is not ours."""
    stand_in = recorder.get()
    if stand_in is not None and process in stand_in.running:
        if number in (signals.SIGTERM, signals.SIGKILL, signals.SIGINT, signals.SIGQUIT):
            stand_in.running.discard(process)
        return True
    descriptor = open_pidfd(process)
    if descriptor is None:
        return False
    try:
        signals.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise Failure(f"not allowed to send a signal to process {process.pid}") from error
    finally:
        os.close(descriptor)
    return True


_LONGEST_WAIT = 2_000_000.0
"""Seconds; poll(2) takes milliseconds as a C int."""


def wait(process: ProcessId, timeout: float) -> bool:
    """Wait until this very process has ended, whoever its parent is; False after `timeout` seconds."""
    stand_in = recorder.get()
    if stand_in is not None and process in stand_in.running:
        return False
    descriptor = open_pidfd(process)
    if descriptor is None:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(min(max(timeout, 0), _LONGEST_WAIT) * 1000))
    finally:
        os.close(descriptor)


def reap(process: ProcessId) -> int | None:
    """Exit code of our own dead child (negative for a signal), taking it off the process table; None otherwise."""
    if identity(process.pid) != process:
        return None
    try:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if pid else None


def terminate(process: ProcessId, grace: float = 5.0) -> None:
    """End a process: SIGTERM, and SIGKILL after `grace` seconds. Reaps our own child. Raises Failure if it stays."""
    if signal(process, signals.SIGTERM) and not wait(process, grace):
        signal(process, signals.SIGKILL)
        if not wait(process, grace):
            raise Failure(f"process {process.pid} cannot be killed; it hangs in the kernel")
    reap(process)
