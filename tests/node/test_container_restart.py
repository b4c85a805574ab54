# SPDX-License-Identifier: AGPL-3.0-or-later
"""A container that was changed while it ran, and then restarts itself, is what its configuration says by then."""

from tests.node.harness import Node, eventually


def test_what_was_changed_holds_after_a_restart_from_inside(node: Node, template: str) -> None:
    made = node.container(template, start=True)
    made.address()
    made.set(net1="name=eth1,bridge=vmbr0,ip=10.99.0.2/24")
    made.set(tty=3)
    assert made.pending() == {"tty": 3}
    made.inside("reboot")

    def has_both() -> bool:
        done = node.cli("ct", "exec", str(made.vmid), "--", "ls", "/sys/class/net", check=False)
        return "eth0" in done.stdout and "eth1" in done.stdout

    def started_by_a_task() -> bool:
        tasks = node.api.get(f"{node.path}/tasks", vmid=made.vmid, typefilter="vzstart")
        return len([task for task in tasks if task.get("status") == "OK"]) == 2

    eventually(started_by_a_task, 60, "a second start")
    eventually(has_both, 30, "both cards")
    eventually(lambda: "10.99.0.2" in made.addresses(), 30, "the address of the second card")
    assert made.pending() == {}
    made.destroy()
