# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scalar rules, and the texts that clients know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.values import Scalar, ScalarType, print_value


@pytest.mark.parametrize(
    ("rule", "text", "message"),
    [
        (Scalar(type="integer"), "x", "type check ('integer') failed - got 'x'"),
        (Scalar(type="integer"), "1.5", "type check ('integer') failed - got '1.5'"),
        (Scalar(type="integer"), "٣", "type check ('integer') failed - got '٣'"),
        (Scalar(type="integer"), "9" * 5000, f"type check ('integer') failed - got '{'9' * 80}'"),
        (Scalar(type="number"), "nan", "type check ('number') failed - got 'nan'"),
        (Scalar(type="boolean"), "yes", "type check ('boolean') failed - got 'yes'"),
        (Scalar(type="integer", minimum=2), "1", "value must have a minimum value of 2"),
        (Scalar(type="number", maximum=0.5), "0.6", "value must have a maximum value of 0.5"),
        (Scalar(max_length=2), "abc", "value may only be 2 characters long"),
        (Scalar(min_length=2), "a", "value must be at least 2 characters long"),
        (Scalar(pattern="a+"), "aab", "value does not match the regex pattern"),
        (Scalar(pattern="a+"), "a\n", "value does not match the regex pattern"),
        (Scalar(enum=("a", "b")), "x", "value 'x' does not have a value in the enumeration 'a, b'"),
        (Scalar(type="integer", enum=("1", "2")), "3", "value '3' does not have a value in the enumeration '1, 2'"),
        (Scalar(format="pve-vmid"), "1", "invalid format - value '1' does not look like a valid VM ID"),
    ],
)
def test_texts(rule: Scalar, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        rule.parse(text)
    assert str(caught.value) == message


def test_reads_typed_values() -> None:
    assert Scalar(type="integer").parse("+7") == 7
    assert Scalar(type="number").parse(".5") == 0.5
    assert Scalar(type="boolean").check(True) is True
    assert Scalar(type="boolean").parse("Off", lenient_boolean=True) is False
    assert Scalar(type="integer").check(7) == 7


@pytest.mark.parametrize(
    ("value", "text"), [(True, "1"), (False, "0"), (1.0, "1"), (0.25, "0.25"), (7, "7"), ("a", "a")]
)
def test_prints(value: str | float, text: str) -> None:
    assert print_value(value) == text


@given(st.floats(min_value=-1e15, max_value=1e15).map(lambda number: round(number, 6)))
def test_numbers_round_trip(number: float) -> None:
    text = print_value(number)
    assert Scalar(type="number").parse(text) == pytest.approx(number, rel=1e-12)
    assert Scalar(type="number").canonical(text) == text


KINDS: tuple[ScalarType, ...] = ("integer", "number", "boolean", "string")


@given(st.text(max_size=30), st.sampled_from(KINDS))
def test_any_text_is_read_or_refused(text: str, kind: ScalarType) -> None:
    rule = Scalar(type=kind)
    try:
        canonical = rule.canonical(text)
    except ValueError:
        return
    assert rule.canonical(canonical) == canonical
