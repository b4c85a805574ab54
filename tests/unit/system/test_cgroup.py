# SPDX-License-Identifier: AGPL-3.0-or-later
"""Control groups: the files that are written in either version, and the real kernel's."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orrery.errors import Failure
from orrery.system import cgroup, process
from orrery.system.cgroup import Group, Hierarchies
from orrery.system.jail import Jail

ROOT_HASH = f"t{os.getpid():05x}"
HYBRID = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""


def test_versions_are_told_apart() -> None:
    hybrid = cgroup.parse_mounts(HYBRID)
    assert hybrid.version == "hybrid"
    assert hybrid.mounts["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert "cpuset" not in hybrid.mounts
    assert cgroup.parse_mounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0").version == "v2"
    assert cgroup.parse_mounts(HYBRID.replace("cgroup2", "other")).version == "v1"
    assert cgroup.parse_mounts("").version == "none"


# --- what is written: folders stand in for the kernel's


@pytest.fixture
def v2(tmp_path: Path) -> Group:
    mount = tmp_path / "cgroup"
    mount.mkdir()
    for folder in (mount, mount / "orrery-x"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids")
        (folder / "cgroup.subtree_control").write_text("")
    group = Group("orrery-x/guest-1", Hierarchies({"": mount}))
    assert group.create() == []
    for name in ("cpu.max", "cpu.weight", "cpuset.cpus", "memory.max", "cgroup.procs", "cpu.stat", "memory.current"):
        (mount / group.name / name).write_text("")
    return group


def written(group: Group, controller: str, name: str) -> str:
    return (group.mounted.mounts[controller] / group.name / name).read_text()


def test_version_2_files(v2: Group) -> None:
    mount = v2.mounted.mounts[""]
    assert (mount / "orrery-x" / "cgroup.subtree_control").read_text() == "+memory"  # the last that was written
    assert v2.limit_cpu(1.5) == []
    assert written(v2, "", "cpu.max") == "150000 100000"
    assert v2.weigh_cpu(20_000) == []
    assert written(v2, "", "cpu.weight").startswith("10000")
    assert v2.pin_cpu(None) == []
    assert v2.pin_cpu("0,2-3") == []
    assert written(v2, "", "cpuset.cpus") == "0,2-3\n"
    assert v2.limit_memory(1 << 30) == []
    assert written(v2, "", "memory.max") == str(1 << 30)
    (mount / v2.name / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\n")
    (mount / v2.name / "memory.current").write_text("4096\n")
    (mount / v2.name / "memory.stat").write_text("anon 1\ninactive_file 1024\n")
    (mount / v2.name / "io.pressure").write_text("some avg10=2.00 avg60=0 avg300=0 total=5\n")
    assert v2.usage() == cgroup.Usage(cpu=1_500_000, memory=4096, cache=1024)
    pressure = v2.pressure("io")
    assert pressure is not None
    assert pressure.some == 2.0
    assert v2.pressure("cpu") is None


def test_what_cannot_be_done_is_a_warning(v2: Group) -> None:
    folder = v2.mounted.mounts[""] / v2.name
    (folder / "cpu.max").unlink()
    (warning,) = v2.limit_cpu(2)
    assert "the CPU limit is not in force: No such file" in warning
    nowhere = Group("orrery-x/guest-2", Hierarchies({}))
    assert nowhere.create() == []
    assert nowhere.entrances() == ()
    assert nowhere.limit_memory(1) == ["the memory limit is not in force: this system has no control groups"]
    assert nowhere.usage() == cgroup.Usage(None, None, None)
    nowhere.remove()
    closed = Group("orrery-x/guest-2", Hierarchies({"cpu": Path("/proc/no-such")}))
    (warning,) = closed.create()
    assert warning.startswith("no control group for cpu: ")


# --- the real kernel


@pytest.fixture
def group() -> Iterator[Group]:
    if os.geteuid() != 0:
        pytest.skip("only root may make control groups")
    made = cgroup.guest_group(ROOT_HASH, 100)
    if made.create() or not made.entrances():
        pytest.skip("control groups are not writable here")
    yield made
    made.kill()
    cgroup.remove_root(ROOT_HASH)
    assert not made.exists()


@pytest.mark.root
def test_a_child_begins_in_its_group_and_ends_with_it(group: Group) -> None:
    assert cgroup.guest_groups(ROOT_HASH) == {100: group}
    child = process.spawn(["sleep", "60"], jail=Jail(54321, 54321, cgroups=group.entrances()))
    assert group.pids() == {child.pid}
    with pytest.raises(Failure, match="busy"):
        group.remove()
    group.kill()
    assert not process.alive(child)
    process.reap(child)
    group.remove()
    group.remove()
    parents = [mount / cgroup.root_group_name(ROOT_HASH) for mount in group.mounted.mounts.values()]
    assert not any(parent.exists() for parent in parents)  # it was the last of its root
    assert group.create() == []
    other = cgroup.guest_group(ROOT_HASH, 101)
    assert other.create() == []
    other.remove()
    assert all(parent.exists() for parent in parents)
    assert cgroup.guest_group(ROOT_HASH, 100).pids() == set()


@pytest.mark.root
def test_limits_bite(group: Group) -> None:
    assert group.limit_cpu(0.2) == []
    assert group.weigh_cpu(50) == []
    assert group.pin_cpu("0") == []
    assert group.limit_memory(64 << 20) == []
    busy = process.spawn(["sh", "-c", "while :; do :; done"], jail=Jail(54321, 54321, cgroups=group.entrances()))
    assert os.sched_getaffinity(busy.pid) == {0}
    before, started = group.usage().cpu, time.monotonic()
    time.sleep(1.0)
    after, spent = group.usage().cpu, time.monotonic() - started
    assert before is not None
    assert after is not None
    assert 0.05 < (after - before) / 1e9 / spent < 0.4
    memory = group.usage().memory
    assert memory is not None
    assert 0 < memory < 64 << 20
    assert group.limit_cpu(None) == []
    assert group.pin_cpu(None) == []
    assert len(os.sched_getaffinity(busy.pid)) == os.cpu_count()
    group.kill()
    process.reap(busy)


@pytest.mark.root
def test_a_running_process_can_be_moved_in_and_a_bad_affinity_is_told(group: Group) -> None:
    child = process.spawn(["sleep", "60"])
    assert group.add(child.pid) == []
    assert child.pid in group.pids()
    (warning,) = group.pin_cpu("4000")
    assert "the CPU affinity '4000' is not in force" in warning
    group.kill()
    process.reap(child)
