# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a guest's configuration says about its size and name, read once per change: lists of thousands need it."""

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orrery.model.disksize import parse_size
from orrery.model.guest import GuestConfig
from orrery.store.base import Compacted, Entry, Store
from orrery.store.guests import PREFIX, decode_guest, guest_key

MIB = 1 << 20
DEFAULT_MEMORY_MIB = 512
_SIZE = re.compile(r"(?:^|,)size=([^,]+)")
_DISK = re.compile(r"(?:scsi|virtio|sata|ide)[0-9]+")


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """`maxmem`, `maxswap` and `maxdisk` (of the disk that is booted from) are bytes; `maxcpu` counts processors."""

    vmid: int
    kind: str
    node: str
    revision: int
    name: str
    maxcpu: int
    maxmem: int
    maxdisk: int
    template: bool
    tags: str | None
    lock: str | None
    maxswap: int = 0


class FactsCache:
    """The facts of every guest, followed by the store's changes; safe for several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[int, GuestFacts] = {}
        self._listed: list[GuestFacts] = []
        self._lock = threading.Lock()
        self._revision = -1

    def __iter__(self) -> Iterator[GuestFacts]:
        return iter(self.all())

    def all(self) -> Sequence[GuestFacts]:
        """All guests as they are now, by number; a guest that has not changed is the same object as before."""
        with self._lock:
            revision = self._store.revision()
            if revision != self._revision:
                self._follow(revision)
                self._revision = revision
            return self._listed

    def get(self, vmid: int) -> GuestFacts | None:
        """One guest as it is now."""
        entry = self._store.get(guest_key(vmid))
        if entry is None:
            return None
        known = self._known.get(vmid)
        return known if known is not None and known.revision == entry.revision else read_facts(entry)

    def _follow(self, revision: int) -> None:
        """Takes over what changed up to `revision`; reads everything when the log does not tell."""
        before = self._known
        try:
            if not 0 <= self._revision < revision:
                raise Compacted("begin anew")
            self._known = self._changed(before, revision)
        except Compacted:
            self._known = self._everything(before)
        if self._known != before:
            self._listed = [self._known[vmid] for vmid in sorted(self._known)]

    def _changed(self, before: Mapping[int, GuestFacts], revision: int) -> dict[int, GuestFacts]:
        after = dict(before)
        reached = self._revision
        while reached < revision:
            changes = self._store.changes(reached)
            for change in changes:
                if change.revision <= revision and change.key.startswith(PREFIX):
                    vmid = int(change.key.removeprefix(PREFIX))
                    after.pop(vmid, None)
                    if change.value is not None:
                        after[vmid] = read_facts(Entry(change.key, change.value, change.revision, 0, 0))
            reached = changes[-1].revision if changes else revision
        return after

    def _everything(self, before: Mapping[int, GuestFacts]) -> dict[int, GuestFacts]:
        found = {}
        for entry in self._store.range(PREFIX):
            vmid = int(entry.key.removeprefix(PREFIX))
            known = before.get(vmid)
            found[vmid] = known if known is not None and known.revision == entry.revision else read_facts(entry)
        return found


def read_facts(entry: Entry) -> GuestFacts:
    """The facts of a stored guest. Raises `Corrupt`."""
    record = decode_guest(entry).record
    return facts(record.vmid, record.kind, record.node, entry.revision, record.config)


def facts(vmid: int, kind: str, node: str, revision: int, config: GuestConfig) -> GuestFacts:
    """Reads a configuration; what it does not say is as the guest would have it."""
    options = config.options
    if kind == "lxc":
        maxcpu, maxdisk = container_processors(options.get("cores")), sized(options.get("rootfs", "")) or 0
        maxswap = memory_bytes(options.get("swap"))
    else:
        maxcpu = processors(options.get("vcpus"), options.get("sockets"), options.get("cores"))
        maxdisk, maxswap = boot_disk_size(config), 0
    name = options.get("name") or options.get("hostname") or (f"VM {vmid}" if kind == "qemu" else f"CT{vmid}")
    return GuestFacts(
        vmid,
        sys.intern(kind),
        sys.intern(node),
        revision,
        name,
        maxcpu,
        memory_bytes(options.get("memory")),
        maxdisk,
        config.is_template,
        options.get("tags"),
        config.lock,
        maxswap,
    )


def processors(vcpus: str | None, sockets: str | None, cores: str | None) -> int:
    """Processors that the guest starts with."""
    return int(vcpus or 0) or int(sockets or 1) * int(cores or 1)


def container_processors(cores: str | None) -> int:
    """Processors that a container may use: those of the host when nothing is said."""
    return int(cores) if cores else os.cpu_count() or 1


def memory_bytes(memory: str | None) -> int:
    """Memory in bytes; the option is in MiB, bare or as `current=`."""
    return int((memory or str(DEFAULT_MEMORY_MIB)).split(",", 1)[0].removeprefix("current=")) * MIB


def boot_disk_size(config: GuestConfig) -> int:
    """Size in bytes of the disk that is booted from, else of the first disk; 0 without any."""
    order = [*_DISK.findall(config.options.get("boot", "")), config.options.get("bootdisk", "")]
    disks = sorted(key for key in config.options if _DISK.fullmatch(key))
    for key in [*order, *disks]:
        text = config.options.get(key, "")
        if "media=cdrom" not in text and (size := sized(text)) is not None:
            return size
    return 0


def sized(text: str) -> int | None:
    """The size in bytes that a disk's option notes; 0 for one that cannot be read, None when there is none."""
    found = _SIZE.search(text)
    try:
        return parse_size(found[1]) if found else None
    except ValueError:
        return 0
