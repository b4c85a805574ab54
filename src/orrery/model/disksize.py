# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disk sizes as text: `32G`, `4194304K`, `1.5T`, plain bytes; powers of 1024, as the compatible API writes them."""

import re
from decimal import Decimal

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)([KMGT]?)", re.ASCII)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE_MAX = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Bytes that a size text means, fractions of a byte dropped; ValueError when it is none or beyond 8 EiB."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not a size (a number with an optional suffix K, M, G or T)")
    size = int(Decimal(match[1]) * _FACTORS[match[2]])
    if size > SIZE_MAX:
        raise ValueError(f"size '{text}' is too large")
    return size


def format_size(size: int) -> str:
    """A size in bytes as text with the largest unit (up to T) that keeps it whole: 34359738368 is `32G`."""
    if size < 0:
        raise ValueError("a size cannot be negative")
    for suffix in "TGMK":
        if size and size % _FACTORS[suffix] == 0:
            return f"{size // _FACTORS[suffix]}{suffix}"
    return str(size)


def parse_resize(text: str) -> tuple[bool, int]:
    """Read the size of a resize request: `+5G` is (True, bytes to add), `40G` is (False, new size in bytes)."""
    relative = text.startswith("+")
    return relative, parse_size(text[1:] if relative else text)
