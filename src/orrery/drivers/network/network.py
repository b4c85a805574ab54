# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node's network: the bridge `vmbr0` with NAT, DHCP and DNS where the host has none, and the guests' taps.

A `vmbr0` that somebody else made is used as it is, and nothing of ours is started. What is ours is recognized by its
MAC address (written down before the bridge is made) or by its alias, and taken up again after any end. Everything is
idempotent: the same call repairs, completes or confirms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Interface
from typing import Any, Final

from orrery.drivers.network import firewall
from orrery.drivers.network.dhcp import DhcpService, Lease, host_name_servers
from orrery.drivers.network.record import NetworkRecord, current_scope, fresh, load
from orrery.drivers.network.taps import Tap, Taps, own_taps
from orrery.drivers.network.veths import Veth, Veths
from orrery.model.container_devices import ContainerNic
from orrery.model.devices import Nic
from orrery.system import netlink, sysctl
from orrery.system.files import FileLock, sync_dir
from orrery.system.netlink import Link
from orrery.system.paths import Paths

BRIDGE: Final = "vmbr0"
_MTU: Final = 1500
_FORWARD: Final = "net/ipv4/ip_forward"
_LOCK_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """How the network is. `state`: `own` (made by this root), `foreign` (somebody else's vmbr0) or `absent`.

    `notes` are sentences for the administrator: what of others' was found, used, or stands in the way.
    """

    state: str
    bridge: str = BRIDGE
    subnet: IPv4Network | None = None
    gateway: IPv4Address | None = None
    dhcp: bool = False
    leases: int = 0
    notes: tuple[str, ...] = ()


