# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a guest's configuration says about its size and name, read once per change: lists of thousands need it."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from orrery.model.disksize import parse_size
from orrery.model.guest import GuestConfig
from orrery.store.base import Store
from orrery.store.guests import PREFIX, decode_guest

MIB = 1 << 20
DEFAULT_MEMORY_MIB = 512
_SIZE = re.compile(r"(?:^|,)size=([^,]+)")
_DISK = re.compile(r"(?:scsi|virtio|sata|ide)[0-9]+")


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """`maxmem` and `maxdisk` (of the disk that is booted from) are bytes; `maxcpu` is the number of processors."""

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


class FactsCache:
    """The facts of every guest, followed by revision; safe for several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, GuestFacts] = {}
        self._lock = threading.Lock()
        self._revision = -1

    def __iter__(self) -> Iterator[GuestFacts]:
        return iter(self.all())

    def all(self) -> list[GuestFacts]:
        """All guests as they are now, by key."""
        with self._lock:
            revision = self._store.revision()
            if revision != self._revision:
                self._refresh()
                self._revision = revision
            return list(self._known.values())

    def get(self, vmid: int) -> GuestFacts | None:
        """One guest as it is now."""
        entry = self._store.get(f"{PREFIX}{vmid}")
        if entry is None:
            return None
        known = self._known.get(entry.key)
        if known is not None and known.revision == entry.revision:
            return known
        stored = decode_guest(entry)
        return facts(stored.record.vmid, stored.record.kind, stored.record.node, entry.revision, stored.record.config)

    def _refresh(self) -> None:
        fresh: dict[str, GuestFacts] = {}
        for entry in self._store.range(PREFIX):
            known = self._known.get(entry.key)
            if known is None or known.revision != entry.revision:
                record = decode_guest(entry).record
                known = facts(record.vmid, record.kind, record.node, entry.revision, record.config)
            fresh[entry.key] = known
        self._known = fresh


def facts(vmid: int, kind: str, node: str, revision: int, config: GuestConfig) -> GuestFacts:
    """Reads a configuration; what it does not say is as the machine would have it."""
    options = config.options
    name = options.get("name") or options.get("hostname") or (f"VM {vmid}" if kind == "qemu" else f"CT{vmid}")
    return GuestFacts(
        vmid,
        kind,
        node,
        revision,
        name,
        processors(options.get("vcpus"), options.get("sockets"), options.get("cores")),
        memory_bytes(options.get("memory")),
        boot_disk_size(config),
        config.is_template,
        options.get("tags"),
        config.lock,
    )


def processors(vcpus: str | None, sockets: str | None, cores: str | None) -> int:
    """Processors that the guest starts with."""
    return int(vcpus or 0) or int(sockets or 1) * int(cores or 1)


def memory_bytes(memory: str | None) -> int:
    """Memory in bytes; the option is in MiB, bare or as `current=`."""
    return int((memory or str(DEFAULT_MEMORY_MIB)).split(",", 1)[0].removeprefix("current=")) * MIB


def boot_disk_size(config: GuestConfig) -> int:
    """Size in bytes of the disk that is booted from, else of the first disk; 0 without any."""
    order = [*_DISK.findall(config.options.get("boot", "")), config.options.get("bootdisk", "")]
    disks = sorted(key for key in config.options if _DISK.fullmatch(key))
    for key in [*order, *disks]:
        text = config.options.get(key, "")
        found = _SIZE.search(text)
        if found and "media=cdrom" not in text:
            try:
                return parse_size(found[1])
            except ValueError:
                return 0
    return 0
