# SPDX-License-Identifier: AGPL-3.0-or-later
"""Programs that end, programs that stay, and telling processes apart."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from orrery.errors import Failure
from orrery.system import process
from orrery.system.process import Call, Completed, ProcessId

# A timeout by thread would make every process here one with two threads.
pytestmark = pytest.mark.timeout(60, method="signal")

LOOK = """
import json, os
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # the one that listed them
        pass
print(json.dumps({"fds": fds, "sid": os.getsid(0), "pid": os.getpid(), "ppid": os.getppid(), "cwd": os.getcwd(),
    "env": dict(os.environ)}))
"""


@pytest.fixture
def sleeper() -> Iterator[ProcessId]:
    started = process.spawn(["sleep", "60"])
    yield started
    process.terminate(started)


@pytest.fixture(params=[pytest.param("fork", marks=pytest.mark.alone), "launcher"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of starting: from a process with one thread, and from one with two."""
    if request.param == "fork":
        assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
        yield "fork"
        return
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    yield "launcher"
    stop.set()
    thread.join()


def read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as handle:
        return handle.read()


# --- run


def test_run_gives_output_and_feeds_input() -> None:
    big = os.urandom(1 << 20)
    assert process.run(["cat"], timeout=20, input=big).stdout == big
    done = process.run(["sh", "-c", "echo out; echo bad >&2"], timeout=5)
    assert (done.text, done.stderr, done.returncode) == ("out\n", b"bad\n", 0)
    assert process.run(["true"], timeout=5, input=big).returncode == 0  # it does not read its input


def test_run_sees_a_small_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_PARENT", "x")
    names = {line.split("=")[0] for line in process.run(["env"], timeout=5, env={"MORE": "1"}).text.splitlines()}
    assert names <= {"PATH", "LANG", "LC_ALL", "MORE", "PWD", "_", "SHLVL"}
    assert "MORE" in names


def test_run_fails_with_the_last_line_of_stderr() -> None:
    with pytest.raises(Failure, match=r"^making failed: no such thing$"):
        process.run(["sh", "-c", "echo noise >&2; echo no such thing >&2; exit 3"], name="making", timeout=5)
    with pytest.raises(Failure, match="sh failed: exit code 4"):
        process.run(["sh", "-c", "exit 4"], timeout=5)
    with pytest.raises(Failure, match="sh failed: killed by signal 9"):
        process.run(["sh", "-c", "kill -9 $$"], timeout=5)
    assert process.run(["sh", "-c", "exit 4"], timeout=5, check=False).returncode == 4


def test_run_missing_program() -> None:
    with pytest.raises(Failure, match="'orrery-no-such-program' is not installed"):
        process.run(["orrery-no-such-program"], timeout=5)


def test_run_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(Failure, match=r"sh did not finish within 0\.3 seconds"):
        process.run(["sh", "-c", f"sleep 50 & echo $! > {note}; wait"], timeout=0.3)
    assert time.monotonic() - started < 5
    grandchild = process.identity(int(note.read_text()))
    assert grandchild is None or process.wait(grandchild, 2)


def test_run_kills_the_child_when_interrupted() -> None:
    def interrupt(_piece: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(["sh", "-c", "echo $$; exec sleep 50"], timeout=60, on_output=interrupt)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "sleep" in Path(f"/proc/{pid}/comm").read_text()]


def test_run_streams_output_as_it_comes() -> None:
    pieces: list[bytes] = []
    process.run(["sh", "-c", "printf 1; sleep 0.2; printf 2"], timeout=5, on_output=pieces.append)
    assert pieces == [b"1", b"2"]


def test_run_keeps_no_more_than_is_wanted() -> None:
    done = process.run(["sh", "-c", "yes | head -c 3000000; yes 2 | head -c 3000000 >&2"], timeout=20, most=1000)
    assert (len(done.stdout), len(done.stderr)) == (1000, 1000)


def test_run_passes_descriptors_and_output_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "in").open("w+b") as source:
        source.write(b"hello")
        source.flush()
        source.seek(0)
        done = process.run(
            ["cat", f"/proc/self/fd/{source.fileno()}"], timeout=5, pass_fds=[source.fileno()], stdout=out.fileno()
        )
    assert done.stdout == b""
    assert (tmp_path / "out").read_bytes() == b"hello"


