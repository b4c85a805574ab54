# SPDX-License-Identifier: AGPL-3.0-or-later
"""Links, bridges, taps and addresses of the network namespace that we are in.

Each call opens its own netlink socket (under a millisecond) and keeps nothing. Not for use inside a running event loop:
call it from a worker thread or a task.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, ip_interface
from pathlib import Path
from socket import if_nametoindex
from typing import Any, Final

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from orrery.errors import Failure, NotFound, NotSupported

LONGEST_NAME: Final = 15  # IFNAMSIZ without the closing zero

# include/uapi/linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x0100, 0x8000
_IFREQ: Final = struct.Struct("16sH22x")
_TUN: Final = Path("/dev/net/tun")
# include/uapi/linux/if_bridge.h
_VLAN_PVID, _VLAN_UNTAGGED = 2, 4
_IFF_UP: Final = 1
_TC_ROOT: Final = 0xFFFFFFFF  # include/uapi/linux/pkt_sched.h
_AF_INET, _AF_BRIDGE, _AF_INET6 = 2, 7, 10
_SCOPE_LINK: Final = 253
_MAIN_TABLE: Final = 254
_LATENCY: Final = "100ms"  # how long a limited interface may hold a packet back
_SMALLEST_BURST: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. `kind` is the kernel's word (`bridge`, `tun`, `veth`, empty for hardware)."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    running: bool
    master: int | None
    alias: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    vlan_aware: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes and packets that the host received from and sent to an interface since it exists."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[Any]:
    """A netlink socket; errors become Failure with `what` as a clause, a missing interface NotFound."""
    try:
        with IPRoute() as socket:  # type: ignore[no-untyped-call]
            yield socket
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno or errno.EIO
        text = f"unable to {what}: {os.strerror(code)}"
        raise (NotFound(text) if code == errno.ENODEV else Failure(text)) from error


@contextlib.contextmanager
def _unless(*codes: int) -> Iterator[None]:
    """Let errors of these numbers pass."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


# --- looking


def links() -> dict[str, Link]:
    """All interfaces by name, with their addresses, in the order of their index."""
    with _netlink("list the network interfaces") as socket:
        messages = socket.get_links()
        addresses: dict[int, list[IPv4Interface | IPv6Interface]] = {}
        for message in socket.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            addresses.setdefault(message["index"], []).append(ip_interface(f"{address}/{message['prefixlen']}"))
    found = (_link(message, tuple(addresses.get(message["index"], ()))) for message in messages)
    return {link.name: link for link in sorted(found, key=lambda link: link.index)}


def link(name: str) -> Link | None:
    """One interface, without its addresses; None when there is none of that name."""
    if not name or len(os.fsencode(name)) > LONGEST_NAME:
        return None
    try:
        with _netlink(f"look at '{name}'") as socket:
            return _link(socket.link("get", ifname=name)[0], ())
    except NotFound:
        return None


def _link(message: Any, addresses: tuple[IPv4Interface | IPv6Interface, ...]) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        running=message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
        master=message.get_attr("IFLA_MASTER"),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        addresses=addresses,
        vlan_aware=bool(kind == "bridge" and data and data.get_attr("IFLA_BR_VLAN_FILTERING")),
    )


def ports(bridge: Link, among: dict[str, Link]) -> list[Link]:
    """The interfaces that are plugged into a bridge."""
    return [port for port in among.values() if port.master == bridge.index]


def routes() -> list[IPv4Network]:
    """The IPv4 networks that the main table has routes to, the default route left out."""
    with _netlink("list the routes") as socket:
        return [
            IPv4Network(f"{message.get_attr('RTA_DST')}/{message['dst_len']}", strict=False)
            for message in socket.get_routes(family=_AF_INET)
            if message.get_attr("RTA_TABLE") == _MAIN_TABLE and message["dst_len"]
        ]


def counters() -> dict[str, Counters]:
    """Traffic of all interfaces at once (one read of /proc/net/dev, proc(5))."""
    return parse_counters(Path("/proc/thread-self/net/dev").read_text())


def parse_counters(text: str) -> dict[str, Counters]:
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        found[name.strip()] = Counters(int(fields[0]), int(fields[1]), int(fields[8]), int(fields[9]))
    return found


# --- changing


def create_bridge(name: str, mac: str) -> None:
    """Make a bridge with that MAC address, down and without ports; no spanning tree, no delay. Raises Failure."""
    with _netlink(f"create the bridge '{name}'") as socket:
        socket.link("add", ifname=name, kind="bridge", address=mac, br_stp_state=0, br_forward_delay=0)


def create_veth(name: str, peer: str, *, mac: str | None, mtu: int) -> None:
    """Make a pair of connected interfaces, down; `mac` and `mtu` are the peer's. Raises Failure."""
    with _netlink(f"create the network interface '{name}'") as socket:
        other = {"ifname": peer, "mtu": mtu, **({"address": mac.lower()} if mac else {})}
        socket.link("add", ifname=name, kind="veth", peer=other)


