# SPDX-License-Identifier: AGPL-3.0-or-later
"""Many guests with one call: each by a task of its own, in order, and one that fails keeps no other from its turn."""

from collections.abc import Iterator

import pytest
from tests.node.client import ApiError
from tests.node.harness import Container, Node, eventually


@pytest.fixture(scope="module")
def some(node: Node, template: str) -> Iterator[list[Container]]:
    """Three containers that do not run; the last of them starts with the host, and first."""
    made = [node.container(template, hostname=f"bulk{number}") for number in range(3)]
    made[2].set(onboot=1, startup="order=1")
    yield made
    for each in made:
        each.destroy()


def running(node: Node, some: list[Container]) -> list[bool]:
    rows = {row["vmid"]: row["status"] for row in node.api.get(f"{node.path}/lxc")}
    return [rows[each.vmid] == "running" for each in some]


def begun(node: Node, kind: str, since: int) -> list[tuple[int, str, str]]:
    """Tasks of a kind since a moment: when they began, for whom, and by whom."""
    rows = node.api.get(f"{node.path}/tasks", typefilter=kind, since=since, limit=100)
    return sorted((row["starttime"], row["id"], row["user"]) for row in rows)


def test_all_start_and_stop(node: Node, some: list[Container]) -> None:
    vms = ",".join(str(each.vmid) for each in some)
    since = node.api.get(f"{node.path}/tasks", limit=1)[0]["starttime"]
    node.api.wait(node.api.post(f"{node.path}/startall", vms=vms))
    assert running(node, some) == [False, False, True], "only one starts with the host"
    upid = node.api.post(f"{node.path}/startall", vms=vms, force=1)
    node.api.wait(upid)
    assert running(node, some) == [True, True, True]
    tasks = begun(node, "vzstart", since)
    assert {each.vmid for each in some} <= {int(vmid) for _, vmid, _ in tasks}
    assert {user for _, _, user in tasks} == {"admin@pve"}, "in the name of whoever asked"
    node.api.wait(node.api.post(f"{node.path}/suspendall", vms=vms))
    assert {each.status()["status"] for each in some} == {"running"}
    node.api.wait(node.api.post(f"{node.path}/stopall", vms=vms, timeout=0))
    assert running(node, some) == [False, False, False]


def test_one_that_fails_keeps_no_other_from_its_turn(node: Node, some: list[Container]) -> None:
    broken, other = some[2], some[0]
    image = node.paths.local_storage / "images" / str(broken.vmid) / f"vm-{broken.vmid}-disk-0.raw"
    aside = image.with_suffix(".aside")
    image.rename(aside)
    try:
        upid = node.api.post(f"{node.path}/startall", vms=f"{broken.vmid},{other.vmid}", force=1)
        assert node.api.ended(upid, 60) == "WARNINGS: 1"
        assert running(node, some) == [True, False, False]
        log = "\n".join(line["t"] for line in node.api.get(f"{node.path}/tasks/{upid}/log", limit=100))
        assert f"WARN: guest {broken.vmid}: " in log
    finally:
        aside.rename(image)
    node.api.wait(node.api.post(f"{node.path}/stopall", vms=str(other.vmid), timeout=0))
    eventually(lambda: running(node, some) == [False, False, False], 10, "the end of all")


def test_bad_input(node: Node, some: list[Container]) -> None:
    first = some[0].vmid
    for parameters, text in (
        ({"vms": f"{first},{first}"}, "twice"),
        ({"vms": "99999"}, "99999"),
        ({"vms": "x"}, "vms"),
        ({"max-workers": 65}, "max-workers"),
    ):
        with pytest.raises(ApiError) as caught:
            node.api.post(f"{node.path}/startall", parameters)
        assert text in str(caught.value)


def test_rights(node: Node, some: list[Container]) -> None:
    vmid = some[0].vmid
    node.api.post("/access/users", userid="bulk@pve", password="correct horse")
    node.api.put("/access/acl", path=f"/vms/{vmid}", users="bulk@pve", roles="PVEVMUser")
    user = node.anonymous().log_in("bulk@pve", "correct horse")
    try:
        for parameters in ({}, {"vms": f"{vmid},{some[1].vmid}"}):
            with pytest.raises(ApiError) as caught:
                user.post(f"{node.path}/stopall", parameters)
            assert caught.value.status == 403
        user.wait(user.post(f"{node.path}/stopall", vms=str(vmid)))
    finally:
        user.close()
        node.api.delete("/access/users/bulk@pve")
