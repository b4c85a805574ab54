# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a node tells of itself, its guests and its tasks, in the shapes that clients rely on."""

import os
import re
import shutil
import time

import pytest
from tests.node.client import ApiError
from tests.node.harness import Node, eventually

EMPTY = [
    "/cluster/backup",
    "/cluster/backup-info/not-backed-up",
    "/cluster/ha/resources",
    "/cluster/ha/groups",
    "/cluster/replication",
]


def test_the_node_tells_figures_of_this_machine(node: Node) -> None:
    row = node.api.get("/nodes")[0]
    assert (row["node"], row["status"], row["type"], row["id"]) == (node.name, "online", "node", f"node/{node.name}")
    status = node.api.get(f"{node.path}/status")
    assert status["cpuinfo"]["cpus"] == os.cpu_count()
    assert status["memory"]["total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert status["rootfs"]["total"] == shutil.disk_usage("/").total
    assert 0 <= row["cpu"] <= 1
    assert 0 < status["uptime"] < time.monotonic() + 60
    assert len(status["loadavg"]) == 3
    assert abs(node.api.get(f"{node.path}/time")["time"] - time.time()) < 5


def test_localhost_is_this_node(node: Node) -> None:
    assert node.api.get("/nodes/localhost/status")["cpuinfo"]["cpus"] == os.cpu_count()


def test_another_node_is_not_known(node: Node) -> None:
    with pytest.raises(ApiError) as caught:
        node.api.get("/nodes/elsewhere/status")
    assert caught.value.status == 500


@pytest.mark.parametrize("path", EMPTY)
def test_what_does_not_exist_yet_is_truthfully_empty(node: Node, path: str) -> None:
    assert node.api.get(path) == []


def test_a_guest_is_in_every_list_as_soon_as_its_task_has_ended(node: Node) -> None:
    for _ in range(5):
        guest = node.guest(name="listed", tags="a;b", cores=2, memory=96)
        for path in (f"{node.path}/qemu", "/cluster/resources"):
            row = next(row for row in node.api.get(path) if row.get("vmid") == guest.vmid)
            assert (row["name"], row["status"], row["tags"]) == ("listed", "stopped", "a;b")
            assert row["maxmem"] == 96 << 20
        guest.run("start")
        for path in (f"{node.path}/qemu", "/cluster/resources"):
            row = next(row for row in node.api.get(path) if row.get("vmid") == guest.vmid)
            assert row["status"] == "running"
        guest.run("stop")
        assert guest.status()["status"] == "stopped"
        row = next(row for row in node.api.get("/cluster/resources") if row.get("vmid") == guest.vmid)
        assert row["status"] == "stopped"
        guest.destroy()
        for path in (f"{node.path}/qemu", "/cluster/resources"):
            assert guest.vmid not in [row.get("vmid") for row in node.api.get(path)]


def test_the_next_free_number(node: Node) -> None:
    free = node.api.get("/cluster/nextid")
    assert re.fullmatch(r"\d+", free)
    guest = node.guest(vmid=int(free))
    assert node.api.get("/cluster/nextid") != free
    with pytest.raises(ApiError) as caught:
        node.api.get("/cluster/nextid", vmid=free)
    assert caught.value.errors == {"vmid": f"VM {free} already exists"}
    guest.destroy()
    assert node.api.get("/cluster/nextid", vmid=free) == free


# --- tasks


def test_tasks_are_listed_filtered_and_paged(node: Node) -> None:
    guest = node.guest(start=True)
    guest.destroy()
    where = f"{node.path}/tasks"
    rows = node.api.get(where, vmid=guest.vmid)
    assert [row["type"] for row in rows] == ["qmdestroy", "qmstop", "qmstart", "qmcreate"]
    assert {row["status"] for row in rows} == {"OK"}
    assert {row["user"] for row in rows} == {"admin@pve"}
    assert all(row["starttime"] <= row["endtime"] for row in rows)
    assert node.api.get(where, vmid=guest.vmid, start=1, limit=2) == rows[1:3]
    assert node.api.get(where, vmid=guest.vmid, typefilter="qmstart") == rows[2:3]
    assert node.api.get(where, vmid=guest.vmid, errors=1) == []
    assert node.api.get(where, vmid=guest.vmid, userfilter="nobody") == []
    assert node.api.get(where, vmid=guest.vmid, statusfilter="error,unknown") == []
    assert node.api.get(where, vmid=guest.vmid, since=int(time.time()) + 60) == []
    reply = node.api.send("GET", where, {"vmid": guest.vmid, "limit": 1}).json()
    assert reply["total"] == 4
    assert {row["upid"] for row in rows} <= {row["upid"] for row in node.api.get("/cluster/tasks")}


def test_a_running_task_tells_how_far_it_is(node: Node) -> None:
    guest = node.guest(start=True)
    upid = node.api.post(f"{guest.path}/status/shutdown", timeout=30)
    state = eventually(lambda: (s := node.api.state(upid)).get("progress") and s, 10)
    assert state["status"] == "running"
    assert state["progress"]["total"] == 30
    assert state["progress"]["unit"] == "s"
    active = node.api.get(f"{node.path}/tasks", source="active")
    assert [row["upid"] for row in active] == [upid]
    assert "status" not in active[0]
    with pytest.raises(ApiError) as caught:
        node.api.delete(f"{node.path}/tasks/{upid}x")
    assert caught.value.status == 400
    node.api.delete(f"{node.path}/tasks/{upid}")
    assert node.api.ended(upid) == "received interrupt"
    guest.destroy()


def test_a_tasks_log_is_paged_and_downloaded(node: Node) -> None:
    guest = node.guest(scsi0="local:0.0625")
    upid = node.api.get(f"{node.path}/tasks", vmid=guest.vmid)[0]["upid"]
    where = f"{node.path}/tasks/{upid}/log"
    lines = node.api.get(where)
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["t"] == "TASK OK"
    assert node.api.get(where, start=1, limit=1) == lines[1:2]
    whole = node.api.send("GET", where, {"download": 1})
    assert whole.text.splitlines() == [line["t"] for line in lines]
    assert "attachment" in whole.headers["content-disposition"]
    guest.destroy()


def test_others_see_only_what_is_theirs(node: Node) -> None:
    guest = node.guest(start=True)
    node.root.post("/access/users", userid="guestless@pve", password="no rights at all")
    other = node.anonymous().log_in("guestless@pve", "no rights at all")
    assert other.get(f"{node.path}/qemu") == []
    assert [row["type"] for row in other.get("/cluster/resources")] == ["node"]
    assert other.get(f"{node.path}/tasks") == []
    assert other.get("/cluster/tasks") == []
    for verb, path in (
        ("GET", f"{guest.path}/status/current"),
        ("GET", f"{guest.path}/config"),
        ("POST", f"{guest.path}/status/stop"),
        ("DELETE", guest.path),
        ("GET", f"{node.path}/status"),
    ):
        with pytest.raises(ApiError) as caught:
            other.call(verb, path)
        assert caught.value.status == 403
    node.root.put("/access/acl", {"path": f"/vms/{guest.vmid}"}, users="guestless@pve", roles="PVEVMUser")
    assert [row["vmid"] for row in other.get(f"{node.path}/qemu")] == [guest.vmid]
    other.wait(other.post(f"{guest.path}/status/stop"))
    assert [row["type"] for row in other.get(f"{node.path}/tasks")] == ["qmstop"]
    with pytest.raises(ApiError) as caught:
        other.put(f"{guest.path}/config", memory=1024)
    assert caught.value.status == 403
    other.close()
    node.root.delete("/access/users/guestless@pve")
    guest.destroy()
