# SPDX-License-Identifier: AGPL-3.0-or-later
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.tasks.dummies import Build, Stamp

from orrery.errors import Failure, NotSupported
from orrery.tasks import registry, revert

BUILDS = st.builds(Build, names=st.lists(st.text()).map(tuple), target=st.text(), secret=st.none() | st.text())


@given(
    st.builds(
        Stamp,
        number=st.integers(),
        nested=st.lists(BUILDS).map(tuple),
        options=st.dictionaries(st.text(), st.none() | st.integers() | st.text()),
    )
)
def test_operations_come_back_from_json(operation: Stamp) -> None:
    text = json.dumps(registry.encode(operation))
    assert registry.decode("stamp", json.loads(text)) == operation


def test_secrets_are_left_out_of_what_is_public() -> None:
    assert registry.encode(Build(secret="x"))["secret"] == "x"
    assert "secret" not in registry.public(Build(secret="x"))


def test_data_that_do_not_fit() -> None:
    with pytest.raises(Failure, match="do not fit the operation 'build'"):
        registry.decode("build", {"names": 3})
    with pytest.raises(NotSupported, match="no operation 'fly'"):
        registry.decode("fly", {})


def test_only_frozen_dataclasses_with_a_kind_of_their_own() -> None:
    @dataclass
    class Soft:
        kind: ClassVar[str] = "soft"

    @dataclass(frozen=True)
    class Nameless:
        pass

    @dataclass(frozen=True)
    class Double:
        kind: ClassVar[str] = "build"

    for wrong, reason in ((Soft, "frozen"), (Nameless, "no kind"), (Double, "both of kind build")):
        with pytest.raises(TypeError, match=reason):
            registry.operation(wrong)
    assert registry.lookup("build") is Build


def test_undo_actions_have_names_of_their_own() -> None:
    with pytest.raises(TypeError, match=r"two undo actions are named thing\.remove"):
        revert.undo("thing.remove")(lambda ctx, log: None)
    assert revert.known("thing.remove")
    assert not revert.known("thing.unknown")


def test_an_unknown_action_does_not_keep_the_others() -> None:
    told: list[str] = []
    done: list[int] = []

    @revert.undo("test.fine")
    def fine(ctx: object, log: revert.Log, *, text: str) -> None:
        log(text)

    records = [revert.UndoRecord(3, "test.gone", {}), revert.UndoRecord(2, "test.fine", {"text": "x"})]
    assert revert.unwind(records, None, told.append, done.append) == records[:1]
    assert told == ["could not undo test.gone: this version does not know how", "x"]
    assert done == [2]


def test_one_word_of_the_wire_for_two_operations() -> None:
    @registry.operation
    @dataclass(frozen=True)
    class BuildElsewhere:
        kind: ClassVar[str] = "build"
        registered_as: ClassVar[str] = "build-elsewhere"

        place: str = ""

    there: Any = BuildElsewhere("there")
    assert registry.name_of(there) == "build-elsewhere"
    found: Any = registry.decode(registry.name_of(there), registry.encode(there))
    assert (found, found.kind) == (there, "build")
    assert registry.lookup("build") is Build
