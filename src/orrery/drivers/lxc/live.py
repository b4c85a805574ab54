# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changing a container while it runs: mounts, network cards, devices.

LXC knows nothing of this. A container that was changed is therefore started anew by us when it restarts from inside.
"""

import stat
from ipaddress import ip_address, ip_interface
from typing import Final

from orrery.drivers.lxc import inside, launching
from orrery.drivers.lxc.plan import STAGE, Device
from orrery.drivers.lxc.records import ContainerRecord
from orrery.errors import Failure, NotFound
from orrery.system import livemounts, netlink, process
from orrery.system.cgroup import Group
from orrery.system.mounts import ContainerMount, LoopImage
from orrery.system.paths import Paths

_CONTROL_SECONDS: Final = 20.0


class LiveContainer:
    """A running container, to change it; `first` is its first process."""

    def __init__(self, vmid: int, paths: Paths, record: ContainerRecord, group: Group, first: int) -> None:
        self._vmid = vmid
        self._paths = paths
        self._record = record
        self._group = group
        self._first = first

    # --- mounts

    def attach_mount(self, mount: ContainerMount) -> None:
        """Show a mount inside. Raises Failure; then nothing has changed."""
        if mount.target == "/" or livemounts.is_mounted(self._first, mount.target):
            raise Failure(f"{mount.key}: something is mounted at '{mount.target}' already")
        options = mount.options if self._record.ids is None else (*mount.options, "nodev")
        placed = ContainerMount(mount.key, mount.source, mount.target, mount.read_only, options).at(STAGE)
        mapped = mount.mapped and self._record.ids is not None
        livemounts.attach(self._first, placed, mount.target, owner=self._record.root, mapped=mapped)

    def detach_mount(self, mount: ContainerMount) -> None:
        """Take a mount away (idempotent). Raises Failure, "… busy" when something inside uses it."""
        livemounts.detach(self._first, mount.target)
        monitor = self._record.process.pid
        livemounts.detach(monitor, str(STAGE / mount.key), lazy=True)
        if isinstance(mount.source, LoopImage) and not livemounts.wait_unused(mount.source.path):
            raise Failure(f"{mount.key}: '{mount.target}' is still in use by a program inside")

    def grow(self, mount: ContainerMount) -> None:
        """Let a mounted image fill its file, which has grown (idempotent). Raises Failure."""
        if not isinstance(mount.source, LoopImage):
            return
        monitor, place = self._record.process.pid, str(STAGE / mount.key)
        if livemounts.is_mounted(monitor, place):
            livemounts.grow(monitor, mount.source.path, place)
        else:  # it was attached later, and is mounted in the container alone
            livemounts.grow(self._first, mount.source.path, mount.target)

    # --- network cards

    def attach_nic(self, peer: str, name: str) -> None:
        """Move an interface of the host, the end of a pair, into the container. Raises Failure."""
        if name in livemounts.in_network(self._first, netlink.links):
            raise Failure(f"the container has a network card '{name}' already")
        netlink.move_link(peer, self._first, name)

    def detach_nic(self, name: str) -> bool:
        """Remove a card, and with it the other end of its pair; whether it was there."""
        return livemounts.in_network(self._first, lambda: netlink.delete_link(name))

    def address_nic(self, name: str, addresses: tuple[str, ...], gateways: tuple[str, ...] = ()) -> None:
        """Bring a card up with these addresses (ADDRESS/PREFIX) and gateways, beside those it has. Raises Failure."""

        def work() -> None:
            netlink.change_link(name, up=True)
            for address in addresses:
                netlink.add_address(name, ip_interface(address))
            for gateway in gateways:
                netlink.add_default_route(name, ip_address(gateway))

        try:
            livemounts.in_network(self._first, work)
        except NotFound as error:
            raise Failure(f"the container has no network card '{name}'") from error

    # --- devices

    def attach_device(self, device: Device) -> None:
        """Show a device inside, with the right to use it. Raises Failure; then it has neither."""
        node = launching.owned(device.node, self._record.ids)
        self._allow(device, allow=True)
        try:
            livemounts.attach_node(self._first, node, STAGE, device.inside, self._record.root)
        except Failure:
            self._allow(device, allow=False)
            raise

    def detach_device(self, device: Device) -> None:
        """Take a device away; programs that have it open keep it."""
        self._allow(device, allow=False)
        livemounts.detach_node(self._first, device.inside, self._record.root)

    def _allow(self, device: Device, *, allow: bool) -> None:
        kind = "block" if stat.S_ISBLK(device.node.mode) else "character"
        rule = f"{device.node.rule} {'rw' if device.writable else 'r'}"
        if "devices" in self._group.mounted.mounts:
            for warning in self._group.allow_device(rule, allow=allow):
                raise Failure(warning)
            return
        # Version 2: LXC's monitor holds the program that decides.
        key = "devices.allow" if allow else "devices.deny"
        command = inside.tool(self._vmid, self._paths, self._record.process, "lxc-cgroup")
        process.run([*command, key, rule], name=f"lxc-cgroup ({kind} device)", timeout=_CONTROL_SECONDS)