def move_link(name: str, pid: int, new_name: str) -> None:
    """Move an interface into the network of a process, under another name. Raises NotFound, Failure."""
    with _netlink(f"move the network interface '{name}'") as socket:
        socket.link("set", index=_index(name), net_ns_pid=pid, ifname=new_name)


def delete_link(name: str) -> bool:
    """Remove an interface; False when there was none."""
    try:
        with _netlink(f"remove the network interface '{name}'") as socket:
            socket.link("del", index=_index(name))
    except NotFound:
        return False
    return True


def change_link(
    name: str, *, up: bool | None = None, alias: str | None = None, mtu: int | None = None, bridge: str | None = None
) -> None:
    """Change what is given; `bridge` plugs the interface into that bridge, "" unplugs it. Raises NotFound, Failure."""
    with _netlink(f"change the network interface '{name}'") as socket:
        index = _index(name)
        changes: dict[str, Any] = {}
        if alias is not None:
            changes["ifalias"] = alias
        if mtu is not None:
            changes["mtu"] = mtu
        if bridge is not None:
            changes["master"] = _index(bridge) if bridge else 0
        if changes:
            socket.link("set", index=index, **changes)
        if up is not None:
            socket.link("set", index=index, state="up" if up else "down")


def add_address(name: str, address: IPv4Interface | IPv6Interface) -> None:
    """Give an interface an address (idempotent). Raises NotFound, Failure."""
    with _netlink(f"give the address {address} to '{name}'") as socket:
        try:
            socket.addr("add", index=_index(name), address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise


def add_default_route(name: str, gateway: IPv4Address | IPv6Address) -> None:
    """Send what has no other way through an interface to a gateway, wherever that is (idempotent). Raises Failure."""
    with _netlink(f"set the gateway {gateway} of '{name}'") as socket:
        index, family = _index(name), _AF_INET if gateway.version == 4 else _AF_INET6
        with _unless(errno.EEXIST):
            socket.route("add", family=family, dst=f"{gateway}/{gateway.max_prefixlen}", oif=index, scope=_SCOPE_LINK)
        socket.route("replace", family=family, gateway=str(gateway), oif=index)


def _index(name: str) -> int:
    """Number of an interface. Raises OSError with ENODEV."""
    try:
        return if_nametoindex(name)
    except OSError as error:  # it comes without a number
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error


def open_tap(name: str, queues: int = 1) -> list[int]:
    """Make a tap that exists as long as somebody holds one of its descriptors, and give them, one for each queue.

    They carry the virtio header, as QEMU wants. Raises Failure, also when the name is taken.
    """
    shape = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    descriptors: list[int] = []
    try:
        for number in range(queues):
            descriptors.append(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
            flags = shape | (0 if number else _IFF_TUN_EXCL)  # exclusive: never another's tap of that name
            fcntl.ioctl(descriptors[-1], _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        hint = " (is the kernel module 'tun' loaded?)" if error.errno in (errno.ENOENT, errno.ENODEV) else ""
        raise Failure(f"unable to create the tap '{name}': {error.strerror}{hint}") from error
    return descriptors


def limit_output(name: str, rate: int | None) -> None:
    """Let the host send at most `rate` bytes per second into the interface; None for no limit. Raises Failure."""
    with _netlink(f"limit the rate of '{name}'") as socket:
        index = _index(name)
        if rate is None:
            with _unless(errno.ENOENT, errno.EINVAL):  # there was no limit
                socket.tc("del", index=index, parent=_TC_ROOT)
            return
        socket.tc("replace", "tbf", index, rate=rate, burst=burst(rate), latency=_LATENCY)


def burst(rate: int) -> int:
    """Bytes that a limit of `rate` bytes per second lets through at once: a tenth of a second's worth."""
    return max(_SMALLEST_BURST, rate // 10)


def set_vlans(name: str, tag: int | None, trunks: Sequence[tuple[int, int]] = ()) -> None:
    """Make a port of a VLAN-aware bridge carry `tag` untagged, and the ranges `trunks` (first, last) tagged.

    Without `tag` the port keeps the bridge's own VLAN. Raises NotSupported where the kernel cannot, Failure otherwise.
    """
    try:
        with _netlink(f"set the VLANs of '{name}'") as socket:
            index = _index(name)
            if tag is not None:
                with _unless(errno.ENOENT):  # it may have none to begin with
                    socket.vlan_filter("del", index=index, vlan_info={"vid": 1})
                socket.vlan_filter("add", index=index, vlan_info={"vid": tag, "flags": _VLAN_PVID | _VLAN_UNTAGGED})
            for first, last in trunks:
                for vid in range(first, last + 1):
                    if vid != tag:
                        socket.vlan_filter("add", index=index, vlan_info={"vid": vid, "flags": 0})
    except Failure as error:
        cause = error.__cause__
        if isinstance(cause, NetlinkError) and cause.code == errno.EOPNOTSUPP:
            raise NotSupported("VLAN tags are not supported: this kernel's bridges do not filter VLANs") from error
        raise
