# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changing a machine while it runs: plugging and unplugging, media, rates, sizes, cables, the balloon.

What is plugged is described by the same code that describes it at start. A guest may refuse to let go of a device, or
not listen at all (no system is up yet): that is an error after a while, and the device stays.
"""

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from orrery.drivers.qemu import launching
from orrery.drivers.qemu.commandline import live_context, tap_properties
from orrery.drivers.qemu.devices import controllers, disk, nic
from orrery.drivers.qemu.devices.memory import BALLOON
from orrery.drivers.qemu.devices.parts import Context, Parts, Properties
from orrery.drivers.qemu.facts import HostFacts
from orrery.drivers.qemu.monitor import Event, Monitor, MonitorError
from orrery.drivers.qemu.plan import Command, TapFds, VolumeFile
from orrery.errors import Failure
from orrery.model.devices import MachineView, Nic
from orrery.model.disks import Disk

UNPLUG_SECONDS: Final = 10.0
_UNDO_SECONDS: Final = 3.0
_RELEASE_SECONDS: Final = 10.0
_RELEASE_POLL: Final = 0.02
_PERIPHERALS: Final = "/machine/peripheral"
_OBJECTS: Final = "/objects"


class LiveSources:
    """Hands what devices need to the running machine, over its monitor."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def file(self, path: Path, *, writable: bool, label: str, image: str | None = None) -> str:
        opened = launching.open_file(path, writable=writable, image=image)
        try:
            return self._monitor.add_fd(opened, label)
        finally:
            os.close(opened)

    def memory_copy(self, path: Path, label: str) -> str:
        raise Failure(f"'{label}' cannot be plugged while the machine runs")

    def socket(self, name: str) -> int:
        raise Failure(f"'{name}' cannot be plugged while the machine runs")

    def tap(self, name: str, tap: TapFds) -> Properties:
        names: list[list[str]] = []
        for kind, fds in (("queue", tap.fds), ("vhost", tap.vhost)):
            names.append([f"{name}-{kind}{number}" for number in range(len(fds))])
            for fd, each in zip(fds, names[-1], strict=True):
                self._monitor.give_fd(fd, each)
        return tap_properties(*names)


