# SPDX-License-Identifier: AGPL-3.0-or-later
"""A tar archive judged while it streams: what must not be unpacked is taken out or refused, the rest passes untouched.

Formats: ustar and pax (POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"), and GNU's additions
(long names `L` and `K`, sparse files `S`, numbers in base 256; the manual of GNU tar, "Basic Tar Format"). An entry is
a header of 512 bytes, its data rounded up to whole blocks, and perhaps headers before it that add to it.

Only policy is decided here. That nothing leaves the tree is the jail's work, so a text that two programs read in two
ways gains nobody anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from orrery.errors import Failure

BLOCK: Final = 512
MAX_ID: Final = 65535
"""The highest id that a container has (`model/idmap.py`)."""
MAX_ENTRIES: Final = 4_000_000
MAX_NOTES: Final = 20
MAX_LEFT_OUT: Final = 65_536
"""Entries left out, whose names are remembered; a system has a few hundred devices."""

_ZERO: Final = bytes(BLOCK)
_FILES: Final = frozenset(b"07\0S")
_PLAIN: Final = frozenset(b"256")  # symbolic links, folders, FIFOs: no data
_HARD_LINK: Final = ord("1")
_DEVICES: Final = frozenset(b"34")
_CHARACTER: Final = ord("3")
_ADDITIONS: Final = frozenset(b"xXLK")
_GLOBAL: Final = ord("g")
_LABEL: Final = ord("V")
_MAX_ADDITION: Final = 256 << 10
_MAX_NAME: Final = 4096  # what the kernel takes for a path
_HEEDED: Final = frozenset((b"size", b"uid", b"gid", b"path", b"linkpath"))
_MAX_HEAD: Final = 1 << 20
_LENGTH_DIGITS: Final = 6
_EXTENDED_AT, _MORE_AT = 482, 504  # GNU sparse: is there a block of further pieces after the header, after a block


class _Incomplete(Exception):
    """The entry's head goes on in bytes that have not come yet."""


@dataclass(slots=True)
class _Head:
    """Headers of one entry; `end` is where its data begins."""

    end: int = 0
    kind: int = 0
    size: int = 0
    uid: int = 0
    gid: int = 0
    name: bytes = b""
    link: bytes = b""
    whiteout: bool = False
    """A device that is none: what overlay file systems, as those of containers inside, put for a file that is gone."""


