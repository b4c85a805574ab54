# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processor time that a node with 20 running guests uses when nobody asks anything of it; the guests do not count."""

import os
import time
from pathlib import Path

from bench.figures import Figure
from bench.node import NAME, Node, cpu_seconds, fresh_node
from orrery.cli.client import Client
from orrery.demo.image import Prepared, prepared
from orrery.errors import OrreryError

GUESTS = 20
SECONDS = 60.0
SETTLE_SECONDS = 15.0
BOOT_SECONDS = 120.0
CACHE = Path(__file__).resolve().parents[1] / "build" / "demo"
IMAGE = "measured.qcow2"


def image() -> Prepared:
    """The disk of the demonstration guest, which a small Linux with agent boots from; built once, with the network."""
    return prepared(CACHE)


def measure() -> list[Figure]:
    """Core, zygote and nginx together as a share of one processor, and each by itself; first without any guest."""
    with fresh_node() as node, node.serving():
        time.sleep(SETTLE_SECONDS)
        empty = sum(shares(node, SECONDS / 3).values())
        client = node.local()
        start_guests(client)
        time.sleep(SETTLE_SECONDS)
        parts = shares(node, SECONDS)
        running = client.call("GET", f"/nodes/{NAME}/qemu")
        assert sum(row["status"] == "running" for row in running) == GUESTS
    return [
        Figure(f"node with {GUESTS} guests: share of one processor", sum(parts.values()), "%", goal=2),
        *(Figure(f"  {name}", share, "%") for name, share in parts.items()),
        Figure("  node without guests", empty, "%"),
    ]


def shares(node: Node, seconds: float) -> dict[str, float]:
    """Percent of one processor that each part uses meanwhile, children that ended within included."""
    parts = {"core": [node.core], "zygote": [node.zygote()], "nginx": node.front()}
    before = {name: sum(map(total_seconds, pids)) for name, pids in parts.items()}
    begun = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begun
    return {name: (sum(map(total_seconds, pids)) - before[name]) / passed * 100 for name, pids in parts.items()}


def total_seconds(pid: int) -> float:
    """Processor time of a process and of its children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return cpu_seconds(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def start_guests(client: Client) -> None:
    """Makes and starts the guests, each when the agent in the one before answers: without KVM a boot is much work."""
    storage = f"/nodes/{NAME}/storage/local"
    client.wait(client.upload(f"{storage}/upload", {"content": "import"}, image().image, IMAGE))
    for vmid in range(100, 100 + GUESTS):
        options = {
            "vmid": vmid,
            "name": f"idle{vmid}",
            "memory": 128,
            "virtio0": f"local:0,import-from=local:import/{IMAGE}",
            "net0": "virtio,bridge=vmbr0",
            "serial0": "socket",
            "agent": 1,
            "ostype": "l26",
            "start": 1,
        }
        client.wait(client.call("POST", f"/nodes/{NAME}/qemu", options))
        end = time.monotonic() + BOOT_SECONDS
        while not answers(client, vmid):
            assert time.monotonic() < end, f"guest {vmid} does not come up"
            time.sleep(0.5)


def answers(client: Client, vmid: int) -> bool:
    """Whether the agent answers."""
    try:
        client.call("POST", f"/nodes/{NAME}/qemu/{vmid}/agent/ping")
    except OrreryError:
        return False
    return True