class LiveMachine:
    """A running machine and its control monitor. `view` is the configuration that it runs with.

    All methods raise Failure or MonitorError; a plug that fails leaves nothing behind.
    """

    def __init__(self, monitor: Monitor, view: MachineView, facts: HostFacts) -> None:
        self._monitor = monitor
        self._view = view
        self._facts = facts

    # --- disks

    def plug_disk(self, drive: Disk, volume: VolumeFile | None) -> None:
        """Plug a disk or CD-ROM drive, with its controller where it has one of its own."""
        context = self._context({drive.key: volume} if volume else {})
        with self._undone_on_failure(lambda: self.unplug_disk(drive, _UNDO_SECONDS)):
            parts = disk.args(drive, context)
            if drive.bus not in ("virtio", "ide"):
                parts.devices = [*controllers.args(drive, context).devices, *parts.devices]
            self._plug(parts)

    def unplug_disk(self, drive: Disk, timeout: float = UNPLUG_SECONDS) -> None:
        """Unplug a disk and close its image; one that is gone already is no error."""
        self._unplug(drive.key, timeout)
        if drive.bus == "scsi" and self._view.scsihw == "virtio-scsi-single":
            self._unplug(f"virtioscsi{drive.index}", timeout)
        self._drop_nodes(drive.key)
        thread = controllers.iothread_of(drive, self._context())
        if thread is not None and thread in self._names(_OBJECTS):
            self._monitor.execute("object-del", {"id": thread})

    def change_medium(self, drive: Disk, volume: VolumeFile | None) -> None:
        """Put another medium into a CD-ROM drive, or none. A guest that has locked the tray is not asked.

        Whatever fails, the medium of before is in the drive again.
        """
        before, after = self.node_of(drive.key), None
        with self._undone_on_failure(lambda: self._drop_nodes(drive.key)):
            if volume is not None:
                after = free_name(self._monitor, drive.key)
                self._monitor.execute("blockdev-add", disk.block_node(drive, volume, self._context(), after))
            with self._undone_on_failure(lambda: self._exchange(drive.key, before)):
                self._exchange(drive.key, after)
        self._drop_nodes(drive.key)

    def _exchange(self, key: str, node: str | None) -> None:
        """Open the tray, leave nothing but `node` in it, and close it."""
        self._monitor.execute("blockdev-open-tray", {"id": key, "force": True})
        if self.node_of(key) is not None:
            self._monitor.execute("blockdev-remove-medium", {"id": key})
        if node is not None:
            self._monitor.execute("blockdev-insert-medium", {"id": key, "node-name": node})
        self._monitor.execute("blockdev-close-tray", {"id": key})

    def set_throttle(self, drive: Disk) -> None:
        """Put the disk's rates in force; those that it does not name are lifted."""
        self._do(disk.throttle(drive))

    def resize(self, key: str, size: int) -> None:
        """Grow a disk to `size` bytes; the guest notices."""
        node = self.node_of(key)
        if node is None:
            raise Failure(f"disk '{key}' is not attached")
        self._monitor.execute("block_resize", {"node-name": node, "size": size}, timeout=60)

    def node_of(self, key: str) -> str | None:
        """Block node of a drive's medium; None when the drive is empty or not there."""
        return node_of(self._monitor, key)

    def medium_path(self, key: str, pid: int) -> Path | None:
        """Which file of the host the machine (process `pid`) has in a drive now, whatever its configuration says."""
        node = self.node_of(key)
        return None if node is None else path_of(self._monitor, node, pid)

    # --- network cards

    def plug_nic(self, card: Nic, tap: TapFds | None) -> None:
        """Plug a network card. The tap's descriptors stay the caller's, to be closed after this."""
        context = self._context(taps={card.index: tap} if tap else {})
        with self._undone_on_failure(lambda: self.unplug_nic(card, _UNDO_SECONDS)):
            self._plug(nic.args(card, context))

    def unplug_nic(self, card: Nic, timeout: float = UNPLUG_SECONDS) -> None:
        """Unplug a network card and close its tap; one that is gone already is no error."""
        self._unplug(nic.name_of(card), timeout)
        self._drop_netdev(nic.name_of(card))

    def set_link(self, card: Nic) -> None:
        """Plug or pull the card's cable, as `link_down` says."""
        self._do(nic.link(card))

    # --- the rest

    def set_balloon(self, mebibytes: int) -> None:
        """Ask the guest to make do with so much memory."""
        self._balloon(mebibytes << 20)

    def fit_balloon(self, wanted: MachineView) -> None:
        """Bring what the guest has between the bounds of a configuration; without shares to its lower bound."""
        least, most = (wanted.balloon or wanted.memory) << 20, wanted.memory << 20
        if wanted.shares == 0:
            self._balloon(least)
            return
        now = int(self._monitor.execute("query-balloon")["actual"])
        # Asked in any case: the guest may still be on its way to a size that it was asked for before.
        self._balloon(min(max(now, least), most))

    def _balloon(self, size: int) -> None:
        if BALLOON not in self.devices():
            raise Failure("the machine has no balloon device")
        self._monitor.execute("balloon", {"value": size})

    def devices(self) -> frozenset[str]:
        """Ids of all devices that the machine has (`scsi0`, `net1`, …)."""
        return frozenset(self._names(_PERIPHERALS))

    # --- plugging

    def _context(self, volumes: dict[str, VolumeFile] | None = None, taps: dict[int, TapFds] | None = None) -> Context:
        return live_context(self._view, self._facts, LiveSources(self._monitor), volumes, taps)

    def _plug(self, parts: Parts) -> None:
        """Add all parts in the order of a start; what is there already (a shared controller) is left alone."""
        for command, values, name, place in (
            ("object-add", parts.objects, "id", _OBJECTS),
            ("blockdev-add", parts.blockdevs, "node-name", None),
            ("netdev_add", parts.netdevs, "id", None),
            ("device_add", parts.devices, "id", _PERIPHERALS),
        ):
            present = self._names(place) if place and values else set()
            for value in values:
                if value[name] not in present:
                    self._add(command, value)
        for each in parts.commands:
            self._do(each)

    def _add(self, command: str, value: Properties) -> None:
        try:
            self._monitor.execute(command, value, timeout=30)
        except MonitorError as error:
            if "not found" in str(error) and command == "device_add":
                raise Failure(
                    f"'{value['id']}' cannot be plugged while the machine runs: it was started without the bus "
                    f"'{value.get('bus')}'; it comes with the next start"
                ) from error
            raise

    def _unplug(self, name: str, timeout: float) -> None:
        if name not in self._names(_PERIPHERALS):
            return
        try:
            self._monitor.execute("device_del", {"id": name})
        except MonitorError as error:
            if error.kind == "DeviceNotFound":
                return
            if "in the process of unplug" not in str(error):
                raise
        event = self._monitor.wait_event(lambda event: _is_about(event, name), timeout)
        if event is not None and event["event"] == "DEVICE_DELETED":
            return
        if name in self._names(_PERIPHERALS):
            reason = "refused to release it" if event else f"did not release it within {timeout:g} seconds"
            raise Failure(f"error on hot-unplugging device '{name}': the guest {reason}")

    @contextlib.contextmanager
    def _undone_on_failure(self, undo: Callable[[], None]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(Failure):
                undo()
            raise

    def _drop_nodes(self, key: str) -> None:
        drop_nodes(self._monitor, key)

    def _drop_netdev(self, name: str) -> None:
        try:
            self._monitor.execute("netdev_del", {"id": name})
        except MonitorError as error:
            if "not found" not in str(error):
                raise

    def _names(self, path: str) -> set[str]:
        return {str(each["name"]) for each in self._monitor.execute("qom-list", {"path": path})}

    def _do(self, command: Command) -> None:
        self._monitor.execute(command.name, command.arguments)


# --- block nodes of a running machine


def node_of(monitor: Monitor, key: str) -> str | None:
    """Block node of a drive's medium; None when the drive is empty or not there."""
    for each in monitor.execute("query-block"):
        if _device_id(each) == key:
            inserted = each.get("inserted")
            return str(inserted["node-name"]) if inserted else None
    return None


def nodes_of(monitor: Monitor, key: str) -> list[str]:
    """All format nodes that were ever made for a drive and are still there."""
    pattern = re.compile(rf"drive-{re.escape(key)}(\.\d+)?")
    found = monitor.execute("query-named-block-nodes", {"flat": True})
    return sorted(str(each["node-name"]) for each in found if pattern.fullmatch(str(each["node-name"])))


def free_name(monitor: Monitor, key: str) -> str:
    """A name for a new format node of a drive: that of the first generation that is not there."""
    taken = nodes_of(monitor, key)
    return next(name for number in itertools.count() if (name := disk.node_name(key, number)) not in taken)


def drop_nodes(monitor: Monitor, key: str) -> None:
    """Close all images of a drive but the one that is attached."""
    attached = node_of(monitor, key)
    for name in nodes_of(monitor, key):
        if name != attached:
            drop_node(monitor, name, needed=False)


def drop_node(monitor: Monitor, name: str, *, needed: bool = True) -> None:
    """Close an image. Its last user may just be leaving: a busy one is asked again for a while.

    Raises MonitorError when it stays in use and `needed` to go.
    """
    end = time.monotonic() + _RELEASE_SECONDS
    while True:
        try:
            monitor.execute("blockdev-del", {"node-name": name})
        except MonitorError as error:
            if "in use" in str(error) and time.monotonic() < end:
                time.sleep(_RELEASE_POLL)
                continue
            if needed:
                raise
            return
        break
    monitor.remove_fd(name)


def path_of(monitor: Monitor, node: str, pid: int) -> Path | None:
    """The file of the host behind a block node, as the kernel knows it."""
    names = {str(each["node-name"]): each for each in monitor.execute("query-named-block-nodes", {"flat": True})}
    file = names.get(node.replace("drive-", "file-", 1), {}).get("file", "")
    match = re.fullmatch(r"/dev/fdset/(\d+)", str(file))
    if match is None:
        return None
    for group in monitor.execute("query-fdsets"):
        if group["fdset-id"] == int(match[1]):
            return Path(f"/proc/{pid}/fd/{group['fds'][0]['fd']}").readlink()
    return None


def _device_id(block: dict[str, Any]) -> str:
    """The device's id: `qdev` is it, or a path that holds it."""
    qdev = str(block.get("qdev", ""))
    return qdev.removeprefix(f"{_PERIPHERALS}/").removesuffix("/virtio-backend")


def _is_about(event: Event, name: str) -> bool:
    if event["event"] not in ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR"):
        return False
    return bool(event["data"].get("device") == name)
