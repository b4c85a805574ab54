# SPDX-License-Identifier: AGPL-3.0-or-later
"""Nodes: their state and their bridges."""

import time
from typing import Annotated, Any

from orrery import __version__
from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum
from orrery.api.parameters import NodeParams, NoParams
from orrery.system import host

NODE = "/nodes/{node}"


class ListNetwork(NodeParams):
    """Which interfaces to list."""

    type: (
        Annotated[
            str,
            Enum(
                *("bridge", "bond", "eth", "alias", "vlan", "fabric", "OVSBridge", "OVSBond", "OVSPort", "OVSIntPort"),
                *("vnet", "any_bridge", "any_local_bridge", "include_sdn"),
                doc="Only interfaces of this kind.",
            ),
        ]
        | None
    ) = None


@endpoint("GET", "/nodes", params=NoParams, permission=Everyone(), returns=list[dict[str, Any]])
def list_nodes(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """All nodes; numbers only with Sys.Audit on the node."""
    row = node_row(call)
    if "level" in row:
        row["ssl_fingerprint"] = call.services.fingerprint()
    return [row]


def node_row(call: Call) -> dict[str, Any]:
    """The node as lists show it; numbers only with Sys.Audit on it."""
    node = call.services.node
    row: dict[str, Any] = {"id": f"node/{node}", "type": "node", "node": node, "status": "online"}
    if call.allowed(f"/nodes/{node}", "Sys.Audit"):
        now = call.services.collector.node()
        row |= {
            "level": "",
            "maxcpu": now.maxcpu,
            "cpu": now.cpu,
            "maxmem": now.maxmem,
            "mem": now.mem,
            "maxdisk": now.maxdisk,
            "disk": now.disk,
            "uptime": now.uptime,
        }
    return row


@endpoint(
    "GET",
    NODE + "/status",
    params=NodeParams,
    permission=Perm(NODE, ("Sys.Audit",)),
    returns=dict[str, Any],
    proxy="node",
)
def read_status(call: Call, p: NodeParams) -> dict[str, Any]:
    """State of the node, from the last sample."""
    now = call.services.collector.node()
    cpu = host.cpu()
    kernel = host.kernel()
    return {
        "uptime": now.uptime,
        "loadavg": [f"{value:.2f}" for value in host.load()],
        "cpu": now.cpu,
        "wait": now.wait,
        "idle": 0,
        "cpuinfo": {
            "model": cpu.model,
            "cpus": cpu.count,
            "cores": cpu.cores,
            "sockets": cpu.sockets,
            "mhz": f"{cpu.mhz:.3f}",
            "hvm": int(cpu.hardware_virtualization is not None),
            "flags": " ".join(sorted(cpu.flags)),
            "user_hz": 100,
        },
        "memory": {"total": now.maxmem, "used": now.mem, "free": now.freemem, "available": now.availmem},
        "swap": {"total": now.maxswap, "used": now.swap, "free": now.maxswap - now.swap},
        "rootfs": {"total": now.maxdisk, "used": now.disk, "avail": now.availdisk, "free": now.maxdisk - now.disk},
        "ksm": {"shared": host.same_page_sharing()},
        "kversion": f"{kernel.system} {kernel.release} {kernel.version}",
        "current-kernel": {
            "sysname": kernel.system,
            "release": kernel.release,
            "version": kernel.version,
            "machine": kernel.machine,
        },
        "boot-info": {"mode": "efi" if host.efi() else "legacy-bios"},
        "pveversion": f"orrery/{__version__}",
    }


@endpoint(
    "GET",
    NODE + "/time",
    params=NodeParams,
    permission=Perm(NODE, ("Sys.Audit",)),
    returns=dict[str, Any],
    proxy="node",
)
def read_time(call: Call, p: NodeParams) -> dict[str, Any]:
    """The node's clock: seconds since 1970, and the same as local time counts it."""
    now = int(time.time())
    local = time.localtime(now)
    return {"time": now, "localtime": now + local.tm_gmtoff, "timezone": local.tm_zone}


@endpoint(
    "GET", NODE + "/network", params=ListNetwork, permission=Everyone(), returns=list[dict[str, Any]], proxy="node"
)
def list_network(call: Call, p: ListNetwork) -> list[dict[str, Any]]:
    """Bridges to which guests can be connected; other kinds of interfaces are not managed by this version."""
    if p.type not in (None, "bridge", "any_bridge", "any_local_bridge", "include_sdn"):
        return []
    everything = call.allowed(f"/nodes/{call.services.node}", "Sys.Audit")
    zone = "/sdn/zones/localnetwork"
    return [
        bridge
        for bridge in call.services.context.network.bridges()
        if everything or call.allowed(f"{zone}/{bridge['iface']}", "SDN.Audit", "SDN.Use", any=True)
    ]
