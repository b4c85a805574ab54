# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changing a machine's options: what holds at once, what waits, what is taken back, and several clients at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.node.client import ApiError
from tests.node.harness import Guest, Node

DIGEST_TEXT = "detected modified configuration - file changed by other user? Try again."


@pytest.fixture(scope="module")
def running(node: Node) -> Iterator[Guest]:
    """A machine that runs, without a system inside."""
    made = node.guest(start=True, net0="virtio,bridge=vmbr0", scsi0="local:0.0625", scsihw="virtio-scsi-pci")
    yield made
    made.destroy()


@pytest.fixture
def stopped(node: Node) -> Iterator[Guest]:
    """A machine that does not run."""
    made = node.guest()
    yield made
    made.destroy()


def pending(guest: Guest) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in guest.api.get(f"{guest.path}/pending")}


def refusal(guest: Guest, **parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        guest.set(**parameters)
    return caught.value


def test_names_and_notes_hold_at_once(running: Guest) -> None:
    running.set(name="renamed", description="line one\nline two", tags="b;a", onboot=1, protection=0)
    config = running.config(current=1)
    assert config["name"] == "renamed"
    assert config["description"].rstrip("\n") == "line one\nline two"
    assert config["onboot"] == 1
    assert not [row for row in pending(running).values() if "pending" in row]
    assert (
        next(r for r in running.api.get(f"{running.node.path}/qemu") if r["vmid"] == running.vmid)["name"] == "renamed"
    )


def test_what_needs_a_start_is_pending_and_can_be_taken_back(running: Guest) -> None:
    running.set(memory="128", cores="2", bios="seabios", machine="q35")
    rows = pending(running)
    assert rows["memory"] == {"key": "memory", "value": "160", "pending": "128"}
    assert rows["cores"] == {"key": "cores", "pending": 2}
    assert running.config()["memory"] == "128"
    assert running.config(current=1)["memory"] == "160"
    running.set(delete="memory")
    assert pending(running)["memory"]["delete"] == 1
    assert "pending" not in pending(running)["memory"]
    running.set(revert="memory,cores,machine,bios")
    assert not [row for row in pending(running).values() if {"pending", "delete"} & set(row)]
    assert running.config()["memory"] == "160"


def test_limits_hold_at_once(running: Guest) -> None:
    running.set(cpulimit="0.5", cpuunits="512")
    assert float(running.config(current=1)["cpulimit"]) == 0.5
    quota = [path / "cpu.cfs_quota_us" for path in running.node.groups() if path.name == f"guest-{running.vmid}"]
    limits = [int(path.read_text()) for path in quota if path.exists()]
    assert limits in ([50_000], []), "a quota in version 1 of the control groups, where they are"
    running.set(delete="cpulimit,cpuunits")
    assert [int(path.read_text()) for path in quota if path.exists()] in ([-1], [])


def test_a_synchronous_change_answers_nothing(stopped: Guest) -> None:
    assert stopped.api.put(f"{stopped.path}/config", memory="96") is None
    assert stopped.config(current=1)["memory"] == "96"


def test_deleting_options_of_a_stopped_machine(stopped: Guest) -> None:
    stopped.set(name="x", description="y")
    stopped.set(delete="name,description")
    assert not {"name", "description"} & set(stopped.config())
    assert refusal(stopped, delete="nonsense").errors == {"delete": "unknown option 'nonsense'"}
    both = refusal(stopped, delete="memory", memory="64")
    assert both.status == 400
    assert list(both.errors) == ["delete"]


# --- several clients


def test_a_change_that_is_based_on_an_old_configuration_is_refused(stopped: Guest) -> None:
    stopped.set(scsi0="local:0.0625")
    old = stopped.config()["digest"]
    stopped.set(name="first", digest=old)
    for verb in ("PUT", "POST"):
        with pytest.raises(ApiError) as caught:
            stopped.api.call(verb, f"{stopped.path}/config", {"name": "second", "digest": old})
        assert (caught.value.status, caught.value.message) == (500, DIGEST_TEXT)
    with pytest.raises(ApiError) as caught:
        stopped.api.put(f"{stopped.path}/resize", disk="scsi0", size="+1G", digest=old)
    assert caught.value.message == DIGEST_TEXT
    assert stopped.config()["name"] == "first"
    stopped.set(name="third", digest=stopped.config()["digest"])
    assert stopped.config()["name"] == "third"


def test_of_two_changes_with_one_digest_one_wins(stopped: Guest) -> None:
    for turn in range(5):
        digest = stopped.config()["digest"]

        def change(name: str, digest: str = digest) -> str:
            response = stopped.api.send("PUT", f"{stopped.path}/config", {"name": name, "digest": digest})
            return "OK" if response.status_code == 200 else response.json()["message"].strip()

        with ThreadPoolExecutor(2) as pool:
            ends = sorted(pool.map(change, (f"one{turn}", f"two{turn}")))
        assert ends == ["OK", DIGEST_TEXT]


def test_no_change_of_many_clients_is_lost(stopped: Guest) -> None:
    keys = [f"net{index}" for index in range(8)]

    def change(key: str) -> None:
        stopped.api.put(f"{stopped.path}/config", {key: "virtio,bridge=vmbr0"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, keys))
    config = stopped.config()
    assert set(keys) <= set(config)
    assert len({config[key] for key in keys}) == len(keys), "every card has an address of its own"


def test_a_taken_number_is_refused_and_makes_no_volume(stopped: Guest) -> None:
    node = stopped.node
    with pytest.raises(ApiError) as caught:
        node.api.post(f"{node.path}/qemu", vmid=stopped.vmid, scsi0="local:0.0625")
    assert caught.value.status == 500
    assert (
        caught.value.message == f"unable to create VM {stopped.vmid} - VM {stopped.vmid} already exists on node 'alpha'"
    )
    assert not [name for name in node.images() if name.startswith(f"{stopped.vmid}/")]


def test_of_many_that_want_one_number_one_gets_it(node: Node) -> None:
    vmid = node.next_vmid()

    def create(n: int) -> str:
        response = node.api.send("POST", f"{node.path}/qemu", {"vmid": vmid, "name": f"n{n}", "scsi0": "local:0.0625"})
        return node.api.ended(response.json()["data"]) if response.status_code == 200 else "refused"

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(create, range(6)))
    assert ends.count("OK") == 1
    guest = Guest(node, vmid)
    assert guest.config()["name"] == f"n{ends.index('OK')}"
    assert [name for name in node.images() if name.startswith(f"{vmid}/")] == [f"{vmid}/vm-{vmid}-disk-0.raw"]
    guest.destroy()


