# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options of the cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import ParameterError
from orrery.model.options import CLUSTER_OPTIONS, ClusterOptions, cluster_options, validate_options

TYPICAL = {
    "migration": "insecure,network=10.0.0.0/24",
    "next-id": "upper=500,lower=200",
    "tag-style": "ordering=config,case-sensitive=1",
    "mac_prefix": "02:AA",
    "max_workers": "4",
    "language": "it",
    "webauthn": "id=x,rp=y",
    "description": "line\nline",
}


def test_values_and_what_follows() -> None:
    canonical = validate_options(TYPICAL)
    assert canonical["next-id"] == "lower=200,upper=500"
    options = cluster_options({**canonical, "broken": 7})
    assert options.next_id_range() == (200, 500)
    assert (options.mac_prefix, options.sort_tags, options.case_sensitive_tags) == ("02:AA", False, True)
    assert options.reply() == {
        "migration": {"type": "insecure", "network": "10.0.0.0/24"},
        "next-id": {"lower": 200, "upper": 500},
        "tag-style": {"ordering": "config", "case-sensitive": 1},
        "mac_prefix": "02:AA",
        "max_workers": 4,
        "language": "it",
        "webauthn": {"id": "x", "rp": "y"},
        "description": "line\nline",
    }


def test_defaults() -> None:
    options = ClusterOptions()
    assert options.next_id_range() == (100, 1_000_000)
    assert (options.mac_prefix, options.sort_tags, options.case_sensitive_tags) == ("BC:24:11", True, False)
    assert options.reply() == {}


def test_faults_by_parameter() -> None:
    with pytest.raises(ParameterError) as caught:
        validate_options(
            {
                "next-id": "lower=500,upper=200",
                "migration": "network=x",
                "foo": "1",
                "max_workers": "0",
                "language": "xx",
            },
            ["language", "bar"],
        )
    assert set(caught.value.errors) == {"next-id", "migration", "foo", "max_workers", "language", "delete"}
    assert caught.value.errors["next-id"].startswith("invalid format - format error\nnext-id: lower (500)")


def test_a_broken_store_does_not_break_replies() -> None:
    assert ClusterOptions({"crs": "nonsense=1", "max_workers": "x"}).reply() == {
        "crs": "nonsense=1",
        "max_workers": "x",
    }


@given(
    st.dictionaries(
        st.sampled_from(sorted(CLUSTER_OPTIONS)), st.text(max_size=20) | st.sampled_from([*TYPICAL.values()])
    )
)
def test_any_options_are_read_or_refused(options: dict[str, str]) -> None:
    try:
        canonical = validate_options(options)
    except ParameterError:
        return
    assert validate_options(canonical) == canonical
    assert ClusterOptions(canonical).reply().keys() == options.keys()
