# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameters come in the manners of the wire, and refusals have the words that clients know."""

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from orrery.api.manners import Array, Enum, Flag, Format, Int, ListOf, Pattern, Real, Refused, Text
from orrery.api.parameters import (
    MISSING,
    Boolean,
    DeleteList,
    GuestParams,
    Integer,
    Params,
    String,
    indexed,
    path_params,
)
from orrery.errors import ParameterError
from orrery.model.values import UNKNOWN


class Change(GuestParams):
    net: dict[int, Annotated[str, Format("$netN")]] = indexed(32)
    delete: DeleteList = Field(default=[])
    privs: Annotated[str, Text(requires="path")] | None = None
    path: String | None = None
    cores: Annotated[int, Int(minimum=1, maximum=8)] | None = None
    onboot: Boolean = False
    force_stop: Boolean = Field(default=False, alias="forceStop")
    background_delay: Integer | None = Field(default=None, alias="background_delay")
    keep_going: Boolean = False


HERE = {"node": "n1", "vmid": "100"}


def faults(model: type[Params], **raw: Any) -> dict[str, str]:
    with pytest.raises(ParameterError) as refused:
        model.from_wire(raw)
    assert refused.value.status == 400
    assert refused.value.message == "Parameter verification failed."
    return refused.value.errors


def test_reads_texts_into_types() -> None:
    p = Change.from_wire(
        {**HERE, "cores": "2", "onboot": "1", "forceStop": "0", "keep-going": "1", "delete": "ab;cd ef"}
    )
    assert (p.vmid, p.cores, p.onboot, p.force_stop, p.keep_going) == (100, 2, True, False, True)
    assert p.delete == ["ab", "cd", "ef"]
    assert p.sent("cores")
    assert not p.sent("privs")


def test_all_faults_are_told_together() -> None:
    assert faults(Change, vmid="x", cores="9", onboot="yes", bogus="1") == {
        "node": MISSING,
        "vmid": "type check ('integer') failed - got 'x'",
        "cores": "value must have a maximum value of 8",
        "onboot": "type check ('boolean') failed - got 'yes'",
        "bogus": UNKNOWN,
    }


@pytest.mark.parametrize("spelling", ["0100", "+100", "00100"])
def test_a_guests_number_has_one_spelling(spelling: str) -> None:
    """Rights are judged on the path as it was sent."""
    assert faults(Change, node="n1", vmid=spelling) == {
        "vmid": f"invalid format - value '{spelling}' does not look like a valid VM ID"
    }


def test_python_names_are_not_wire_names() -> None:
    assert faults(Change, **HERE, force_stop="1") == {"force_stop": UNKNOWN}
    assert faults(Change, **HERE, keep_going="1") == {"keep_going": UNKNOWN}
    assert Change.from_wire({**HERE, "background_delay": "3"}).background_delay == 3


def test_indexed_parameters_fold_and_end() -> None:
    p = Change.from_wire({**HERE, "net0": "virtio,bridge=vmbr0", "net31": "e1000"})
    assert sorted(p.net) == [0, 31]
    assert faults(Change, **HERE, net32="virtio", net="virtio", net00="virtio") == {
        "net32": UNKNOWN,
        "net": UNKNOWN,
        "net00": UNKNOWN,
    }
    assert list(faults(Change, **HERE, net3="model=")) == ["net3"]
    assert faults(Change, **HERE, **{"net[n]": {"40": "virtio"}}) == {"net[n]": UNKNOWN}


def test_a_parameter_that_needs_another() -> None:
    assert faults(Change, **HERE, privs="VM.Audit") == {"path": "missing property - 'privs' requires this property"}
    assert Change.from_wire({**HERE, "privs": "VM.Audit", "path": "/vms/1"}).path == "/vms/1"


def test_null_counts_as_absent_and_empty_text_does_not() -> None:
    assert faults(Change, node=None, vmid="100") == {"node": MISSING}
    assert Change.from_wire({**HERE, "path": ""}).path == ""


