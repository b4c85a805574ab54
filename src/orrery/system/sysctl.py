# SPDX-License-Identifier: AGPL-3.0-or-later
"""Settings of the kernel, named by their path below /proc/sys (an interface's name may hold dots)."""

from pathlib import Path
from typing import Final

from orrery.errors import Failure

_ROOT: Final = Path("/proc/sys")


def read(name: str) -> str | None:
    """The value of a setting such as `net/ipv4/ip_forward`; None where the kernel has no such setting."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Change a setting. Raises Failure."""
    try:
        (_ROOT / name).write_text(value)
    except OSError as error:
        raise Failure(f"unable to set the kernel's '{name}' to '{value}': {error.strerror}") from error
