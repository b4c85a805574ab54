# SPDX-License-Identifier: AGPL-3.0-or-later
"""Maps of user and group ids: which ids of the host an unprivileged container's ids are.

The option `idmap` says `shared` (the range that all such containers have by default), `own` (a range that no other
running container has, taken when it starts), or lists entries `u:INSIDE:HOST:COUNT` and `g:INSIDE:HOST:COUNT`,
separated by `;`. Files on disk carry the ids of the inside, so a container may change from one map to another.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

IdKind = Literal["u", "g"]

SHARED_FIRST = 100_000
"""First host id of the shared range, which ends at 165535: the same as on Proxmox hosts."""

RANGE = 65_536
"""Ids in a range: as many as an ordinary system uses."""

OWN_FIRST, OWN_SLOTS = 1 << 30, 8192
"""Own ranges: a part of the host's ids that Linux distributions set aside for containers, cut into slots."""

SYSTEM_IDS = 65_536
"""Ids below belong to the host's own users; only root may map them, and host id 0 nobody."""

HOST_IDS = 1 << 31
"""Host ids end here: above are the users that machines run as, and what some tools take for negative."""

INSIDE_IDS = (1 << 32) - 1
MAX_ENTRIES = 340
"""Lines that the kernel takes for a map."""

_ENTRY = re.compile(r"([ug]):(\d{1,10}):(\d{1,10}):(\d{1,10})", re.ASCII)
_WORDS = {"u": "user", "g": "group"}


@dataclass(frozen=True, slots=True, order=True)
class IdRange:
    """`count` users (`u`) or groups (`g`) of the container from `inside` on are those of the host from `host` on."""

    kind: IdKind
    inside: int
    host: int
    count: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.inside}:{self.host}:{self.count}"


@dataclass(frozen=True, slots=True)
class IdMap:
    """A map that can be used: sorted, no id twice on either side, the container's root among the ids.

    ValueError says which entries are wrong.
    """

    entries: tuple[IdRange, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(sorted(self.entries)))
        for entry in self.entries:
            _check_entry(entry)
        for kind in _WORDS:
            own = [entry for entry in self.entries if entry.kind == kind]
            if len(own) > MAX_ENTRIES:
                raise ValueError(f"a map has at most {MAX_ENTRIES} entries for {_WORDS[kind]}s")
            if not any(entry.inside == 0 for entry in own):
                raise ValueError(f"no entry maps the container's {_WORDS[kind]} 0, which every container needs")
            _check_apart(own, "inside")
            _check_apart(own, "host")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read entries `u:0:300000:65536;g:0:300000:65536`; ValueError when they are none or contradict themselves."""
        parts = [part.strip() for part in text.split(";") if part.strip()]
        entries = []
        for part in parts:
            match = _ENTRY.fullmatch(part)
            if match is None:
                raise ValueError(f"'{part[:80]}' is not an entry u:INSIDE:HOST:COUNT or g:INSIDE:HOST:COUNT")
            kind: IdKind = "u" if match[1] == "u" else "g"
            entries.append(IdRange(kind, int(match[2]), int(match[3]), int(match[4])))
        return cls(tuple(entries))

    def __str__(self) -> str:
        return ";".join(str(entry) for entry in sorted(self.entries, key=lambda e: (e.kind == "g", e)))

    def reaches_system_ids(self) -> bool:
        """Whether an entry maps ids that belong to the host's own users."""
        return any(entry.host < SYSTEM_IDS for entry in self.entries)

    def host_id(self, kind: IdKind, inside: int) -> int | None:
        """The host's id of a container's one; None when it is not mapped."""
        for entry in self.entries:
            if entry.kind == kind and 0 <= inside - entry.inside < entry.count:
                return entry.host + inside - entry.inside
        return None

    def inside_id(self, kind: IdKind, host: int) -> int | None:
        """The container's id of a host's one; None when it is not mapped."""
        for entry in self.entries:
            if entry.kind == kind and 0 <= host - entry.host < entry.count:
                return entry.inside + host - entry.host
        return None


def shared() -> IdMap:
    """The map of containers that say nothing else."""
    return _plain(SHARED_FIRST)


def own(slot: int) -> IdMap:
    """The map of a slot, 0 to `OWN_SLOTS` - 1; slots never overlap each other or the shared range."""
    if not 0 <= slot < OWN_SLOTS:
        raise ValueError(f"there are own ranges of ids 0 to {OWN_SLOTS - 1}, not {slot}")
    return _plain(OWN_FIRST + slot * RANGE)


def free_slot(taken: Iterable[IdMap]) -> int | None:
    """The lowest slot whose map overlaps none of those; None when every slot does."""
    used: set[int] = set()
    for each in taken:
        for entry in each.entries:
            first, last = entry.host - OWN_FIRST, entry.host + entry.count - 1 - OWN_FIRST
            if last >= 0:
                used.update(range(max(first, 0) // RANGE, min(last // RANGE, OWN_SLOTS - 1) + 1))
    return next((slot for slot in range(OWN_SLOTS) if slot not in used), None)


def overlaps(one: IdMap, other: IdMap) -> str | None:
    """Which ids of the host both maps have, in words; None when they are apart."""
    for a in one.entries:
        for b in other.entries:
            first, last = max(a.host, b.host), min(a.host + a.count, b.host + b.count) - 1
            if a.kind == b.kind and first <= last:
                return f"{_WORDS[a.kind]}s {first} to {last} of the host"
    return None


def canonical(text: str) -> str:
    """The option `idmap` in canonical text: `shared`, `own`, or sorted entries; ValueError when it is none."""
    return text if text in ("shared", "own") else str(IdMap.parse(text))


def _plain(first: int) -> IdMap:
    return IdMap((IdRange("u", 0, first, RANGE), IdRange("g", 0, first, RANGE)))


def _check_entry(entry: IdRange) -> None:
    if entry.count < 1:
        raise ValueError(f"'{entry}' maps nothing: its count must be at least 1")
    if entry.inside + entry.count > INSIDE_IDS:
        raise ValueError(f"'{entry}' goes beyond the last id of a container, {INSIDE_IDS - 1}")
    if entry.host + entry.count > HOST_IDS:
        raise ValueError(f"'{entry}' goes beyond the last id of the host that containers may have, {HOST_IDS - 1}")
    if entry.host == 0:
        raise ValueError(
            f"'{entry}' maps to {_WORDS[entry.kind]} 0 of the host; that is what a privileged container is"
        )


def _check_apart(entries: list[IdRange], side: Literal["inside", "host"]) -> None:
    """Raises ValueError for two entries that have an id in common on one side."""

    def first(entry: IdRange) -> int:
        return entry.inside if side == "inside" else entry.host

    ordered = sorted(entries, key=first)
    for before, after in pairwise(ordered):
        if first(before) + before.count > first(after):
            where = "the container" if side == "inside" else "the host"
            raise ValueError(f"entries '{before}' and '{after}' overlap: both have id {first(after)} of {where}")
