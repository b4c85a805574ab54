# SPDX-License-Identifier: AGPL-3.0-or-later
"""Power of a machine: every verb as a guest inside sees it, and as lists tell it."""

import time

import pytest
from tests.node.client import ApiError, TaskFailed
from tests.node.harness import Guest, Node, eventually

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def agentless(node: Node, demo_volume: str) -> Guest:
    """The guest without an agent's channel; stopped."""
    return node.guest(disk=demo_volume, agent=None)


def booted(guest: Guest) -> str:
    """What tells one boot of a guest from another."""
    guest.wait_agent()
    return guest.inside("cat", "/proc/sys/kernel/random/boot_id")


def total_memory(guest: Guest) -> int:
    """In KiB, as the system inside sees it."""
    return int(guest.inside("sh", "-c", "awk '/MemTotal/ {print $2}' /proc/meminfo"))


def running(guest: Guest) -> bool:
    return bool(guest.status()["status"] == "running")


def answers_ping(guest: Guest) -> bool:
    return guest.api.send("POST", f"{guest.path}/agent/ping").status_code == 200


# --- while it runs (these leave it running)


def test_suspend_halts_and_resume_goes_on(guest: Guest) -> None:
    before = booted(guest)
    guest.run("suspend")
    assert guest.status()["qmpstatus"] == "paused"
    assert guest.status()["status"] == "running"
    assert not answers_ping(guest)
    guest.run("resume")
    assert guest.status()["qmpstatus"] == "running"
    assert booted(guest) == before
    guest.run("suspend")
    guest.run("suspend")
    guest.run("resume")
    guest.run("resume")


def test_reset_boots_it_anew_in_the_same_process(guest: Guest) -> None:
    before, pid = booted(guest), guest.pid()
    guest.run("reset")
    eventually(lambda: not answers_ping(guest) or booted(guest) != before, 20)
    assert booted(guest) != before
    assert guest.pid() == pid


def test_reboot_shuts_down_and_lets_pending_changes_take_effect(guest: Guest) -> None:
    before, pid, memory = booted(guest), guest.pid(), total_memory(guest)
    guest.set(memory="192")
    assert guest.config()["memory"] == "192"
    assert guest.config(current=1)["memory"] == "160"
    guest.run("reboot")
    assert booted(guest) != before
    assert guest.pid() != pid
    assert guest.config(current=1)["memory"] == "192"
    assert total_memory(guest) > memory
    guest.set(memory="160")


def test_what_cannot_be_done_to_a_machine_that_runs(guest: Guest) -> None:
    for verb, path, text in (
        ("POST", f"{guest.path}/status/start", f"VM {guest.vmid} already running"),
        ("DELETE", guest.path, f"VM {guest.vmid} is running - destroy failed"),
    ):
        with pytest.raises(ApiError) as caught:
            guest.api.call(verb, path)
        assert (caught.value.status, caught.value.message) == (500, text)


# --- its end


def test_shutdown_by_the_agent(guest: Guest) -> None:
    booted(guest)
    guest.inside("sh", "-c", "echo kept >/root/kept; sync")
    log = guest.run("shutdown", timeout=60)
    assert not any("power button" in line for line in log)
    assert guest.status()["status"] == "stopped"
    assert guest.status()["qmpstatus"] == "stopped"
    guest.run("start")
    guest.wait_agent()
    assert guest.inside("cat", "/root/kept") == "kept"


def test_shutdown_by_the_power_button(agentless: Guest) -> None:
    agentless.run("start")
    time.sleep(2)

    def down() -> bool:
        """A guest that has not come up yet does not hear the button: it is pressed again."""
        upid = agentless.api.post(f"{agentless.path}/status/shutdown", timeout=10)
        return agentless.api.ended(upid) == "OK"

    eventually(down, 90)
    assert not running(agentless)
    assert not agentless.node.paths.guest_run(agentless.vmid).exists()


def test_a_guest_that_ends_by_itself_is_noticed(guest: Guest) -> None:
    booted(guest)
    guest.api.post(f"{guest.path}/agent/exec", {"command": ["poweroff"]})
    eventually(lambda: not running(guest), 30)
    eventually(lambda: not guest.node.paths.guest_run(guest.vmid).exists(), 10, "tidying up")
    assert guest.vmid not in guest.node.machines()
    guest.run("start")


# --- guests that do not do what they are asked (these have no system inside)


@pytest.fixture
def deaf(node: Node) -> Guest:
    """A machine that runs without any system inside: nothing in it hears the power button."""
    return node.guest(start=True)


def test_a_guest_that_ignores_shutdown_runs_on(deaf: Guest) -> None:
    begun = time.monotonic()
    upid = deaf.api.post(f"{deaf.path}/status/shutdown", timeout=2)
    status = deaf.api.ended(upid)
    assert status == f"VM quit/powerdown failed - got timeout: VM {deaf.vmid} still runs after 2 seconds"
    assert 2 <= time.monotonic() - begun < 10
    assert running(deaf)
    assert deaf.node.locks() == []
    deaf.destroy()


def test_a_guest_that_ignores_shutdown_is_stopped_by_force(deaf: Guest) -> None:
    log = deaf.run("shutdown", timeout=1, forceStop=1)
    assert any("stopping it" in line for line in log)
    assert not running(deaf)
    deaf.destroy()


def test_a_shutdown_that_waits_is_cancelled_and_overruled(deaf: Guest) -> None:
    upid = deaf.api.post(f"{deaf.path}/status/shutdown", timeout=100)
    eventually(lambda: deaf.api.state(upid).get("progress"), 10, "progress")
    deaf.api.delete(f"{deaf.node.path}/tasks/{upid}")
    assert deaf.api.ended(upid, 10) == "received interrupt"
    assert running(deaf)
    upid = deaf.api.post(f"{deaf.path}/status/shutdown", timeout=100)
    deaf.run("stop", overrule_shutdown=1)
    assert deaf.api.ended(upid, 10) == "received interrupt"
    assert not running(deaf)
    deaf.destroy()


def test_verbs_of_a_machine_that_does_not_run(node: Node) -> None:
    made = node.guest()
    for verb in ("shutdown", "reboot", "reset", "suspend", "resume"):
        with pytest.raises(ApiError) as caught:
            made.run(verb)
        assert (caught.value.status, caught.value.message) == (500, f"VM {made.vmid} not running")
    assert "not running" in made.run("stop")[0]
    made.destroy()


def test_verbs_of_a_machine_that_does_not_exist(node: Node) -> None:
    nowhere = Guest(node, 4711)
    for verb in ("start", "stop", "shutdown"):
        with pytest.raises(ApiError) as caught:
            nowhere.run(verb)
        assert caught.value.status == 500
        assert caught.value.message == "Configuration file 'nodes/alpha/qemu-server/4711.conf' does not exist"


def test_two_starts_at_once_start_one_machine(node: Node) -> None:
    made = node.guest()
    upids = [node.api.post(f"{made.path}/status/start") for _ in range(2)]
    ends = sorted(node.api.ended(upid) for upid in upids)
    assert ends == ["OK", f"VM {made.vmid} already running"]
    assert running(made)
    assert node.machines().count(made.vmid) == 1
    made.destroy()


def test_start_failing_leaves_nothing(node: Node) -> None:
    made = node.guest(net0="virtio,bridge=vmbr77")
    with pytest.raises((TaskFailed, ApiError)) as caught:
        made.run("start")
    assert "vmbr77" in str(caught.value)
    assert not running(made)
    assert not node.paths.guest_run(made.vmid).exists()
    made.destroy()
