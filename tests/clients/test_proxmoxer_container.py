# SPDX-License-Identifier: AGPL-3.0-or-later
"""proxmoxer drives a container on a real node through its whole life."""

from collections.abc import Callable
from typing import Any

import pytest
from proxmoxer import ProxmoxAPI, ResourceException
from tests.clients.test_proxmoxer import ended, pve
from tests.node.harness import Node, container_options, eventually

__all__ = ["ended", "pve"]


def test_a_container_lives(
    pve: ProxmoxAPI,
    ended: Callable[..., dict[str, Any]],
    node: Node,
    template: str,
) -> None:
    vmid = node.next_vmid()
    where = pve.nodes(node.name).lxc
    ended(where.post(**container_options(vmid, template), hostname="by-proxmoxer", swap=0))
    ended(where(vmid).status.start.post())
    assert where(vmid).status.current.get()["status"] == "running"

    def address() -> str:
        cards = {card["name"]: card for card in where(vmid).interfaces.get()}
        return str(cards.get("eth0", {}).get("inet") or "")

    assert "/" in eventually(address, 60, "an address")
    assert where(vmid).config.put(memory=96, description="changed") is None
    config = where(vmid).config.get()
    assert (config["memory"], config["description"].strip(), config["hostname"]) == (96, "changed", "by-proxmoxer")
    assert [row["key"] for row in where(vmid).pending.get() if "pending" in row] == []
    ended(where(vmid).status.suspend.post())
    ended(where(vmid).status.resume.post())
    ended(where(vmid).status.reboot.post(timeout=60))
    ended(where(vmid).status.shutdown.post(timeout=60, forceStop=1))
    ended(where(vmid).resize.put(disk="rootfs", size="+16M"))
    assert where(vmid).config.get()["rootfs"].endswith("size=80M")
    assert {row["vmid"]: row["type"] for row in pve.cluster.resources.get(type="vm")}[vmid] == "lxc"
    ended(where(vmid).delete(purge=1))
    with pytest.raises(ResourceException, match=f"lxc/{vmid}.conf' does not exist"):
        where(vmid).config.get()
