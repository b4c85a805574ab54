# SPDX-License-Identifier: AGPL-3.0-or-later
"""How memory is taken from machines when the host runs short, and given back."""

from hypothesis import given
from hypothesis import strategies as st

from orrery.model.ballooning import BAND, GOAL, STEP, Ballooned, targets

MIB = 1 << 20
GIB = 1 << 30
HOST = 100 * GIB


def machine(vmid: int, actual: int, *, low: int = 1, high: int = 8, shares: int = 1000) -> Ballooned:
    """Sizes in GiB."""
    return Ballooned(vmid, low * GIB, high * GIB, actual * GIB, shares)


def used(percent: float) -> int:
    return int(HOST * percent / 100)


def settled(machines: list[Ballooned], share_used: float) -> dict[int, int]:
    """What the machines have once pressure of `share_used` percent has lasted, the host's use not changing by it."""
    for _ in range(1000):
        wanted = targets(machines, HOST, used(share_used))
        machines = [Ballooned(m.vmid, m.minimum, m.maximum, wanted.get(m.vmid, m.actual), m.shares) for m in machines]
    return {m.vmid: m.actual for m in machines}


def test_nothing_is_done_while_there_is_room_and_all_have_theirs() -> None:
    assert targets([machine(1, 8), machine(2, 8)], HOST, used(50)) == {}


def test_above_the_goal_memory_is_taken_step_by_step() -> None:
    found = targets([machine(1, 8), machine(2, 8)], HOST, used(95))
    assert found == {1: 8 * GIB - STEP, 2: 8 * GIB - STEP}


def test_a_small_shortage_takes_no_more_than_is_short() -> None:
    found = targets([machine(1, 8), machine(2, 8)], HOST, int(HOST * GOAL) + 100 * MIB)
    assert sum(8 * GIB - size for size in found.values()) <= 100 * MIB
    assert min(found.values()) < 8 * GIB


def test_just_below_the_goal_nothing_moves() -> None:
    assert targets([machine(1, 4), machine(2, 8)], HOST, int(HOST * (GOAL - BAND / 2))) == {}


def test_what_was_taken_is_given_back_when_there_is_room() -> None:
    assert targets([machine(1, 4)], HOST, used(50)) == {1: 4 * GIB + STEP}
    assert settled([machine(1, 4), machine(2, 1)], 50) == {1: 8 * GIB, 2: 8 * GIB}


def test_pressure_that_lasts_ends_at_the_minimum() -> None:
    assert settled([machine(1, 8), machine(2, 6, low=2)], 99) == {1: GIB, 2: 2 * GIB}


def test_more_shares_keep_more() -> None:
    machines = [machine(1, 8, shares=3000), machine(2, 8, shares=1000)]
    found = targets(machines, HOST, int(HOST * GOAL) + 200 * MIB)
    assert found.get(1, 8 * GIB) > found[2]


def test_shares_of_zero_are_never_touched() -> None:
    assert targets([machine(1, 8, shares=0)], HOST, used(99)) == {}
    assert targets([machine(1, 4, shares=0)], HOST, used(10)) == {}


def test_a_machine_without_room_between_minimum_and_memory_is_left_alone() -> None:
    assert targets([machine(1, 8, low=8)], HOST, used(99)) == {}


def test_what_lies_outside_its_bounds_comes_back_into_them() -> None:
    assert targets([Ballooned(1, 4 * GIB, 8 * GIB, 3 * GIB, 1000)], HOST, used(99))[1] == 4 * GIB


sizes = st.integers(0, 64 * GIB)


@st.composite
def machines(draw: st.DrawFn) -> list[Ballooned]:
    found = []
    for vmid in range(draw(st.integers(0, 8))):
        low, actual, high = sorted(draw(st.lists(sizes, min_size=3, max_size=3)))
        found.append(Ballooned(vmid, low, high, actual, draw(st.integers(0, 50000))))
    return found


@given(machines(), st.integers(0, HOST))
def test_whatever_the_pressure(given_: list[Ballooned], in_use: int) -> None:
    wanted = targets(given_, HOST, in_use)
    short = in_use - HOST * GOAL
    moved = 0
    for each in given_:
        target = wanted.get(each.vmid, each.actual)
        assert each.minimum <= target <= each.maximum
        assert abs(target - each.actual) <= STEP
        assert each.shares or target == each.actual
        moved += target - each.actual
        assert target <= each.actual if short > 0 else target >= each.actual
    if short > 0:
        assert -moved <= short + 1
    elif moved:
        assert moved <= -short - HOST * BAND + 1


@given(machines(), st.integers(0, HOST))
def test_the_order_of_machines_changes_nothing(given_: list[Ballooned], in_use: int) -> None:
    assert targets(given_, HOST, in_use) == targets(given_[::-1], HOST, in_use)


@given(machines(), st.integers(int(HOST * (GOAL + 0.01)), HOST))
def test_lasting_pressure_always_does_something_until_all_are_small(given_: list[Ballooned], in_use: int) -> None:
    movable = [each for each in given_ if each.shares and each.actual - each.minimum > MIB]
    assert bool(targets(given_, HOST, in_use)) >= bool(movable)