def test_secrets_stay_out_of_log_and_error() -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(Failure) as caught:
        process.run(["sh", "-c", "echo hunter2 is wrong >&2; exit 1"], timeout=5, redact=["hunter2"])
    assert "hunter2" not in caught.value.message
    assert "*** is wrong" in caught.value.message
    assert logs[0]["program"] == "sh"
    assert "hunter2" not in str(logs)
    assert logs[0]["returncode"] == 1


def test_a_program_dies_with_us(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        "from orrery.system import process\n"
        f"process.run(['sh', '-c', 'echo $$ > {note}.new; mv {note}.new {note}; exec sleep 50'], timeout=60)"
    )
    parent = process.spawn([sys.executable, "-c", script], env={"PYTHONPATH": str(Path("src").resolve())})
    while not note.exists():
        time.sleep(0.01)
    child = process.identity(int(note.read_text()))
    assert child is not None
    process.signal(parent, signal.SIGKILL)
    assert process.wait(child, 5)
    process.reap(parent)


# --- spawn


def test_spawn_maps_descriptors_and_closes_the_others(way: str) -> None:
    read, write = os.pipe()
    extra = os.open("/dev/zero", os.O_RDONLY)
    other = os.open("/dev/full", os.O_RDONLY)
    os.set_inheritable(other, True)
    # 5 and 6 are crossed on purpose: settling one must not overwrite the other.
    first, second = os.dup2(extra, 55), os.dup2(write, 56)
    child = process.spawn([sys.executable, "-c", LOOK], stdout=write, pass_fds={55: second, 56: first})
    for fd in (write, extra, other, first, second):
        os.close(fd)
    seen = json.loads(read_all(read))
    assert process.wait(child, 10)
    assert process.reap(child) == 0
    links = {int(number): link for number, link in seen["fds"].items()}
    assert links.keys() == {0, 1, 2, 55, 56}
    assert links[0] == links[2] == "/dev/null"
    assert links[55].startswith("pipe:")
    assert links[56] == "/dev/zero"
    assert seen["sid"] == seen["pid"] == child.pid
    assert seen["cwd"] == "/"
    assert set(seen["env"]) <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE"}


def test_spawn_gives_default_signals(way: str, tmp_path: Path) -> None:
    out = tmp_path / "status"
    with out.open("wb") as handle:
        child = process.spawn(["cat", "/proc/self/status"], stdout=handle.fileno())
    assert process.wait(child, 5)
    process.reap(child)
    fields = dict(line.split(":", 1) for line in out.read_text().splitlines())
    of_the_c_library = 1 << 31 | 1 << 32  # signals 32 and 33, which posix_spawn leaves ignored until threads begin
    assert int(fields["SigIgn"], 16) & ~of_the_c_library == 0
    assert int(fields["SigBlk"], 16) == 0