# --- protection, lock, template


def test_a_protected_machine_is_not_destroyed(stopped: Guest) -> None:
    stopped.set(protection=1)
    with pytest.raises(ApiError) as caught:
        stopped.api.delete(stopped.path)
    assert caught.value.message == f"can't remove VM {stopped.vmid} - protection mode enabled"
    stopped.set(protection=0)


def test_a_locked_machine_is_left_alone(stopped: Guest) -> None:
    root = stopped.node.root
    root.put(f"{stopped.path}/config", lock="backup")
    for verb, path in (("POST", f"{stopped.path}/status/start"), ("DELETE", stopped.path)):
        with pytest.raises(ApiError) as caught:
            stopped.api.call(verb, path)
        assert (caught.value.status, caught.value.message) == (500, "VM is locked (backup)")
    with pytest.raises(ApiError) as caught:
        stopped.api.post(f"{stopped.path}/status/start", skiplock=1)
    assert caught.value.status == 403
    root.wait(root.post(f"{stopped.path}/status/start", skiplock=1))
    root.wait(root.post(f"{stopped.path}/status/stop", skiplock=1))
    root.put(f"{stopped.path}/config", delete="lock", skiplock=1)
    assert "lock" not in stopped.config()


# --- bad input


BAD = [
    ({"memory": "lots"}, 400, "memory"),
    ({"memory": "2"}, 400, "memory"),
    ({"cores": "0"}, 400, "cores"),
    ({"frobnicate": "1"}, 400, "frobnicate"),
    ({"net0": "virtio,bridge=vmbr0,bridge=vmbr1"}, 400, "net0"),
    ({"net0": "virtio=not-a-mac,bridge=vmbr0"}, 400, "net0"),
    ({"scsi0": "nowhere:1"}, 500, ""),
    ({"scsi0": "local:../../etc/passwd"}, 400, "scsi0"),
    ({"scsi0": "local:999/vm-999-disk-0.raw"}, 400, "scsi0"),
    ({"scsi0": "local:0"}, 400, "scsi0"),
    ({"scsi0": "/dev/vda"}, 403, ""),
    ({"boot": "order=scsi7"}, 400, "boot"),
    ({"name": "under_score"}, 400, "name"),
    ({"args": "-version"}, 403, ""),
    ({"hookscript": "local:snippets/x.pl"}, 403, ""),
    ({"digest": "xyz", "name": "a"}, 500, ""),
    ({"digest": "x" * 100, "name": "a"}, 400, "digest"),
    ({"skiplock": "1", "name": "a"}, 403, ""),
]


@pytest.mark.parametrize(("parameters", "status", "name"), BAD, ids=[str(next(iter(each[0].items()))) for each in BAD])
def test_bad_input_is_refused_by_name(stopped: Guest, parameters: dict[str, str], status: int, name: str) -> None:
    before = stopped.config()
    with pytest.raises(ApiError) as caught:
        stopped.api.put(f"{stopped.path}/config", parameters)
    assert caught.value.status == status
    assert not name or list(caught.value.errors) == [name]
    assert stopped.config() == before
    assert not [image for image in stopped.node.images() if image.startswith(f"{stopped.vmid}/")]