def test_a_model_without_manners_is_refused_when_declared() -> None:
    class Bare(Params):
        count: int = 0

    with pytest.raises(TypeError, match=r"Bare\.count"):
        Bare.declared()
    with pytest.raises(TypeError, match="no format 'pve-nonsense'"):
        Format("pve-nonsense")
    with pytest.raises(TypeError, match="cidr"):
        path_params(("node", "cidr"))


def test_descriptions_name_families_defaults_and_limits() -> None:
    declared = Change.declared()
    assert declared["net[n]"].indices == 32
    assert "net" not in declared
    assert declared["vmid"].required
    assert not declared["onboot"].required
    assert declared["onboot"].schema()["default"] is False
    assert declared["cores"].schema() == {"type": "integer", "minimum": 1, "maximum": 8}


@pytest.mark.parametrize(
    ("manner", "sent", "got"),
    [
        (Flag(), "1", True),
        (Flag(), 0, False),
        (Flag(), True, True),
        (Int(), "-7", -7),
        (Int(), 5, 5),
        (Int(), 5.0, 5),
        (Int(), "+3", 3),
        (Real(), "1.5", 1.5),
        (Real(), 2, 2.0),
        (Text(), 7, "7"),
        (Text(), True, "1"),
        (Text(), "ä\nb\tc", "ä\nb\tc"),
        (Enum("a", "b"), "b", "b"),
        (ListOf(), "a, b;c\0d\n", ["a", "b", "c", "d"]),
        (ListOf(), ["a,b", 3], ["a", "b", "3"]),
        (ListOf(Format("pve-vmid")), "100 101", ["100", "101"]),
        (Array(), "one", ["one"]),
        (Array(Int()), ["1", 2], [1, 2]),
        (Pattern("[a-z]+"), "abc", "abc"),
    ],
)
def test_manners_accept(manner: Any, sent: Any, got: Any) -> None:
    assert manner.parse(sent) == got


@pytest.mark.parametrize(
    ("manner", "sent", "text"),
    [
        (Flag(), "true", "type check ('boolean') failed - got 'true'"),
        (Flag(), "", "type check ('boolean') failed - got ''"),
        (Flag(), 2, "type check ('boolean') failed - got '2'"),
        (Flag(), ["1"], "type check ('boolean') failed - got ARRAY"),
        (Int(), "1.5", "type check ('integer') failed - got '1.5'"),
        (Int(), "", "type check ('integer') failed - got ''"),
        (Int(), " 1", "type check ('integer') failed - got ' 1'"),
        (Int(), "1\n", "type check ('integer') failed - got '1\n'"),
        (Int(), "9" * 5000, None),
        (Int(), {}, "type check ('integer') failed - got HASH"),
        (Int(minimum=1), "0", "value must have a minimum value of 1"),
        (Real(), "nan", "type check ('number') failed - got 'nan'"),
        (Real(), "1e999", None),
        (Real(), float("inf"), None),
        (Text(), [], "type check ('string') failed - got ARRAY"),
        (Text(), "a\0b", "invalid format - value contains control characters"),
        (Text(max_length=3), "abcd", "value may only be 3 characters long"),
        (Text(min_length=3), "ab", "value must be at least 3 characters long"),
        (Pattern("[a-z]+"), "abc\n", "value does not match the regex pattern"),
        (Enum("a", "b"), "c", "value 'c' does not have a value in the enumeration 'a, b'"),
        (Array(), {}, "type check ('array') failed - got HASH"),
    ],
)
def test_manners_refuse(manner: Any, sent: Any, text: str | None) -> None:
    with pytest.raises(Refused) as refused:
        manner.parse(sent)
    if text is not None:
        assert str(refused.value) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Change.declared(), "net0", "net7", "x"]) | st.text(max_size=8), JSON))
def test_whatever_is_sent_is_read_or_refused_by_name(raw: dict[str, Any]) -> None:
    errors: dict[str, str] = {"none": "was told"}
    try:
        Change.from_wire(raw)
    except ParameterError as refused:
        errors = refused.errors
    assert errors
    assert all(isinstance(text, str) for text in errors.values())