@dataclass
class TarFilter:
    """Feed it the archive piece by piece; it yields what may be unpacked. Raises Failure for what must be refused.

    `notes` are things that were left out, `entries` and `size` (bytes of the archive) what has been read so far.
    """

    limit: int | None = None
    max_id: int | None = MAX_ID
    entries: int = 0
    size: int = 0
    notes: list[str] = field(default_factory=list)
    skipped: int = 0
    ended: bool = False
    _rest: bytes = b""
    _data: int = 0
    _defaults: dict[bytes, bytes] = field(default_factory=dict)
    _gone: set[bytes] = field(default_factory=set)

    def feed(self, piece: bytes) -> Iterator[memoryview | bytes]:
        """The parts of all that has come so far that may go on; after the archive's end nothing does."""
        if self.ended:
            return
        self.size += len(piece)
        if self.limit is not None and self.size > self.limit:
            raise Failure(
                f"the archive holds more than {self.limit} bytes, and there is no room for more; "
                "choose a larger size, or free some space"
            )
        chunk = self._rest + piece if self._rest else piece
        begun = position = 0
        view = memoryview(chunk)
        try:
            while not self.ended:
                if self._data:
                    step = min(self._data, len(chunk) - position)
                    position += step
                    self._data -= step
                    if self._data:
                        break
                head = self._read_head(chunk, position)
                if head is None:
                    self.ended = True
                elif self._keeps(head):
                    self._data = -(-head.size // BLOCK) * BLOCK
                    position = head.end
                else:
                    yield view[begun:position]
                    begun = position = head.end
        except _Incomplete:
            if len(chunk) - position > _MAX_HEAD:
                raise Failure("the archive is damaged: the head of an entry has no end") from None
        yield view[begun:position]
        self._rest = chunk[position:]
        if self.ended:
            yield _ZERO * 2

    def finish(self) -> None:
        """Raises Failure unless the archive has come to its end."""
        if not self.ended:
            raise Failure("the archive is cut off: its end is missing; fetch it again")

    # --- judging

    def _keeps(self, head: _Head) -> bool:
        self.entries += 1
        if self.limit is not None and self.entries > MAX_ENTRIES:
            raise Failure(f"the archive holds more than {MAX_ENTRIES} files")
        if self.max_id is not None and max(head.uid, head.gid) > self.max_id:
            raise Failure(
                f"the archive is refused: '{_shown(head.name)}' belongs to user {head.uid} and group {head.gid}, "
                f"but containers have ids up to {self.max_id} only"
            )
        if head.kind in _DEVICES and not head.whiteout:
            self._leave_out(head, "is a device, which containers get otherwise")
        elif head.kind == _HARD_LINK and self._gone and _plain(head.link) in self._gone:
            self._leave_out(head, "is a link to a file that was left out")
        else:
            return head.kind != _LABEL
        return False

    def _leave_out(self, head: _Head, why: str) -> None:
        self.skipped += 1
        if self.skipped > MAX_LEFT_OUT or len(head.name) > _MAX_NAME:
            raise Failure("the archive is refused: it has too many devices, or one with an absurdly long name")
        self._gone.add(_plain(head.name))
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"left out '{_shown(head.name)}': it {why}")

    # --- reading

    def _read_head(self, chunk: bytes, position: int) -> _Head | None:
        """The headers of the entry at `position`, None at the archive's end. Raises _Incomplete, Failure."""
        added: dict[bytes, bytes] = {}
        long: dict[int, bytes] = {}
        while True:
            if len(chunk) < position + BLOCK:
                raise _Incomplete
            block = chunk[position : position + BLOCK]
            if block == _ZERO:
                if added or long:
                    raise Failure("the archive is damaged: it ends within an entry")
                return None
            kind = block[156]
            size = _number(block[124:136])
            if sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156]):
                raise Failure("the archive is damaged, or no tar archive: the checksum of a header is wrong")
            position += BLOCK
            if kind not in _ADDITIONS and kind != _GLOBAL:
                head = _Head(position, kind, size, _number(block[108:116]), _number(block[116:124]))
                self._complete(head, block, added, long)
                if kind == ord("S"):
                    head.end = _after_pieces(chunk, position, block)
                return head
            if size > _MAX_ADDITION:
                raise Failure("the archive is refused: a header is too long")
            data = chunk[position : position + size]
            position += -(-size // BLOCK) * BLOCK
            if len(chunk) < position:
                raise _Incomplete
            if kind == _GLOBAL:
                # Only what is heeded is kept: there may be any number of these headers.
                self._defaults |= {key: value for key, value in _records(data).items() if key in _HEEDED}
            elif kind in b"LK":
                long[kind] = data.rstrip(b"\0")
            else:
                added.update(_records(data))

    def _complete(self, head: _Head, block: bytes, added: dict[bytes, bytes], long: dict[int, bytes]) -> None:
        """What longer headers say of the entry holds. Raises Failure for entries that nobody should make."""
        values = {**self._defaults, **added} if self._defaults else added
        if values:
            head.size = _decimal(values, b"size", head.size)
            head.uid = _decimal(values, b"uid", head.uid)
            head.gid = _decimal(values, b"gid", head.gid)
        name, prefix = block[:100].rstrip(b"\0"), b""
        if block[257:263] == b"ustar\0":
            prefix = block[345:500].rstrip(b"\0")
        head.name = values.get(b"path", long.get(ord("L"), prefix + b"/" + name if prefix else name))
        if head.kind == _HARD_LINK:
            head.link = values.get(b"linkpath", long.get(ord("K"), block[157:257].rstrip(b"\0")))
            head.size = 0  # some programs write the file's size here, and no data
        elif head.kind in _PLAIN or head.kind in _DEVICES or head.kind == _LABEL:
            head.whiteout = head.kind == _CHARACTER and not _number(block[329:337]) and not _number(block[337:345])
            if head.size:
                raise Failure(f"the archive is damaged: '{_shown(head.name)}' cannot have contents")
        elif head.kind not in _FILES:
            raise Failure(f"the archive is refused: '{_shown(head.name)}' is of an unknown kind ({head.kind})")


def _after_pieces(chunk: bytes, position: int, block: bytes) -> int:
    """Where the data of a GNU sparse file begins: after the blocks that list further pieces."""
    more = block[_EXTENDED_AT]
    while more:
        if len(chunk) < position + BLOCK:
            raise _Incomplete
        more = chunk[position + _MORE_AT]
        position += BLOCK
    return position


def _number(text: bytes) -> int:
    """A number in a header: octal digits, or with the highest bit set in base 256."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=False) & ~(0x80 << 8 * (len(text) - 1))
        if text[0] == 0xFF:
            raise Failure("the archive is damaged: a number is negative")
        return value
    digits = text.strip(b" \0") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise Failure("the archive is damaged, or no tar archive: a number in a header is none")
    return int(digits, 8)


def _records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, each `LENGTH KEY=VALUE\\n`."""
    found: dict[bytes, bytes] = {}
    position, end = 0, len(data.rstrip(b"\0"))
    while position < end:
        space = data.find(b" ", position, position + _LENGTH_DIGITS + 1)
        length = data[position:space]
        after = position + int(length) if space > position and length.isdigit() else 0
        key, equals, value = data[space + 1 : after - 1].partition(b"=")
        if not space < after <= len(data) or not equals or data[after - 1] != ord("\n"):
            raise Failure("the archive is damaged: the records of a header have wrong lengths")
        found[key] = value
        position = after
    return found


def _decimal(values: dict[bytes, bytes], key: bytes, default: int) -> int:
    text = values.get(key)
    if not text:
        return default
    if not text.isdigit() or len(text) > 19:
        raise Failure(f"the archive is damaged: '{_shown(text)}' is no {key.decode()}")
    return int(text)


def _plain(name: bytes) -> bytes:
    """A name as it lies in the tree: without what leads to its top."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def _shown(name: bytes) -> str:
    text = name[:200].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
