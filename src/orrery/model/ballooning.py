# SPDX-License-Identifier: AGPL-3.0-or-later
"""Automatic ballooning: how the memory that a host lacks is spread over its machines, and given back later.

Pure arithmetic. Above `GOAL` of the host's memory, machines give some of theirs; below it by more than `BAND` they get
it back. Each machine moves at most `STEP` a round, so that a guest has time to follow and a short peak costs little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

GOAL: Final = 0.80
"""Share of the host's memory that may be in use before machines have to give."""

BAND: Final = 0.02
"""So much further below, as a share of the host's memory, use must be before machines get something back."""

STEP: Final = 128 << 20
"""Bytes by which one machine changes in a round, at most."""

DEFAULT_SHARES: Final = 1000

GRAIN: Final = 1 << 20
"""Bytes; smaller changes are not worth a word to the guest."""


@dataclass(frozen=True, slots=True)
class Ballooned:
    """A running machine whose balloon works. Bytes: it has `actual`, and may have from `minimum` to `maximum`.

    `shares` is its weight among the others: who has more of them keeps more. With 0 it is never touched.
    """

    vmid: int
    minimum: int
    maximum: int
    actual: int
    shares: int


def targets(machines: Sequence[Ballooned], total: int, used: int) -> dict[int, int]:
    """What machines shall have from now on, by number; who is not named keeps what it has.

    `total` and `used` are the host's memory in bytes. Under pressure no machine gains, with room none loses, whichever
    was moved last; so two machines never pass the same memory to and fro.
    """
    able = sorted((each for each in machines if each.shares and each.minimum < each.maximum), key=lambda m: m.vmid)
    astray = {each.vmid: _within(each) for each in able if _within(each) != each.actual}
    room = int(total * GOAL) - used
    if room < 0:
        moves = _shrink([each for each in able if each.vmid not in astray], -room)
    else:
        moves = _grow([each for each in able if each.vmid not in astray], room - int(total * BAND))
    sizes = {each.vmid: each.actual + moves[each.vmid] for each in able if abs(moves.get(each.vmid, 0)) >= GRAIN}
    return astray | sizes


def _within(machine: Ballooned) -> int:
    return min(max(machine.actual, machine.minimum), machine.maximum)


def _shrink(machines: Sequence[Ballooned], short: int) -> dict[int, int]:
    fair = _fair(machines, sum(each.actual for each in machines) - short)
    return {vmid: -size for vmid, size in _limited({m.vmid: m.actual - fair[m.vmid] for m in machines}, short).items()}


def _grow(machines: Sequence[Ballooned], room: int) -> dict[int, int]:
    if room <= 0:
        return {}
    fair = _fair(machines, sum(each.actual for each in machines) + room)
    return _limited({m.vmid: fair[m.vmid] - m.actual for m in machines}, room)


def _limited(wishes: Mapping[int, int], most: int) -> dict[int, int]:
    """Wishes above zero, each at most a step, together at most `most`."""
    steps = {vmid: min(wish, STEP) for vmid, wish in wishes.items() if wish > 0}
    whole = sum(steps.values())
    return {vmid: step * most // whole if whole > most else step for vmid, step in steps.items()}


def _fair(machines: Sequence[Ballooned], whole: int) -> dict[int, int]:
    """`whole` divided: each has its minimum, and of the rest a part by its shares, but none more than its maximum."""
    found = {each.vmid: each.minimum for each in machines}
    rest = whole - sum(found.values())
    hungry = list(machines)
    while hungry and rest > 0:
        weight = sum(each.shares for each in hungry)
        full = [each for each in hungry if each.maximum - each.minimum <= rest * each.shares // weight]
        if not full:
            return found | {each.vmid: each.minimum + rest * each.shares // weight for each in hungry}
        for each in full:
            found[each.vmid] = each.maximum
            rest -= each.maximum - each.minimum
        hungry = [each for each in hungry if each not in full]
    return found
