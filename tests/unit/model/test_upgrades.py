# SPDX-License-Identifier: AGPL-3.0-or-later
"""The chain of upgrades."""

import pytest

from orrery.errors import Corrupt
from orrery.model.upgrades import CHAIN, VERSION, Documents, changes, upgrade


def rename(documents: Documents) -> Documents:
    return {key.replace("/old/", "/new/"): value for key, value in documents.items()}


def shout(documents: Documents) -> Documents:
    return {key: value.upper() for key, value in documents.items()}


CHAIN_OF_TWO = (rename, shout)
FIRST = {"/old/a": b"x", "/b": b"Y"}


def test_this_version_has_nothing_to_do() -> None:
    assert len(CHAIN) == VERSION - 1 == 0
    assert upgrade(FIRST, VERSION) == FIRST


@pytest.mark.parametrize(
    ("version", "result"),
    [(1, {"/new/a": b"X", "/b": b"Y"}), (2, {"/old/a": b"X", "/b": b"Y"}), (3, FIRST)],
)
def test_steps_are_applied_in_order_from_the_version_on(version: int, result: dict[str, bytes]) -> None:
    before = dict(FIRST)
    assert upgrade(FIRST, version, CHAIN_OF_TWO) == result
    assert before == FIRST


@pytest.mark.parametrize("version", [0, -1, 4])
def test_unknown_versions_are_refused(version: int) -> None:
    with pytest.raises(Corrupt, match="version"):
        upgrade(FIRST, version, CHAIN_OF_TWO)


def test_what_to_write_and_remove() -> None:
    assert changes(FIRST, upgrade(FIRST, 1, CHAIN_OF_TWO)) == ({"/new/a": b"X"}, {"/old/a"})
