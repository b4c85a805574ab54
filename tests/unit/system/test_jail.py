# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a jailed child sees and may do: tried with real children."""

import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orrery.errors import Failure
from orrery.system import process
from orrery.system.jail import Account, Bind, Capability, Jail, account, unlimited_core_less

pytestmark = [
    pytest.mark.timeout(60, method="signal"),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can jail a child"),
]

UID, GID = 54321, 54322
# Debian's interpreter is not installed everywhere; the shell and the core utilities are.
LOOK = r"""
cd /; echo "uid=$(id -u) gid=$(id -g) groups=$(id -G) umask=$(umask)"
echo "root=$(ls -1 / | tr '\n' ' ')"; echo "dev=$(ls -1 /dev | tr '\n' ' ')"
echo "fds=$(ls -1 /proc/self/fd | tr '\n' ' ')"
echo "procs=$(ls -1d /proc/[0-9]* | wc -l)"; echo "mounts=$(wc -l </proc/self/mounts)"
grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -d '\t' | tr ':' '='
for place in / /usr /dev /etc /data /read /tmp; do (: >$place/probe) 2>/dev/null && echo "write $place=yes"; done
(: <>/dev/null) && echo "null=yes"
echo "name=$(id -un)"; echo "cores=$(ulimit -c)"
echo "secret=$(cat /root/.bashrc /etc/shadow 2>&1 | grep -c 'No such')"
ls /data 2>/dev/null; cat /data/hello 2>/dev/null
"""