class Network:
    """The network of one root, in the network namespace that we are in. Not for use in a running event loop."""

    def __init__(self, paths: Paths, node: str) -> None:
        self.paths = paths
        self.node = node
        self._marker = f"orrery:{paths.root_digest}"
        self._table = firewall.table_name(paths.root_hash)
        self._dhcp = DhcpService(paths)
        self._taps = Taps(paths)
        self._veths = Veths(paths, self._taps)

    # --- the bridge and its services

    def prepare(self) -> NetworkStatus:
        """Make sure that `vmbr0` is there, and, if it is ours, all that belongs to it. Raises Failure, Corrupt."""
        with self._lock():
            record = load(self.paths.network_json)
            links = netlink.links()
            present = links.get(BRIDGE)
            if present is not None and not self._is_ours(present, record):
                if record is not None:  # ours was replaced by somebody else's
                    self._withdraw(record)
                    self._forget()
                return self.status()
            record = self._recorded(record, present, links)
            if present is None:
                netlink.create_bridge(BRIDGE, record.mac)
            netlink.change_link(BRIDGE, alias=self._marker, mtu=_MTU)
            netlink.add_address(BRIDGE, record.gateway)
            netlink.change_link(BRIDGE, up=True)
            self._enable_forwarding(record)
            firewall.apply(firewall.nat_rules(self._table, BRIDGE, record.subnet))
            self._open_foreign_chains()
            self._taps.forget_limits()
            self._dhcp.start(BRIDGE, record.subnet)
        return self.status()

    def maintain(self) -> None:
        """Repair what others may have undone or changed: name servers, the service, rules. For once a minute.

        Raises Failure, Corrupt, Locked.
        """
        with self._lock():
            record = load(self.paths.network_json)
            present = netlink.link(BRIDGE)
            if record is None or present is None or not self._is_ours(present, record):
                return
            self._open_foreign_chains()
            self._dhcp.start(BRIDGE, record.subnet)

    def remove(self) -> list[str]:
        """Take away what this root made, and only that; gives sentences about what was kept, and why.

        A bridge into which something is still plugged stays, with its services. Raises Failure, Corrupt.
        """
        with self._lock():
            record = load(self.paths.network_json)
            links = netlink.links()
            present = links.get(BRIDGE)
            ours = present is not None and self._is_ours(present, record)
            if ours and present is not None and (ports := netlink.ports(present, links)):
                names = ", ".join(port.name for port in ports)
                return [f"bridge '{BRIDGE}' was kept with its services: {names} is still plugged into it"]
            notes = self._withdraw(record) if ours or record is not None else []
            if ours:
                netlink.delete_link(BRIDGE)
            self._taps.forget_limits()
            if not firewall.limited_taps(self._table):
                firewall.remove_table("netdev", self._table)
            self._forget()
        return notes

    def _withdraw(self, record: NetworkRecord | None) -> list[str]:
        """Take back all but the bridge and the guests' taps."""
        self._dhcp.stop()
        firewall.close_user_chain(self._table, BRIDGE)
        firewall.remove_table("ip", self._table)
        return self._restore_forwarding(record)

    def _forget(self) -> None:
        self.paths.network_json.unlink(missing_ok=True)
        sync_dir(self.paths.lib)

    def _lock(self) -> FileLock:
        return FileLock(self.paths.network_lock, _LOCK_SECONDS)

    def _is_ours(self, bridge: Link, record: NetworkRecord | None) -> bool:
        return bridge.kind == "bridge" and (
            bridge.alias == self._marker or (record is not None and bridge.mac == record.mac)
        )

    def _recorded(self, record: NetworkRecord | None, present: Link | None, links: Mapping[str, Link]) -> NetworkRecord:
        """The record that holds for this boot, on disk before anything is changed."""
        known = record is not None and record.scope == current_scope()
        if record is not None and known and (present is not None or not _clashes(record.subnet, links)):
            return record
        if present is not None:
            made = self._adopted(present, record)
        else:
            made = fresh(record, _used(links), int(self.paths.root_hash, 16))
            if record is not None and known:
                made = replace(made, forward_before=record.forward_before)
        made.save(self.paths.network_json)
        return made

    def _adopted(self, bridge: Link, record: NetworkRecord | None) -> NetworkRecord:
        """A record for a bridge that bears our mark, where the file is lost or from another boot or namespace."""
        if record is not None:
            return replace(record, scope=current_scope(), forward_before=None)
        for address in bridge.addresses:
            if not isinstance(address, IPv6Interface) and address.ip == address.network[1]:
                return NetworkRecord(current_scope(), bridge.mac, address.network)
        return replace(fresh(None, _used(netlink.links()), int(self.paths.root_hash, 16)), mac=bridge.mac)

    # --- forwarding

    def _enable_forwarding(self, record: NetworkRecord) -> None:
        value = sysctl.read(_FORWARD)
        if value == "1":
            return
        if record.forward_before is None:
            replace(record, forward_before=value).save(self.paths.network_json)
        sysctl.write(_FORWARD, "1")

    def _restore_forwarding(self, record: NetworkRecord | None) -> list[str]:
        if record is None or record.forward_before != "0" or record.scope != current_scope():
            return []
        if firewall.others_forward(self._table):
            return ["the kernel goes on forwarding packets: other programs have rules for forwarded packets"]
        sysctl.write(_FORWARD, "0")
        return []

    def _open_foreign_chains(self) -> None:
        if any(drop.has_user_chain for drop in firewall.foreign_drops(self._table)):
            firewall.open_user_chain(self._table, BRIDGE)

    # --- looking

    def status(self) -> NetworkStatus:
        """How the network is now. Raises Failure, Corrupt."""
        record = load(self.paths.network_json)
        bridge = netlink.link(BRIDGE)
        if bridge is None:
            return NetworkStatus("absent", notes=(f"bridge '{BRIDGE}' does not exist",))
        if not self._is_ours(bridge, record):
            note = f"bridge '{BRIDGE}' was not made by this node and is used as it is, without DHCP and NAT of ours"
            return NetworkStatus("foreign", notes=(note,))
        subnet = record.subnet if record else None
        return NetworkStatus(
            "own",
            subnet=subnet,
            gateway=subnet[1] if subnet else None,
            dhcp=bool(self._dhcp.processes()),
            leases=len(self._dhcp.leases()),
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = [] if self._dhcp.processes() else ["the DHCP service of the guests does not run"]
        for drop in firewall.foreign_drops(self._table):
            if drop.has_user_chain and firewall.user_chain_is_open(self._table, BRIDGE):
                notes.append(f"chain '{drop}' drops forwarded packets; guests pass by rules of ours in its user chain")
            elif drop.hook == "forward":
                notes.append(f"chain '{drop}' drops forwarded packets: allow '{BRIDGE}' there, or guests stay cut off")
            else:
                notes.append(f"chain '{drop}' drops packets to this host: allow UDP 53 and 67 from '{BRIDGE}' there")
        return notes

    def bridges(self) -> list[dict[str, Any]]:
        """Bridges to which guests can be connected, as the API lists them."""
        links = netlink.links()
        return [self._row(link, links) for link in links.values() if link.kind == "bridge"]

    def _row(self, bridge: Link, links: Mapping[str, Link]) -> dict[str, Any]:
        taps = set(own_taps(self.paths.root_hash, links).values())
        ports = [port.name for port in netlink.ports(bridge, dict(links)) if port.name not in taps]
        v4 = [address for address in bridge.addresses if address.version == 4]
        v6 = [address for address in bridge.addresses if address.version == 6 and not address.is_link_local]
        row: dict[str, Any] = {
            "iface": bridge.name,
            "type": "bridge",
            "active": int(bridge.up),
            "exists": 1,
            "autostart": 1,
            "priority": bridge.index,
            "method": "static" if v4 else "manual",
            "method6": "static" if v6 else "manual",
            "families": ["inet", *(["inet6"] if v6 else [])],
            "bridge_ports": " ".join(ports),
            "bridge_stp": "off",
            "bridge_fd": "0",
            "mtu": str(bridge.mtu),
        }
        if v4:
            row |= {"cidr": str(v4[0]), "address": str(v4[0].ip), "netmask": str(v4[0].network.prefixlen)}
        if v6:
            row |= {"cidr6": str(v6[0]), "address6": str(v6[0].ip), "netmask6": v6[0].network.prefixlen}
        if bridge.vlan_aware:
            row["bridge_vlan_aware"] = 1
        if bridge.alias == self._marker:
            row["comments"] = "made by this node, with NAT, DHCP and DNS\n"
        return row

    def host_address(self) -> str | None:
        """The host's first IPv4 address for the world outside: not loopback's, and not that of our own bridge."""
        for link in netlink.links().values():
            for address in link.addresses if link.up and link.alias != self._marker else ():
                if address.version == 4 and not address.ip.is_loopback and not address.ip.is_link_local:
                    return str(address.ip)
        return None

    def leases(self) -> list[Lease]:
        """Addresses that our DHCP service gave to guests."""
        return self._dhcp.leases()

    # --- taps

    def tap_create(self, vmid: int, index: int, nic: Nic) -> Tap:
        """Open the tap of a guest's card, plugged into its bridge.

        Raises Failure ("bridge 'x' does not exist"), NotSupported; then nothing remains.
        """
        return self._taps.create(vmid, index, nic)

    def tap_reconnect(self, vmid: int, index: int, nic: Nic) -> None:
        """Bring the tap of a running guest to what its card says now."""
        self._taps.reconnect(vmid, index, nic)

    def veth_create(self, vmid: int, index: int, nic: ContainerNic) -> Veth:
        """Make the pair of a container's card, its host's end plugged into the bridge and limited.

        What removes, links and counts taps does so with pairs. Raises as `tap_create` does.
        """
        return self._veths.create(vmid, index, nic)

    def veth_reconnect(self, vmid: int, index: int, nic: ContainerNic) -> None:
        """Bring the host's end of a running container's card to what the card says now."""
        self._taps.reconnect(vmid, index, nic)

    def tap_link(self, vmid: int, index: int, *, up: bool) -> None:
        """Pull or plug the cable of a running guest's card."""
        self._taps.set_link(vmid, index, up=up)

    def tap_remove(self, vmid: int, index: int) -> None:
        """Remove a tap (idempotent)."""
        self._taps.remove(vmid, index)

    def tap_remove_all(self, vmid: int) -> None:
        """Remove all taps of a guest (idempotent)."""
        self._taps.remove_all(vmid)

    def taps(self, vmid: int) -> dict[int, str]:
        """Names of a guest's taps that exist now, by card."""
        return self._taps.of_guest(vmid)

    def guest_counters(self) -> dict[int, tuple[int, int]]:
        """Bytes in and out of each running guest, as the guest sees it."""
        return self._taps.traffic()


def _used(links: Mapping[str, Link]) -> list[IPv4Network]:
    """Networks that ours must not overlap: those with addresses or routes here, and the name servers."""
    addresses = [address.network for link in links.values() for address in link.addresses]
    local = [network for network in addresses if isinstance(network, IPv4Network)]
    return [*local, *netlink.routes(), *(IPv4Network(server) for server in host_name_servers())]


def _clashes(subnet: IPv4Network, links: Mapping[str, Link]) -> bool:
    return any(subnet.overlaps(network) for network in _used(links))
