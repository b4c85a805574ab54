# SPDX-License-Identifier: AGPL-3.0-or-later
"""The logs of tasks: one text file each, in a folder named by the last two hex digits of the task's start time.

The journal decides how a task ended; the last line of its log only repeats it. So readers complete a log whose writer
was killed before it could write that line.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orrery.errors import Failure
from orrery.tasks.task import Upid

NO_CONTENT = "no content"
_NAME_MAX = 255
_CHUNK = 1 << 16
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line and its number, counted from 1."""

    n: int
    t: str


def file_name(upid: Upid) -> str:
    """A file name for what belongs to a task: its UPID, or a digest where that would be too long."""
    name = str(upid)
    if len(os.fsencode(name)) <= _NAME_MAX:
        return name
    return f"UPID-{hashlib.sha256(name.encode()).hexdigest()}"


class LogWriter:
    """Appends lines to a log. A full disk must not keep a task from its work: lines that cannot be written are lost."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise Failure(f"unable to open the task log '{path}': {error.strerror}") from error
        if _is_torn(self.descriptor):
            self._write("\n")

    def line(self, text: str) -> None:
        """Writes a line, or several when `text` has several; control characters are left out."""
        lines = [_CONTROL.sub("", line) for line in text.rstrip("\r\n").replace("\r\n", "\n").split("\n")]
        self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        rest = text.encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]

    def close(self) -> None:
        os.close(self.descriptor)


def _is_torn(descriptor: int) -> bool:
    """Whether the writer before us was killed in the middle of a line."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


class TaskLogs:
    """The folder of all logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, upid: Upid) -> Path:
        return self.folder / f"{upid.starttime & 0xFF:02X}" / file_name(upid)

    def writer(self, upid: Upid) -> LogWriter:
        """A writer that appends to the task's log. Raises Failure."""
        return LogWriter(self.path(upid))

    def finish(self, upid: Upid, last: str) -> None:
        """Makes `last` the last line of the task's log unless it is already."""
        with contextlib.suppress(Failure), contextlib.closing(self.writer(upid)) as writer:
            if self.tail(upid) != last:
                writer.line(last)

    def tail(self, upid: Upid) -> str | None:
        """The last line of the task's log, or None when there is none."""
        try:
            with self.path(upid).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _CHUNK))
                end = file.read().removesuffix(b"\n")
        except OSError:
            return None
        return _text(end.rsplit(b"\n", 1)[-1]) if size else None

    def page(self, upid: Upid, start: int, limit: int, last: str | None) -> tuple[list[LogLine], int]:
        """`limit` lines (0: all) after the first `start`, and the number of all; `last` is how it must end."""
        wanted: list[LogLine] = []
        count, text = 0, None
        for text in self._lines(upid):
            if count >= start and (not limit or count < start + limit):
                wanted.append(LogLine(count + 1, _text(text)))
            count += 1
        if last is not None and (text is None or _text(text) != last):
            if count >= start and (not limit or count < start + limit):
                wanted.append(LogLine(count + 1, last))
            count += 1
        if not count:
            return [LogLine(1, NO_CONTENT)], 1
        return wanted, count

    def _lines(self, upid: Upid) -> Iterator[bytes]:
        try:
            with self.path(upid).open("rb") as file:
                for line in file:
                    yield line.removesuffix(b"\n")
        except OSError:
            return

    def stream(self, upid: Upid, last: str | None) -> Iterator[bytes]:
        """The whole log in pieces, for a download."""
        complete = last is None or self.tail(upid) == last
        end = b"\n"
        with contextlib.suppress(OSError), self.path(upid).open("rb") as file:
            while piece := file.read(_CHUNK):
                end = piece[-1:]
                yield piece
        if not complete and last is not None:
            yield (b"" if end == b"\n" else b"\n") + last.encode() + b"\n"

    def remove(self, upid: Upid) -> None:
        """Removes the task's log; absent is fine. Raises Failure."""
        try:
            self.path(upid).unlink(missing_ok=True)
        except OSError as error:
            raise Failure(f"unable to remove the log of task {upid}: {error.strerror}") from error


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