@pytest.fixture(params=["fork", "launcher"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of starting: from a process with one thread, and from one with two."""
    if request.param == "fork":
        yield "fork"
        return
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    yield "launcher"
    stop.set()
    thread.join()


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder that only root may enter, as a checkout below /root is."""
    folder = tmp_path / ("a" * 120) / "closed"
    folder.mkdir(parents=True)
    tmp_path.chmod(0o700)
    return folder


def look(jail: Jail, script: str = LOOK) -> dict[str, str]:
    read, write = os.pipe()
    child = process.spawn(["/bin/sh", "-c", script], jail=jail, stdout=write, stderr=write)
    os.close(write)
    with os.fdopen(read, "rb") as handle:
        text = handle.read().decode()
    assert process.wait(child, 10)
    process.reap(child)
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value for key, _, value in pairs}


def test_a_child_sees_nothing_but_its_own(way: str, closed: Path) -> None:
    (closed / "data").mkdir()
    os.chown(closed / "data", UID, GID)
    (closed / "read").mkdir()
    (closed / "read").chmod(0o777)
    jail = Jail(
        UID,
        GID,
        user="guest",
        groups=(777,),
        binds=(
            Bind(closed / "data", "/data", writable=True),
            Bind(closed / "read", "/read"),
            Bind(closed / "absent", "/absent", optional=True),
        ),
        limits={**unlimited_core_less()},
    )
    seen = look(jail)
    assert seen["uid"] == f"{UID} gid={GID} groups={GID} 777 umask=0077"
    names = set(seen["root"].split())
    assert {"data", "dev", "etc", "proc", "read", "tmp", "usr"} <= names
    assert not names & {"absent", "home", "root", "boot", "sys", "work", "oldroot", "a" * 120}
    assert set(seen["dev"].split()) == {"null", "zero", "full", "random", "urandom", "fd"}
    assert set(seen["fds"].split()) <= {"0", "1", "2", "3"}
    assert int(seen["procs"]) <= 4
    assert {key for key in seen if key.startswith("write")} == {"write /data", "write /tmp"}
    assert seen["null"] == "yes"
    assert seen["NoNewPrivs"] == "1"
    assert {seen[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert seen["name"] == "guest"
    assert seen["cores"] == "0"
    assert seen["secret"] == "2"
    assert (closed / "data" / "probe").stat().st_uid == UID


def test_our_own_view_is_untouched() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    look(Jail(UID, GID), "true")
    assert Path("/proc/self/mountinfo").read_text() == before


def test_only_the_capabilities_named_are_kept(way: str) -> None:
    seen = look(Jail(UID, GID, capabilities=frozenset({Capability.NET_BIND_SERVICE})))
    bit = f"{1 << Capability.NET_BIND_SERVICE:016x}"
    assert {seen[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {bit}


def test_without_network_there_is_none() -> None:
    script = "tail -n +3 /proc/self/net/dev | wc -l; readlink /proc/self/ns/net"
    alone, shared = look(Jail(UID, GID, network=False), script), look(Jail(UID, GID), script)
    ours = str(Path("/proc/self/ns/net").readlink())
    assert ours in shared
    assert ours not in alone


def test_devices_named_are_there_for_the_user() -> None:
    seen = look(Jail(UID, GID, devices=("net/tun",)), "ls -l /dev/net/tun; (: <>/dev/net/tun) && echo open=yes")
    assert seen["open"] == "yes"


def test_limits_are_lowered_to_what_we_may_give() -> None:
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    script = "echo files=$(ulimit -n)"
    assert look(Jail(UID, GID, limits={resource.RLIMIT_NOFILE: ours * 2}), script)["files"] == str(ours)
    assert look(Jail(UID, GID, limits={resource.RLIMIT_NOFILE: 100}), script)["files"] == "100"


def test_no_tmp_and_no_proc_when_not_wanted() -> None:
    seen = look(Jail(UID, GID, tmp_size=0, proc=False), "echo root=$(ls /)")
    assert not {"tmp", "proc"} & set(seen["root"].split())


def test_socket_in_a_folder_that_only_root_may_enter(way: str, closed: Path) -> None:
    """A long path below a closed folder: the child has a short one, we use our descriptor."""
    (closed / "run").mkdir()
    jail = Jail(UID, GID, binds=(Bind(closed / "run", "/run/own"),))
    server = socket.socket(socket.AF_UNIX)
    folder = os.open(closed / "run", os.O_PATH)
    server.bind(f"/proc/self/fd/{folder}/s")
    (closed / "run" / "s").chmod(0o666)
    seen = look(jail, "test -S /run/own/s && echo there=yes")
    assert seen["there"] == "yes"
    server.close()
    os.close(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"binds": (Bind(Path("/no/such/folder"), "/x"),)}, r"bind '/no/such/folder': No such file"),
        ({"devices": ("no-such-device",)}, r"/dev/no-such-device: No such file"),
        ({"cgroups": (Path("/sys/fs/cgroup/no-such/cgroup.procs"),)}, r"no-such/cgroup.procs: "),
    ],
)
def test_a_failed_step_is_named(way: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure, match=message):
        process.spawn(["/bin/true"], jail=replace(Jail(UID, GID), **change))


def test_the_program_must_exist_inside(closed: Path) -> None:
    program = closed / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(Failure, match=r"execute .*No such file"):
        process.spawn([program], jail=Jail(UID, GID))


def test_description_is_plain_json() -> None:
    described = Jail(1, 2, capabilities=frozenset(Capability), binds=(Bind(Path("/a"), "/b"),)).describe()
    assert json.loads(json.dumps(described)) == described


def test_account_takes_the_first_that_exists() -> None:
    assert account("no-such-user-here", "root") == Account("root", 0, 0)
    assert account("no-such-user-here") == Account("nobody", 65534, 65534)


@pytest.mark.alone
def test_cost_of_a_jail(capsys: pytest.CaptureFixture[str]) -> None:
    """A start in a jail must stay cheap: a guest's start is to add less than 100 ms to QEMU's own."""

    def cost(jail: Jail | None) -> float:
        times = []
        for _ in range(15):
            started = time.perf_counter()
            child = process.spawn(["/bin/true"], jail=jail)
            times.append(time.perf_counter() - started)
            process.wait(child, 5)
            process.reap(child)
        return statistics.median(times) * 1000

    assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
    plain, jailed, alone = cost(None), cost(Jail(UID, GID)), cost(Jail(UID, GID, network=False))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    launched = cost(Jail(UID, GID))
    stop.set()
    thread.join()
    with capsys.disabled():
        print(
            f"\nms to start a program: plain {plain:.1f}, jailed {jailed:.1f}, without network {alone:.1f}, "
            f"jailed from a process with threads {launched:.1f}",
            file=sys.stderr,
        )
    assert jailed < 50
    assert launched < 150


ALONE = Jail(0, 0, network=False, proc=False, tmp_size=0, alone=True)


def test_alone_it_can_signal_nobody(way: str) -> None:
    """Not even as root: all of its processes are its own. How it ends is told as ever."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    script = 'echo "pid $$"; kill -9 "$1" 2>/dev/null && echo KILLED; kill -9 -1; exit 7'
    with process_of_root() as victim:
        child = process.spawn(["sh", "-c", script, "sh", str(victim.pid)], jail=ALONE, stdout=writing)
        os.close(writing)
        with os.fdopen(reading) as said:
            assert said.read() == "pid 1\n"
        assert process.wait(child, 30)
        assert process.reap(child) == 7
        assert process.alive(victim)


@contextlib.contextmanager
def process_of_root() -> Iterator[process.ProcessId]:
    made = process.spawn(["sleep", "600"])
    try:
        yield made
    finally:
        process.terminate(made)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_alone_it_ends_with_what_waits_for_it(way: str, number: int) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = process.spawn(["sh", "-c", "echo begun; sleep 600"], jail=ALONE, stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.readline() == "begun\n"
        process.signal(child, number)
        assert said.read() == "", "nobody has the pipe any more"
    assert process.wait(child, 30)
    assert process.reap(child) == -number


def test_alone_what_cannot_start_is_told(way: str, tmp_path: Path) -> None:
    (tmp_path / "unseen").touch(mode=0o755)
    with pytest.raises(Failure, match="execute"):
        process.spawn([tmp_path / "unseen"], jail=ALONE)
