# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tasks that create, start and destroy a container, or move its volume, are killed at every transition.

Afterwards the container is there as a whole or not at all, and no volume, mount, control group, interface or lock is
left over. With the task the daemon may be killed too.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.harness import TEMPLATE, Container, Node, container_options, eventually
from tests.node.test_kills import KILLED, Stage, Stopped, Verb

from orrery.tasks.faultstop import VARIABLE

VMID = 200
BESIDE = 100
DEMO = f"local:vztmpl/{TEMPLATE}"
CREATE = container_options(VMID, DEMO) | {"mp0": "local:0,mp=/data", "password": "correct horse"}
MOVE = {"volume": "mp0", "storage": "second", "delete": 1}
VERBS = [
    Verb("vzcreate", "POST", "/lxc", CREATE, (False, False), (True, False)),
    Verb("vzstart", "POST", f"/lxc/{VMID}/status/start", {}, (True, False), (True, True)),
    Verb("vzdestroy", "DELETE", f"/lxc/{VMID}", {}, (True, False), (False, False), "guest.finish_destroy"),
]
EACH = pytest.mark.parametrize("verb", VERBS, ids=[verb.kind for verb in VERBS])


@pytest.fixture(scope="module")
def stage(node: Node, demo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("kills-containers")
    with Node(folder / "node", port=8256) as made:
        file = folder / "stop"
        made.init().serve({VARIABLE: str(file)})
        assert made.import_template(demo_archive) == DEMO
        made.root.post("/storage", storage="second", type="dir", path=str(folder / "second"), content="rootdir")
        yield Stage(made, made.container(DEMO, vmid=BESIDE, start=True), file)


def check(stage: Stage, *, exists: bool, runs: bool) -> None:
    """Container 200 is there as a whole or not at all, and so is everything else; the one beside it runs."""
    node = stage.node
    assert node.locks() == []
    rows = {row["vmid"]: row["status"] for row in node.root.get(f"{node.path}/lxc")}
    expected = {BESIDE: "running"} | ({VMID: "running" if runs else "stopped"} if exists else {})
    assert rows == expected
    running = [vmid for vmid, status in expected.items() if status == "running"]
    assert node.containers() == running
    assert sorted(int(folder.name) for folder in node.paths.guests_run.iterdir()) == running
    assert sorted({int(group.name.removeprefix("guest-")) for group in node.groups()}) == running
    assert len(node.taps()) == len(running)
    folders = [node.paths.local_storage / "images", node.folder.with_name("second") / "images"]
    volumes = sorted(f"{path.parent.name}/{path.name}" for each in folders for path in each.glob("*/*"))
    kept = [f"{VMID}/subvol-{VMID}-disk-0.subvol", f"{VMID}/vm-{VMID}-disk-1.raw"] if exists else []
    assert [volume for volume in volumes if volume.startswith(f"{VMID}/")] == kept
    assert str(node.paths.tree_run) not in Path("/proc/self/mountinfo").read_text()
    if exists:
        config = node.root.get(f"{node.path}/lxc/{VMID}/config")
        assert "lock" not in config
        assert config["ostype"] == "alpine"
        assert "unused0" not in config


def prepare(stage: Stage, exists: bool, runs: bool) -> None:
    """Brings container 200 into a state."""
    node = stage.node
    there = {row["vmid"]: row["status"] for row in node.root.get(f"{node.path}/lxc")}.get(VMID)
    guest = f"{node.path}/lxc/{VMID}"
    if there == "running" and not runs:
        node.root.wait(node.root.post(f"{guest}/status/stop"))
    if there and not exists:
        node.root.wait(node.root.delete(guest))
    if exists and not there:
        node.root.wait(node.root.post(f"{node.path}/lxc", CREATE))


def every_transition(stage: Stage, verb: Verb) -> Iterator[tuple[Stopped, bool]]:
    """Stops the operation after each of its transitions in turn; with it, whether it will be completed."""
    stage.seen.clear()
    n = 0
    while True:
        n += 1
        prepare(stage, *verb.before)
        stage.stop_at(verb.kind, n)
        stopped = stage.go(verb.verb, f"{stage.node.path}{verb.path}", verb.parameters)
        if stopped is None:
            break
        yield stopped, verb.decided_by in stage.seen
    assert stage.seen[0] == "begin"
    assert stage.seen[-1] == "end"
    stage.settle()
    check(stage, exists=verb.after[0], runs=verb.after[1])


@EACH
@pytest.mark.timeout(300)
def test_the_task_is_killed(stage: Stage, verb: Verb) -> None:
    for stopped, completed in every_transition(stage, verb):
        os.kill(stopped.pid, signal.SIGKILL)
        stage.settle()
        status = stage.node.root.state(stopped.upid)
        assert status["exitstatus"] == ("OK" if stopped.transition == "end" else KILLED)
        exists, runs = verb.after if completed else verb.before
        check(stage, exists=exists, runs=runs)


@pytest.mark.slow
@EACH
@pytest.mark.timeout(300)
def test_task_and_daemon_are_killed(stage: Stage, verb: Verb) -> None:
    for stopped, completed in every_transition(stage, verb):
        stage.node.end(signal.SIGKILL)
        os.kill(stopped.pid, signal.SIGKILL)
        stage.serve()
        stage.settle()
        exists, runs = verb.after if completed else verb.before
        check(stage, exists=exists, runs=runs)


@pytest.mark.timeout(300)
def test_a_move_is_killed(stage: Stage) -> None:
    """The volume is on one storage or the other, with its contents, and on no other."""
    node = stage.node
    stage.seen.clear()
    n = 0
    while True:
        n += 1
        prepare(stage, exists=False, runs=False)
        prepare(stage, exists=True, runs=False)
        guest = Container(node, VMID)
        guest.run("start")
        guest.inside("sh", "-c", "echo kept >/data/file")
        guest.run("stop")
        stage.stop_at("move_volume", n)
        stopped = stage.go("POST", f"{guest.path}/move_volume", MOVE)
        if stopped is not None:
            os.kill(stopped.pid, signal.SIGKILL)
        stage.settle()
        check(stage, exists=True, runs=False)
        storage = str(node.root.get(f"{guest.path}/config")["mp0"]).partition(":")[0]
        assert storage == ("second" if stopped is None or "commit" in stage.seen else "local"), stage.seen
        guest.run("start")
        assert guest.inside("cat", "/data/file") == "kept"
        guest.run("stop")
        if stopped is None:
            break
    assert stage.seen[-1] == "end"
    eventually(lambda: not stage.open_tasks(), 10, "the end of all tasks")
