# SPDX-License-Identifier: AGPL-3.0-or-later
"""Property strings: manners of parsing and printing, and every schema there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.formats import PROPERTY_STRINGS
from orrery.model.machine_properties import AGENT, NIC, SCSI_DISK, VGA
from orrery.model.propertystring import Property, PropertyStringError, schema
from orrery.model.values import Value

PLAIN = schema({"a": Property(default_key=True), "b": Property(type="integer"), "c": Property(type="boolean")})


def test_default_key_may_stand_bare_and_first() -> None:
    assert PLAIN.parse("x,b=1") == {"a": "x", "b": 1}
    assert PLAIN.parse("a=x") == {"a": "x"}
    with pytest.raises(ValueError, match="only the first part"):
        PLAIN.parse("b=1,x")
    with pytest.raises(ValueError, match="no default key"):
        schema({"b": Property()}).parse("x")


def test_keys_print_sorted_after_the_default_key() -> None:
    assert PLAIN.print({"c": True, "b": 2, "a": "x"}) == "x,b=2,c=1"
    assert PLAIN.canonical("c=yes,b=2,a=x") == "x,b=2,c=1"
    assert PLAIN.print({"a": "x=y"}) == "a=x=y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,b=1,b=2", "net0.b: duplicate key 'b'"),
        ("x,a=y", "net0.a: duplicate key 'a'"),
        ("x,d=1", "net0.d: unknown key 'd'; known are a, b, c"),
        ("x,b=y", "net0.b: type check ('integer') failed - got 'y'"),
        ("x,b=", "net0.b: key 'b' has no value"),
        ("=x", "net0.: unknown key ''; known are a, b, c"),
        ("x,c=maybe", "net0.c: type check ('boolean') failed - got 'maybe'"),
        ("x\n", "net0.a: a value cannot contain a comma or control characters"),
    ],
)
def test_errors_name_option_and_key(text: str, message: str) -> None:
    with pytest.raises(PropertyStringError) as caught:
        PLAIN.parse(text, "net0")
    assert str(caught.value) == f"format error\n{message}"


@pytest.mark.parametrize("word", ["1", "on", "ON", "yes", "true"])
def test_booleans(word: str) -> None:
    assert PLAIN.parse(f"c={word}") == {"c": True}


def test_values_cannot_contain_commas() -> None:
    with pytest.raises(ValueError, match="comma"):
        PLAIN.print({"a": "x,b=1"})


def test_all_faults_at_once() -> None:
    with pytest.raises(PropertyStringError) as caught:
        NIC.parse("tag=9999,rate=x", "net0")
    assert set(caught.value.errors) == {"net0.tag", "net0.rate", "net0.model"}
    assert caught.value.errors["net0.model"] == "property is missing and it is not optional"


def test_a_nic_model_is_a_key_whose_value_is_the_mac() -> None:
    text = "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1"
    parsed = NIC.parse(text)
    assert parsed == {"model": "virtio", "macaddr": "BC:24:11:00:00:01", "bridge": "vmbr0", "firewall": True}
    assert NIC.print(parsed) == text
    assert NIC.canonical("bridge=vmbr0,macaddr=BC:24:11:00:00:01,model=virtio,firewall=yes") == text
    assert NIC.canonical("virtio,bridge=vmbr0") == "virtio,bridge=vmbr0"
    with pytest.raises(ValueError, match="duplicate key"):
        NIC.parse("virtio=BC:24:11:00:00:01,e1000=BC:24:11:00:00:02")
    with pytest.raises(ValueError, match="duplicate key"):
        NIC.parse("virtio=BC:24:11:00:00:01,macaddr=BC:24:11:00:00:02")


def test_aliases() -> None:
    assert AGENT.canonical("1,guest-fsfreeze=0") == "1,freeze-fs=0"
    assert SCSI_DISK.canonical("volume=local:100/vm-100-disk-0.raw,iops_rd_length=5,iops_rd=10") == (
        "local:100/vm-100-disk-0.raw,iops_rd=10,iops_rd_max_length=5"
    )


def test_requires() -> None:
    crs = PROPERTY_STRINGS["$crs"]
    with pytest.raises(PropertyStringError) as caught:
        crs.parse("ha-auto-rebalance-margin=0.2", "crs")
    assert caught.value.errors == {
        "crs.ha-auto-rebalance": "missing property - 'ha-auto-rebalance-margin' requires this property"
    }


def test_unsupported_keys_and_words() -> None:
    assert SCSI_DISK.unsupported(SCSI_DISK.parse("local:1,snapshot=1,wwn=0x0123456789abcdef,ssd=1")) == [
        "snapshot",
        "wwn",
    ]
    assert SCSI_DISK.unsupported(SCSI_DISK.parse("local:1,snapshot=0")) == []
    assert VGA.unsupported(VGA.parse("virtio-gl,memory=32")) == ["type=virtio-gl"]


def test_every_schema_is_sound() -> None:
    for name, each in PROPERTY_STRINGS.items():
        for key, rule in each.properties.items():
            assert rule.alias is None or rule.alias in each.properties, (name, key)
            assert rule.requires is None or rule.requires in each.properties, (name, key)
            if rule.default is not None:
                assert rule.check(rule.default) == rule.default, (name, key)


words = st.text(
    st.characters(codec="ascii", exclude_characters=",", categories=["L", "N", "P"]), min_size=1, max_size=12
)


@st.composite
def values_of(draw: st.DrawFn) -> tuple[str, dict[str, Value]]:
    """A schema's name and values that it may hold, as far as they can be drawn from the rules."""
    name = draw(st.sampled_from(sorted(PROPERTY_STRINGS)))
    values: dict[str, Value] = {}
    for key, rule in PROPERTY_STRINGS[name].properties.items():
        if rule.alias or (rule.optional and draw(st.booleans())):
            continue
        low, high = int(rule.minimum or 0), int(rule.maximum or 10**6)
        if rule.enum:
            values[key] = draw(st.sampled_from(rule.enum))
        elif rule.type == "boolean":
            values[key] = draw(st.booleans())
        elif rule.type != "string":
            values[key] = draw(st.integers(low, high))
        elif rule.pattern:
            values[key] = draw(st.from_regex(rf"\A(?:{rule.pattern})\Z"))
        else:
            values[key] = draw(
                words | st.sampled_from(["local:1", "BC:24:11:00:00:01", "vmbr0", "10.0.0.1", "10.0.0.0/8"])
            )
    return name, values


@given(values_of())
def test_every_schema_round_trips(drawn: tuple[str, dict[str, Value]]) -> None:
    name, values = drawn
    each = PROPERTY_STRINGS[name]
    try:
        text = each.print(values)
    except ValueError:
        return
    assert each.parse(text) == each.parse(each.canonical(text))
    assert each.print(each.parse(text)) == text
    assert set(each.parse(text)) == set(values)


@given(st.sampled_from(sorted(PROPERTY_STRINGS)), st.text(max_size=60))
def test_any_text_is_read_or_refused_by_every_schema(name: str, text: str) -> None:
    try:
        canonical = PROPERTY_STRINGS[name].canonical(text)
    except ValueError:
        return
    assert PROPERTY_STRINGS[name].canonical(canonical) == canonical
