# SPDX-License-Identifier: AGPL-3.0-or-later
"""User ids, token ids and identities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.identity import ROOT, Identity, TokenId, UserId

names = st.from_regex(r"\A[a-z!@.+_-]{1,20}\Z")
realms = st.from_regex(r"\A[A-Za-z][A-Za-z0-9._-]{1,20}\Z")


@pytest.mark.parametrize(
    ("text", "name", "realm"),
    [("root@pam", "root", "pam"), ("a@b@pve", "a@b", "pve"), ("anna!x@ldap.example", "anna!x", "ldap.example")],
)
def test_parses_user(text: str, name: str, realm: str) -> None:
    user = UserId.parse(text)
    assert (user.name, user.realm, str(user)) == (name, realm, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "root",
        "@pam",
        "root@",
        "root@p",
        "a b@pam",
        "a:b@pam",
        "a/b@pam",
        "a\n@pam",
        "a@1pam",
        "a@pam\n",
        "a\x00@pam",
        "a@pve!t",
        "x" * 61 + "@pam",
        "a\u2028b@pam",
        "a@" + "p" * 33,
    ],
)
def test_refuses_user(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        UserId.parse(text)


def test_longest_user() -> None:
    assert len(str(UserId.parse("x" * 60 + "@pam"))) == 64


@pytest.mark.parametrize("text", ["root@pam", "root@pam!", "root@pam!t", "root@pam!a b", "!tok@pam", "root@pam!1ab"])
def test_refuses_token(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TokenId.parse(text)


def test_only_root_without_token_is_root() -> None:
    assert Identity(ROOT).is_root
    assert not Identity.parse("root@pam!ci").is_root
    assert not Identity.parse("root@pve").is_root
    assert Identity.parse("root@pam!ci").token_id == TokenId(ROOT, "ci")


def test_identity_checks_its_token() -> None:
    with pytest.raises(ValueError, match="token name"):
        Identity(ROOT, "a:b")


@given(names, realms, st.none() | realms)
def test_identity_round_trips(name: str, realm: str, token: str | None) -> None:
    identity = Identity(UserId(name, realm), token)
    assert Identity.parse(str(identity)) == identity


@given(st.text(max_size=80))
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    try:
        identity = Identity.parse(text)
    except ValueError:
        return
    assert str(identity) == text
    assert not set(str(identity)) & set(": \n\t/")
