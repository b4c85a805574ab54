# SPDX-License-Identifier: AGPL-3.0-or-later
"""Passwords of systems inside guests."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.access.shadow import hash_password, hashed, is_hash, matches
from orrery.errors import Failure


def test_openssl_makes_the_same_of_it() -> None:
    ours = hash_password("größer: 'als' \"das\" 🦉")
    _, _, rounds, salt, _ = ours.split("$")
    command = ["openssl", "passwd", "-6", "-salt", f"{rounds}${salt}", "-stdin"]
    text = "größer: 'als' \"das\" 🦉\n".encode()
    assert subprocess.run(command, input=text, capture_output=True, check=True).stdout.decode().strip() == ours


def test_each_hash_has_its_own_salt() -> None:
    assert hash_password("x") != hash_password("x")


@settings(max_examples=10, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=80))
def test_a_password_matches_its_hash_alone(password: str) -> None:
    found = hash_password(password)
    assert is_hash(found)
    assert matches(password, found)
    assert not matches(password + "x", found)


@pytest.mark.parametrize("text", ["", "two\nlines", "nul\0"])
def test_what_no_system_takes_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="password"):
        hash_password(text)


@pytest.mark.parametrize(
    "text",
    [
        "$6$abc$def",
        "$5$rounds=5000$salt$hash",
        "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7",
        "$2y$10$" + "a" * 53,
        "$1$s$h",
    ],
)
def test_hashes_are_known_and_kept(text: str) -> None:
    assert is_hash(text)
    assert hashed(text) == text


@pytest.mark.parametrize("text", ["secret", "$6$", "$money$talks", "$6$with blank$hash", "pa$$word", "$9$a$b"])
def test_passwords_are_no_hashes(text: str) -> None:
    assert not is_hash(text)
