# SPDX-License-Identifier: AGPL-3.0-or-later
"""Maps of ids: what is refused by name, and that ranges which are handed out never meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model import idmap
from orrery.model.idmap import IdMap, IdRange

PLAIN = "u:0:300000:65536;g:0:300000:65536"


def test_shared_range_is_the_known_one() -> None:
    assert str(idmap.shared()) == "u:0:100000:65536;g:0:100000:65536"
    assert idmap.shared().host_id("u", 0) == 100_000
    assert idmap.shared().host_id("g", 65_535) == 165_535
    assert idmap.shared().host_id("g", 65_536) is None
    assert idmap.shared().inside_id("u", 100_033) == 33
    assert idmap.shared().inside_id("u", 1000) is None


def test_entries_are_read_and_sorted() -> None:
    text = "g:0:300000:1000; u:1000:1000:1;u:0:300000:1000;g:1000:1000:1;"
    canonical = idmap.canonical(text)
    assert canonical == "u:0:300000:1000;u:1000:1000:1;g:0:300000:1000;g:1000:1000:1"
    assert idmap.canonical(canonical) == canonical
    assert IdMap.parse(canonical).reaches_system_ids()
    assert not IdMap.parse(PLAIN).reaches_system_ids()
    assert idmap.canonical("own") == "own"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "user 0"),
        ("x", "not an entry"),
        ("u:0:300000:65536", "group 0"),
        ("u:1:300000:10;g:0:300000:10", "user 0"),
        ("u:0:300000:0;g:0:300000:10", "maps nothing"),
        ("u:0:0:10;g:0:300000:10", "privileged"),
        ("u:0:2147483640:10;g:0:300000:10", "beyond the last id of the host"),
        ("u:4294967290:300000:10;u:0:100000:1;g:0:300000:10", "beyond the last id of a container"),
        ("u:0:300000:10;u:9:400000:10;g:0:300000:10", "'u:0:300000:10' and 'u:9:400000:10' overlap.*id 9 of the con"),
        ("u:0:300000:10;u:10:300009:10;g:0:300000:10", "overlap: both have id 300009 of the host"),
        ("u:-1:300000:10;g:0:300000:10", "not an entry"),
        ("u:0:300000:99999999999;g:0:300000:10", "not an entry"),
        ("Shared", "not an entry"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        idmap.canonical(text)


def test_too_many_entries() -> None:
    many = ";".join(f"u:{n}:{300000 + 2 * n}:1" for n in range(idmap.MAX_ENTRIES + 1))
    with pytest.raises(ValueError, match="at most 340"):
        IdMap.parse(f"{many};g:0:300000:1")


def test_overlap_is_named() -> None:
    other = IdMap.parse("u:0:165535:10;g:0:400000:10")
    assert idmap.overlaps(idmap.shared(), other) == "users 165535 to 165535 of the host"
    assert idmap.overlaps(idmap.shared(), IdMap.parse(PLAIN)) is None


def test_slots_run_out() -> None:
    everything = IdMap.parse(f"u:0:{idmap.OWN_FIRST}:{idmap.HOST_IDS - idmap.OWN_FIRST};g:0:300000:1")
    assert idmap.free_slot([everything]) is None
    assert idmap.free_slot([]) == 0
    assert idmap.free_slot([idmap.own(0), idmap.own(2), idmap.shared()]) == 1
    for slot in (-1, idmap.OWN_SLOTS):
        with pytest.raises(ValueError, match="own ranges"):
            idmap.own(slot)


@given(st.lists(st.integers(0, 40), max_size=30))
def test_a_free_slot_is_free_and_the_lowest(taken: list[int]) -> None:
    maps = [idmap.shared(), *map(idmap.own, taken)]
    slot = idmap.free_slot(maps)
    assert slot is not None
    assert not any(idmap.overlaps(idmap.own(slot), each) for each in maps)
    assert set(range(slot)) <= set(taken)


@given(st.integers(0, idmap.OWN_SLOTS - 1), st.integers(0, idmap.OWN_SLOTS - 1))
def test_slots_never_overlap(one: int, other: int) -> None:
    assert (idmap.overlaps(idmap.own(one), idmap.own(other)) is None) == (one != other)
    assert idmap.overlaps(idmap.own(one), idmap.shared()) is None


ranges = st.builds(
    IdRange,
    st.sampled_from(["u", "g"]),
    st.integers(0, 3000),
    st.integers(1, 3000),
    st.integers(1, 1000),
)


@given(st.lists(ranges, min_size=1, max_size=6))
def test_a_map_is_one_to_one(entries: list[IdRange]) -> None:
    try:
        found = IdMap(tuple(entries))
    except ValueError:
        return
    assert IdMap.parse(str(found)) == found
    for entry in found.entries:
        for inside in (entry.inside, entry.inside + entry.count - 1):
            host = found.host_id(entry.kind, inside)
            assert host is not None
            assert found.inside_id(entry.kind, host) == inside


@given(st.lists(ranges, min_size=2, max_size=6), st.integers(0, 5), st.integers(0, 5))
def test_what_is_refused_as_overlap_does_overlap(entries: list[IdRange], a: int, b: int) -> None:
    one, other = entries[a % len(entries)], entries[b % len(entries)]
    base = (IdRange("u", 0, 1_000_000, 1), IdRange("g", 0, 1_000_000, 1))
    if one is other or one.kind != other.kind or one.inside < 1 or other.inside < 1:
        return
    hosts = range(max(one.host, other.host), min(one.host + one.count, other.host + other.count))
    insides = range(max(one.inside, other.inside), min(one.inside + one.count, other.inside + other.count))
    if hosts or insides:
        with pytest.raises(ValueError, match="overlap"):
            IdMap((*base, one, other))
    else:
        assert len(IdMap((*base, one, other)).entries) == 4


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        canonical = idmap.canonical(text)
    except ValueError:
        return
    assert idmap.canonical(canonical) == canonical
