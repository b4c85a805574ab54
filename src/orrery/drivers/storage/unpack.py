# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compressed downloads unpacked, by the usual programs in a jail: their input comes from strangers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from orrery.drivers.storage.untrusted import filter_jail, run_jailed
from orrery.errors import Failure
from orrery.system import files, process

PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"gz": ("gzip", "-dc"), "lzo": ("lzop", "-dc"), "zst": ("zstd", "-dc", "-q", "--no-sparse")}
)
"""The program for each kind of compression; each one writes to standard output."""

_LONG: Final = 86400.0


def require_program(compression: str) -> None:
    """Raises Failure when the compression is not known, or its program not installed."""
    if compression not in PROGRAMS:
        raise Failure(f"compression '{compression}' is not known; known are {', '.join(PROGRAMS)}")
    process.find(PROGRAMS[compression][0])


def unpack(source: Path, compression: str, target: Path, on_written: Callable[[int], None]) -> int:
    """Writes what is compressed in `source` into the empty file `target`; the number of bytes.

    `on_written` is called with the bytes so far; what it raises ends it. Raises NoSpace or Failure.
    """
    require_program(compression)
    written = 0
    try:
        with source.open("rb") as packed, target.open("wb", buffering=0) as plain:

            def write(piece: bytes) -> None:
                nonlocal written
                rest = memoryview(piece)
                while rest:
                    rest = rest[plain.write(rest) :]
                written += len(piece)
                on_written(written)

            program = PROGRAMS[compression]
            code, complaints = run_jailed(program, filter_jail(), _LONG, write, stdin=packed.fileno())
    except OSError as error:
        raise files.failure(error, "unable to unpack") from error
    if code != 0:
        lines = complaints.decode("utf-8", "replace").strip().splitlines()
        raise Failure(f"unable to unpack: {lines[-1].strip() if lines else f'exit code {code}'}")
    return written
