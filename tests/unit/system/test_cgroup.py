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


def test_version_2_files_of_a_container(v2: Group) -> None:
    folder = v2.mounted.mounts[""] / v2.name
    for name in ("memory.swap.max", "pids.max", "cgroup.freeze", "cgroup.kill", "io.stat", "memory.stat"):
        (folder / name).write_text("")
    assert v2.limit_memory_and_swap(1 << 30, 1 << 20) == []
    assert written(v2, "", "memory.max") == str(1 << 30)
    assert written(v2, "", "memory.swap.max") == str(1 << 20)
    assert v2.limit_pids(77) == []
    assert written(v2, "", "pids.max") == "77"
    assert v2.limit_pids(None) == []
    assert written(v2, "", "pids.max").startswith("max")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(Failure, match="did not freeze within 0 seconds"):
        v2.freeze(0)
    assert written(v2, "", "cgroup.freeze") == "0"  # let go on again
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    v2.freeze(0)
    assert written(v2, "", "cgroup.freeze") == "1"
    assert v2.frozen()
    (folder / "memory.current").write_text("10000\n")
    (folder / "memory.stat").write_text("anon 4000\nfile 6000\nshmem 1000\n")
    (folder / "memory.swap.current").write_text("300\n")
    assert v2.memory() == (5000, 300)
    (folder / "io.stat").write_text("7:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:0 rbytes=5 wbytes=6\n")
    assert v2.io() == (15, 26)
    v2.kill()
    assert written(v2, "", "cgroup.kill") == "1"


@pytest.fixture
def v1(tmp_path: Path) -> Group:
    mounts = {name: tmp_path / name for name in ("memory", "pids", "freezer", "blkio", "devices", "cpuset")}
    group = Group("orrery-x/guest-1", Hierarchies(mounts))
    for name, mount in mounts.items():
        for folder in (mount, mount / "orrery-x", mount / group.name, mount / group.name / "lxc"):
            folder.mkdir()
            if name == "cpuset":
                (folder / "cpuset.cpus").write_text("0-3")
            if name == "devices":
                (folder / "devices.allow").write_text("")
                (folder / "devices.deny").write_text("")
    for controller, name in (
        *(("memory", "memory.limit_in_bytes"), ("memory", "memory.memsw.limit_in_bytes"), ("pids", "pids.max")),
        *(("freezer", "freezer.state"), ("memory", "memory.stat"), ("memory", "memory.usage_in_bytes")),
    ):
        (mounts[controller] / group.name / name).write_text("")
    return group


def test_version_1_files_of_a_container(v1: Group) -> None:
    assert v1.limit_memory_and_swap(1 << 30, 1 << 20) == []
    assert written(v1, "memory", "memory.limit_in_bytes") == str(1 << 30)
    assert written(v1, "memory", "memory.memsw.limit_in_bytes") == str((1 << 30) + (1 << 20))
    (v1.mounted.mounts["memory"] / v1.name / "memory.memsw.limit_in_bytes").unlink()  # a kernel without swap accounts
    (warning,) = v1.limit_memory_and_swap(1 << 29, 0)
    assert "the limit of memory and swap is not in force: No such file" in warning
    assert written(v1, "memory", "memory.limit_in_bytes").startswith(str(1 << 29))
    assert v1.pin_cpu("1-2") == []
    assert all(written(v1, "cpuset", name).startswith("1-2\n") for name in ("cpuset.cpus", "lxc/cpuset.cpus"))
    assert v1.allow_device("c 10:200 rw") == []
    assert {written(v1, "devices", name) for name in ("devices.allow", "lxc/devices.allow")} == {"c 10:200 rw"}
    assert v1.allow_device("c 10:200 rw", allow=False) == []
    assert written(v1, "devices", "lxc/devices.deny") == "c 10:200 rw"
    v1.thaw()
    assert written(v1, "freezer", "freezer.state") == "THAWED"
    assert not v1.frozen()
    (v1.mounted.mounts["memory"] / v1.name / "memory.usage_in_bytes").write_text("10000")
    (v1.mounted.mounts["memory"] / v1.name / "memory.stat").write_text(
        "cache 1\ntotal_cache 6000\ntotal_shmem 1000\ntotal_swap 30\n"
    )
    assert v1.memory() == (5000, 30)
    (v1.mounted.mounts["blkio"] / v1.name / "blkio.throttle.io_service_bytes_recursive").write_text(
        "7:0 Read 10\n7:0 Write 20\n7:0 Total 30\n8:0 Read 5\nTotal 35\n"
    )
    assert v1.io() == (15, 20)


def test_every_hierarchy_is_found() -> None:
    everything = cgroup.parse_mounts(HYBRID + "cgroup /cg/pids cgroup rw,nosuid,pids 0 0\n", everything=True)
    assert set(everything.mounts) == {"", "cpu", "cpuacct", "memory", "name=systemd", "pids"}


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
    assert 0.005 < (after - before) / 1e9 / spent < 0.4
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
