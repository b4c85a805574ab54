# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest that was made through the API runs: it boots, has an address, lets one in, and its agent answers."""

import base64
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tests.node.client import ApiError
from tests.node.harness import Guest, Node, eventually

pytestmark = pytest.mark.guest


def test_it_answers_ping_from_the_host(guest: Guest) -> None:
    done = subprocess.run(
        ["ping", "-c", "3", "-i", "0.2", "-W", "5", guest.address()], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_its_address_is_one_of_the_bridges_subnet(guest: Guest, node: Node) -> None:
    bridge = next(row for row in node.api.get(f"{node.path}/network") if row["iface"] == "vmbr0")
    assert ip_address(guest.address()) in ip_network(bridge["cidr"], strict=False)


def test_ssh_lets_root_in(guest: Guest) -> None:
    assert guest.ssh("uname -s") == "Linux"


def test_it_has_what_was_asked_for(guest: Guest) -> None:
    assert guest.inside("sh", "-c", "grep -c ^processor /proc/cpuinfo") == "1"
    memory = int(guest.inside("sh", "-c", "awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 100 << 10 < memory < 160 << 10
    mac = guest.config()["net0"].split("=", 1)[1].split(",")[0]
    assert mac.lower() in guest.inside("cat", "/sys/class/net/eth0/address")


def test_every_list_says_that_it_runs(guest: Guest, node: Node) -> None:
    rows = node.api.get(f"{node.path}/qemu")
    assert [row["status"] for row in rows if row["vmid"] == guest.vmid] == ["running"]
    rows = node.api.get("/cluster/resources", type="vm")
    assert [row["status"] for row in rows if row["vmid"] == guest.vmid] == ["running"]
    status = guest.status()
    assert status["status"] == status["qmpstatus"] == "running"
    assert status["agent"] == 1
    assert status["pid"] in [int(pid) for pid in subprocess.check_output(["pgrep", "qemu-system"]).split()]
    eventually(lambda: guest.status()["uptime"] > 0, 5, "a whole second of uptime")


def test_qemu_is_not_root_and_confined(guest: Guest) -> None:
    lines = Path(f"/proc/{guest.pid()}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert all(int(uid) > 2_000_000_000 for uid in status["Uid"].split())
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_counters_move(guest: Guest) -> None:
    def counted() -> bool:
        now = guest.status()
        return bool(now["netin"] > 0 and now["netout"] > 0 and now["mem"] > 0)

    eventually(counted, 25, "a sample of the counters")


# --- the agent


ANSWERS = {
    "get-fsinfo": lambda result: any(each["mountpoint"] == "/" for each in result),
    "get-host-name": lambda result: result["host-name"],
    "get-memory-block-info": lambda result: result["size"] > 0,
    "get-memory-blocks": lambda result: all(block["online"] in (0, 1) for block in result),
    "get-osinfo": lambda result: result["kernel-release"],
    "get-time": lambda result: abs(result / 1e9 - time.time()) < 120,
    "get-timezone": lambda result: "offset" in result,
    "get-users": lambda result: result == [] or result[0]["user"],
    "get-vcpus": lambda result: len(result) == 1 and result[0]["logical-id"] == 0,
    "info": lambda result: result["version"] and len(result["supported_commands"]) > 30,
    "network-get-interfaces": lambda result: {"lo", "eth0"} <= {card["name"] for card in result},
}


@pytest.mark.parametrize("command", sorted(ANSWERS))
def test_the_agent_answers(guest: Guest, command: str) -> None:
    assert ANSWERS[command](guest.agent(command))
    by_name = guest.api.post(f"{guest.path}/agent", command=command)
    assert set(by_name) == {"result"}


def test_ping_answers_an_empty_result(guest: Guest) -> None:
    assert guest.api.post(f"{guest.path}/agent/ping") == {"result": {}}


def test_programs_run_inside(guest: Guest) -> None:
    where = f"{guest.path}/agent"
    pid = guest.api.post(
        f"{where}/exec", {"command": ["sh", "-c", "read x; echo $x; echo e >&2; exit 3"]}, input_data="in\n"
    )
    told = eventually(lambda: (r := guest.api.get(f"{where}/exec-status", pid=pid["pid"]))["exited"] and r)
    assert (told["out-data"], told["err-data"], told["exitcode"]) == ("in\n", "e\n", 3)


def test_a_program_that_is_not_there(guest: Guest) -> None:
    with pytest.raises(ApiError) as caught:
        guest.api.post(f"{guest.path}/agent/exec", {"command": ["/no/such/program"]})
    assert caught.value.status == 500
    assert "no/such/program" in caught.value.message


def test_files_are_written_and_read(guest: Guest) -> None:
    where = f"{guest.path}/agent"
    guest.api.post(f"{where}/file-write", file="/root/note", content="grüße\n")
    assert guest.inside("cat", "/root/note") == "grüße"
    assert guest.api.get(f"{where}/file-read", file="/root/note") == {"content": "grüße\n"}
    guest.api.post(
        f"{where}/file-write", file="/root/bin", content=base64.b64encode(bytes(range(256))).decode(), encode=0
    )
    read = guest.api.get(f"{where}/file-read", file="/root/bin", decode=0)
    assert base64.b64decode(read["content"]) == bytes(range(256))
    part = guest.api.get(f"{where}/file-read", file="/root/note", count=2, offset=0)
    assert part == {"content": "gr", "truncated": 1}


def test_a_file_that_is_not_there(guest: Guest) -> None:
    with pytest.raises(ApiError) as caught:
        guest.api.get(f"{guest.path}/agent/file-read", file="/no/such/file")
    assert caught.value.status == 500


def test_a_password_is_set(guest: Guest) -> None:
    guest.api.post(f"{guest.path}/agent/set-user-password", username="root", password="another one")
    assert guest.ssh("echo in", password="another one") == "in"
    guest.api.post(f"{guest.path}/agent/set-user-password", username="root", password=guest.node.guest_password)
    assert guest.ssh("echo in") == "in"
    said = guest.node.paths.audit_log.read_text() + guest.node.paths.daemon_log.read_text()
    assert "another one" not in said


def test_file_systems_freeze_and_thaw(guest: Guest) -> None:
    where = f"{guest.path}/agent"
    assert guest.api.post(f"{where}/fsfreeze-status")["result"] == "thawed"
    assert guest.api.post(f"{where}/fsfreeze-freeze")["result"] >= 1
    try:
        assert guest.api.post(f"{where}/fsfreeze-status")["result"] == "frozen"
    finally:
        assert guest.api.post(f"{where}/fsfreeze-thaw")["result"] >= 1
    assert guest.api.post(f"{where}/fsfreeze-status")["result"] == "thawed"
    guest.inside("sh", "-c", "echo thawed >/root/after")


def test_unused_blocks_are_trimmed(guest: Guest) -> None:
    assert "paths" in guest.api.post(f"{guest.path}/agent/fstrim")["result"]


def test_an_unknown_command_is_a_bad_parameter(guest: Guest) -> None:
    with pytest.raises(ApiError) as caught:
        guest.api.post(f"{guest.path}/agent", command="guest-shutdown")
    assert caught.value.status == 400
    assert list(caught.value.errors) == ["command"]


def test_two_clients_ask_the_agent_at_once(guest: Guest) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: guest.inside("echo", str(n)), range(16)))
    assert found == [str(n) for n in range(16)]


def refused(guest: Guest) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        guest.api.post(f"{guest.path}/agent/ping")
    return caught.value.status, caught.value.message


def test_why_an_agent_cannot_be_asked(node: Node) -> None:
    bare = node.guest(start=True)
    assert refused(bare) == (500, "No QEMU guest agent configured")
    bare.set(agent="1")
    assert refused(bare) == (500, "No QEMU guest agent configured"), "the machine got its agent's channel while it ran"
    bare.run("stop")
    bare.run("start")
    assert refused(bare) == (500, "QEMU guest agent is not running")
    bare.run("stop")
    assert refused(bare) == (500, f"VM {bare.vmid} is not running")
    bare.destroy()