def test_spawn_reports_what_went_wrong(way: str, tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(Failure, match=r"unable to start broken: execute .*/broken: No such file"):
        process.spawn([str(program)])
    with pytest.raises(Failure, match=r"unable to start sleep: .*nowhere"):
        process.spawn(["sleep", "1"], cwd="/nowhere")
    with pytest.raises(Failure, match="is not installed"):
        process.spawn(["orrery-no-such-program"])


def test_spawned_programs_outlive_their_parent_unless_asked(tmp_path: Path) -> None:
    notes = [tmp_path / "stays", tmp_path / "dies"]
    script = (
        "import time, pathlib\n"
        "from orrery.system import process\n"
        f"a = process.spawn(['sleep', '50']); b = process.spawn(['sleep', '50'], die_with_parent=True)\n"
        f"pathlib.Path('{notes[0]}').write_text(f'{{a.pid}} {{a.start}}')\n"
        f"pathlib.Path('{notes[1]}').write_text(f'{{b.pid}} {{b.start}}')\n"
        "time.sleep(50)"
    )
    parent = process.spawn([sys.executable, "-c", script], env={"PYTHONPATH": str(Path("src").resolve())})
    while not notes[1].exists() or len(notes[1].read_text().split()) < 2:
        time.sleep(0.01)
    stays, dies = (ProcessId(*map(int, note.read_text().split())) for note in notes)
    process.signal(parent, signal.SIGKILL)
    process.wait(parent, 5)
    process.reap(parent)
    assert process.wait(dies, 5)
    assert process.alive(stays)
    process.terminate(stays)
    assert not process.alive(stays)


# --- processes


def test_a_process_lives_as_long_as_its_last_thread() -> None:
    """The first thread ends, another one goes on: shown as a zombie, yet it still runs and cannot be reaped."""
    script = """if True:
        import ctypes, os, threading, time
        def last():
            time.sleep(1)
            os._exit(3)
        threading.Thread(target=last).start()
        ctypes.CDLL(None).pthread_exit(None)
    """
    child = process.spawn([sys.executable, "-c", script])
    while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]:
        time.sleep(0.01)
    assert process.alive(child)
    assert process.reap(child) is None
    assert not process.wait(child, 0)
    assert process.wait(child, 10)
    assert process.reap(child) == 3


def test_a_zombie_is_dead(sleeper: ProcessId) -> None:
    assert process.alive(sleeper)
    assert process.identity(sleeper.pid) == sleeper
    assert not process.wait(sleeper, 0.01)
    assert process.reap(sleeper) is None
    assert process.signal(sleeper, signal.SIGKILL)
    assert process.wait(sleeper, 5)
    assert process.identity(sleeper.pid) == sleeper  # still in the table
    assert not process.alive(sleeper)
    assert not process.signal(sleeper, signal.SIGTERM)
    assert process.reap(sleeper) == -signal.SIGKILL
    assert process.identity(sleeper.pid) is None
    assert process.wait(sleeper, 0)


def test_a_reused_number_is_another_process(sleeper: ProcessId) -> None:
    earlier = ProcessId(sleeper.pid, sleeper.start - 1)
    assert not process.alive(earlier)
    assert not process.signal(earlier, signal.SIGKILL)
    assert process.wait(earlier, 0)
    assert process.reap(earlier) is None
    assert process.alive(sleeper)


def test_search_finds_by_a_whole_argument(tmp_path: Path) -> None:
    mark = f"orrery-test-{os.getpid()}"
    child = process.spawn(["sh", "-c", "while :; do sleep 0.1; done", mark])
    assert process.search(mark) == [child]
    assert process.search(mark[:-1]) == []
    process.signal(child, signal.SIGKILL)
    process.wait(child, 5)
    assert process.search(mark) == []
    process.reap(child)


def test_names_with_spaces_and_brackets_do_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    child = process.spawn([str(program), "50"])
    assert process.alive(child)
    process.terminate(child)


def test_terminate_kills_who_does_not_listen() -> None:
    read, write = os.pipe()
    child = process.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=write)
    os.close(write)
    assert os.read(read, 10) == b"ready\n"
    os.close(read)
    process.terminate(child, grace=0.2)
    assert process.identity(child.pid) is None


# --- recording


def test_recorder_stands_in_for_the_machine() -> None:
    def reply(call: Call) -> Completed:
        return Completed(call.argv, 0, b"answer")

    with process.recording(reply) as record:
        assert process.run(["rm", "-rf", "/"], timeout=1, input=b"x").stdout == b"answer"
        child = process.spawn(["qemu"], name="guest 100")
        assert process.alive(child)
        assert not process.wait(child, 0)
        process.terminate(child)
        assert not process.alive(child)
    assert [(call.kind, call.argv, call.name, call.input) for call in record.calls] == [
        ("run", ("rm", "-rf", "/"), "rm", b"x"),
        ("spawn", ("qemu",), "guest 100", None),
    ]
    assert process.run(["echo", "real"], timeout=5).text == "real\n"


def test_recorded_failure_is_a_failure() -> None:
    with process.recording(lambda call: Completed(call.argv, 1, b"", b"full")), pytest.raises(Failure, match="full"):
        process.run(["qemu-img"], timeout=1)
