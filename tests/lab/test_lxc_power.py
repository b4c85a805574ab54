# SPDX-License-Identifier: AGPL-3.0-or-later
"""Real containers: how they begin, end, stand still, and what is left of those that are killed."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.lxc_lab import Lab, until

from orrery.drivers.lxc.records import groups
from orrery.errors import Failure
from orrery.model.guest import GuestConfig
from orrery.system import process
from orrery.system.mounts import ContainerMount

pytestmark = pytest.mark.root


def test_a_container_lives_and_ends(lxc: Lab) -> None:
    lxc.start(100)
    driver = lxc.driver
    assert driver.state(100) == "running"
    assert list(driver.running()) == [100]
    assert lxc.logged == []
    assert lxc.out(100, "id -u; cat /proc/1/comm; cat /proc/sys/kernel/hostname; nproc").split() == [
        "0",
        "init",
        "lab",
        "1",
    ]
    assert lxc.out(100, "cat /proc/self/uid_map").split() == ["0", "100000", "65536"]
    assert lxc.run(100, "sh", "-c", "cat; exit 3", input=b"spoken").returncode == 3
    assert lxc.run(100, "cat", input=b"spoken").stdout == b"spoken"
    assert lxc.run(100, "no-such-program").returncode == 127
    os.environ["ORRERY_TEST_SECRET"] = "x"
    names = dict(line.split("=", 1) for line in lxc.run(100, "env", env={"A": "b c"}).text.splitlines())
    del os.environ["ORRERY_TEST_SECRET"]
    assert names.keys() - {"container", "PWD", "SHLVL"} == {"PATH", "HOME", "TERM", "A"}
    assert names["A"] == "b c"
    usage = driver.usage(100)
    assert 0 < usage.memory < 64 << 20
    assert usage.cpu > 0
    assert 0 < usage.disk < usage.disk_size <= 24 << 20
    assert [link.name for link in driver.interfaces(100)] == ["lo"]
    with pytest.raises(Failure, match="CT 100 already running"):
        lxc.start(100)
    with pytest.raises(Failure, match="CT 100 is running"):
        driver.forget(100)
    assert driver.stop(100)
    assert driver.state(100) == "stopped"
    assert not driver.stop(100)
    assert driver.leftovers() == [100]
    with pytest.raises(Failure, match="CT 100 not running"):
        lxc.run(100, "true")
    driver.forget(100)
    assert lxc.traces() == []


def test_a_suspended_container_stands_still_and_can_be_stopped(lxc: Lab) -> None:
    lxc.start(100)
    lxc.run(100, "sh", "-c", "(while :; do :; done) >/dev/null 2>&1 &")
    lxc.driver.freeze(100)
    assert lxc.driver.state(100) == "frozen"
    before = lxc.driver.usage(100).cpu
    with pytest.raises(Failure, match="CT 100 is suspended; resume it first"):
        lxc.run(100, "true")
    assert lxc.driver.usage(100).cpu == before
    lxc.driver.thaw(100)
    assert lxc.driver.state(100) == "running"
    until("it goes on", lambda: lxc.driver.usage(100).cpu > before)
    lxc.driver.freeze(100)
    assert lxc.driver.stop(100)


def test_its_system_ends_and_starts_again_when_asked(lxc: Lab) -> None:
    lxc.start(100)
    first, monitor = lxc.driver.init_pid(100), lxc.driver.find(100)
    lxc.driver.ask_to_reboot(100)
    until("another first process", lambda: lxc.driver.init_pid(100) not in (None, first))
    assert lxc.driver.find(100) == monitor
    until("it answers", lambda: lxc.run(100, "true").returncode == 0)
    assert lxc.out(100, "nproc") == "1"  # its limits are there again
    first = lxc.driver.init_pid(100)
    lxc.run(100, "reboot")  # from inside
    until("another first process", lambda: lxc.driver.init_pid(100) not in (None, first))
    until("it answers", lambda: lxc.run(100, "true").returncode == 0)
    lxc.driver.ask_to_stop(100)
    assert lxc.driver.wait_end(100, 60)
    assert lxc.driver.leftovers() == [100]


def test_a_changed_container_ends_when_it_restarts_itself(lxc: Lab) -> None:
    lxc.start(100)
    lxc.driver.restart_afresh(100)
    lxc.run(100, "reboot")
    assert lxc.driver.wait_end(100, 60)
    assert lxc.driver.wants_restart(100)
    lxc.driver.forget_restart(100)
    lxc.driver.forget_restart(100)
    assert not lxc.driver.wants_restart(100)
    lxc.driver.forget(100)
    lxc.start(100)
    lxc.driver.restart_afresh(100)
    lxc.driver.ask_to_stop(100)
    assert lxc.driver.wait_end(100, 60)
    assert not lxc.driver.wants_restart(100)


def test_a_killed_monitor_takes_everything_with_it(lxc: Lab) -> None:
    lxc.start(100)
    lxc.run(100, "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
    monitor, first = lxc.driver.find(100), lxc.driver.init_pid(100)
    assert monitor is not None
    assert first is not None
    begun = process.identity(first)
    assert begun is not None
    group, _ = groups(lxc.driver.paths, 100)
    assert len(group.pids()) >= 3
    os.kill(monitor.pid, signal.SIGKILL)
    assert process.wait(monitor, 30)
    assert process.wait(begun, 30)
    assert lxc.driver.leftovers() == [100]
    lxc.driver.forget(100)
    assert lxc.traces() == []
    lxc.start(100)


def test_a_container_without_record_is_found_by_its_group(lxc: Lab) -> None:
    lxc.start(100)
    monitor = lxc.driver.find(100)
    (lxc.driver.folder(100) / "container.json").unlink()
    assert lxc.driver.find(100) == monitor
    record = lxc.driver.record(100)
    assert record is not None
    assert record.root == (100000, 100000)
    assert lxc.driver.stop(100)
    assert lxc.driver.find(100) is None


def break_init(tree: Path, script: str | None) -> None:
    init = tree / "sbin/init"
    init.unlink()
    if script is not None:
        init.write_text(f"#!/bin/sh\n{script}\n")
        init.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo the disk is sad; exit 3", "the disk is sad"),
        (None, 'No such file or directory - Failed to exec "/sbin/init"'),
    ],
)
def test_an_init_that_ends_at_once_is_told_and_leaves_nothing(lxc: Lab, script: str | None, reason: str) -> None:
    break_init(lxc.tree(100), script)
    with pytest.raises(Failure, match="start failed: ") as told:
        lxc.start(100, lxc.folder_root(100))
    assert reason in told.value.message
    assert lxc.traces() == []


def test_its_logs_do_not_grow_for_ever(lxc: Lab) -> None:
    lxc.start(100)
    lxc.out(100, "yes a-line-of-the-console | head -c 3000000 >/dev/console")
    folder = lxc.driver.folder(100)
    until("the console is read", lambda: "a-line" in lxc.driver.last_words(100))
    assert (folder / "console.log").stat().st_size <= 256 << 10
    for name in ("lxc.log", "lxc.err"):
        (folder / name).write_bytes(b"x" * (1 << 20))
    lxc.out(100, "true")
    assert all((folder / name).stat().st_size < 1 << 20 for name in ("lxc.log", "lxc.err"))


def test_a_program_of_ones_own(lxc: Lab) -> None:
    lxc.start(100, entrypoint="sh -c 'echo \"$GREETING\" > /tmp/said; exec sleep 1000'", env="GREETING=good 'day'")
    assert lxc.out(100, "cat /tmp/said; cat /proc/1/comm").splitlines() == ["good 'day'", "sleep"]
    assert "/usr/bin" in lxc.out(100, "tr '\\0' '\\n' </proc/1/environ | grep ^PATH=")
    with pytest.raises(Failure, match="'sleep', the first process of this container, cannot be asked to reboot"):
        lxc.driver.ask_to_reboot(100)
    lxc.start(101, entrypoint="true")  # it has done its work and is no failure
    assert lxc.logged == ["'true' has done its work and ended"]
    lxc.driver.forget(101)


def test_ids_of_their_own(lxc: Lab) -> None:
    root = lxc.folder_root(100)
    for vmid in (100, 101):
        lxc.start(vmid, root, idmap="own")
    records = [lxc.driver.record(vmid) for vmid in (100, 101)]
    roots = [record.root for record in records if record is not None]
    assert roots[0] != roots[1]
    assert abs(roots[0][0] - roots[1][0]) >= 65536
    assert all(uid >= 1 << 30 for uid, _ in roots)
    assert lxc.out(100, "touch /tmp/mine; stat -c %u /tmp/mine /bin") == "0\n0"
    assert (lxc.tree(100) / "tmp/mine").stat().st_uid == 0  # on disk as inside
    wanted = roots[1][0] + 5
    taken = f"u:0:{roots[1][0] + 5}:65536;g:0:300000:65536"
    with pytest.raises(
        Failure, match=rf"idmap: CT 101, which runs, has users {roots[1][0] + 5} to \d+ of the host too"
    ):
        lxc.start(102, root, idmap=taken)
    lxc.driver.discard(101)
    lxc.start(102, root, idmap=taken)
    assert lxc.out(102, "cat /proc/self/uid_map").split() == ["0", str(wanted), "65536"]


def test_a_privileged_container_cannot_do_what_no_container_needs(lxc: Lab) -> None:
    lxc.start(100, unprivileged="-")
    assert lxc.logged == [
        "warning: this container is privileged: root inside is root of this host; prefer unprivileged ones"
    ]
    assert lxc.out(100, "cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]
    assert b"not permitted" in lxc.run(100, "sh", "-c", "date -s @$(date +%s)").stderr
    assert lxc.run(100, "sh", "-c", "echo 1 > /proc/sys/kernel/panic").returncode != 0
    lxc.out(100, "mknod /tmp/disk b 7 0; mknod /tmp/memory c 1 1; mknod /tmp/null c 1 3")
    assert lxc.run(100, "head", "-c1", "/tmp/disk").returncode != 0
    assert lxc.run(100, "head", "-c1", "/tmp/memory").returncode != 0
    lxc.out(100, "echo x > /tmp/null")


def test_lxc_sees_no_program_but_the_one_that_it_needs(lxc: Lab, tmp_path: Path) -> None:
    parser = tmp_path / "apparmor_parser"
    parser.write_text("#!/bin/sh\n")
    parser.chmod(0o755)
    config = GuestConfig(options={"unprivileged": "1"})
    root = {"rootfs": ContainerMount("rootfs", lxc.folder_root(100))}
    plan = lxc.driver.plan(100, config, root)
    plan = replace(plan, facts=replace(plan.facts, apparmor=parser))
    found = Path("/proc/self/mountinfo").read_text()
    monitor = lxc.driver.launch(plan, lxc.logged.append)  # where the kernel has no AppArmor, LXC does without
    assert "PATH=/run/lxc/bin" in Path(f"/proc/{monitor.pid}/environ").read_text().split("\0")
    assert os.listdir(f"/proc/{monitor.pid}/root/run/lxc/bin") == ["apparmor_parser"]  # noqa: PTH208
    assert Path("/proc/self/mountinfo").read_text() == found
