# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a measurement says, and how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One number; `goal` is what it should stay below, in the same unit."""

    name: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def verdict(self) -> str:
        """How it stands to its goal; empty without one."""
        if self.goal is None:
            return ""
        return f"goal < {self.goal:g} {self.unit}: {'met' if self.value < self.goal else 'MISSED'}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def show(title: str, figures: Sequence[Figure]) -> None:
    """Prints a table."""
    print(f"\n{title}")
    for figure in figures:
        print(f"  {figure.name:<58} {figure.value:>10.2f} {figure.unit:<5} {figure.verdict}".rstrip(), flush=True)
