# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tickets and CSRF tokens against forgers, clocks and rotations."""

import base64
import json
import shutil
import stat
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orrery.access import signing
from orrery.access.tickets import Tickets
from orrery.errors import Corrupt

DAY = 24 * 3600


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    Tickets(folder, clock=Clock())
    return folder


@pytest.fixture
def folder(made_once, tmp_path):
    shutil.copytree(made_once, tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def tickets(folder, clock):
    return Tickets(folder, clock=clock)


def test_a_ticket_has_the_form_that_clients_split(tickets):
    ticket = tickets.issue("PVE", "anna@pve")
    assert ticket.startswith("PVE:anna@pve:6B49D200::")
    assert len(ticket.split(":")) > 3
    assert base64.b64decode(ticket.partition("::")[2], validate=True)
    found = tickets.verify("PVE", ticket)
    assert (found.data, found.age) == ("anna@pve", 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_data_survives_also_when_a_cookie_was_decoded(tickets, data):
    ticket = tickets.issue("PVE", data)
    assert ticket.isascii()
    assert tickets.verify("PVE", ticket).data == data
    assert tickets.verify("PVE", unquote(quote(ticket))).data == data
    if "\n" not in data:
        assert tickets.verify("PVE", unquote(ticket)).data == data


def test_a_colon_in_a_name_is_encoded(tickets):
    ticket = tickets.issue("PVE", "a:b%3A@pve")
    assert ticket.startswith("PVE:a%3Ab%253A@pve:")
    assert tickets.verify("PVE", ticket).data == "a:b%3A@pve"


@pytest.mark.parametrize(
    ("shift", "good"),
    [(0, True), (7199, True), (7200, False), (10**7, False), (-300, True), (-301, False), (-(10**9), False)],
)
def test_a_ticket_lives_two_hours_with_a_little_grace_for_clocks(tickets, clock, shift, good):
    ticket = tickets.issue("PVE", "anna@pve")
    clock.now += shift
    assert (tickets.verify("PVE", ticket) is not None) is good


def test_a_forged_ticket_is_refused(tickets, clock, tmp_path):
    ticket = tickets.issue("PVE", "anna@pve")
    plain, _, signature = ticket.partition("::")
    later = f"{int(clock.now) + 60:08X}"
    other = Tickets(tmp_path / "other", clock=clock)
    forged = [
        "",
        "PVE",
        plain,
        plain + "::",
        ticket.replace("anna", "root"),
        ticket.replace("@pve", "@pam"),
        f"PVE:anna@pve:{later}::{signature}",
        f"{plain}:{signature}",
        f"{plain}::{signature[:-4]}",
        f"{plain}::{signature}{signature}",
        f"{plain}::{signature.swapcase()}",
        f"{plain}::" + "A" * 344,
        f"{plain}::====",
        ticket + "\n",
        " " + ticket,
        ticket.lower(),
        ticket.replace("PVE:", "PVEVNC:", 1),
        f"PVE:{'x' * 5000}:{later}::{signature}",
        other.issue("PVE", "anna@pve"),
        "PVE:\u0661:" + ticket,
    ]
    assert [text for text in forged if tickets.verify("PVE", text) is not None] == []
    assert tickets.verify("PVE", ticket) is not None


def test_kinds_and_extra_texts_do_not_mix(tickets):
    plain = tickets.issue("PVE", "anna@pve")
    bound = tickets.issue("PVE", "!tfa!{}", extra="anna@pve")
    console = tickets.issue("PVEVNC", extra="anna@pve:/vms/100")
    assert console.startswith("PVEVNC:")
    assert console.count(":") == 3
    assert tickets.verify("PVE", bound) is None
    assert tickets.verify("PVE", bound, extra="bert@pve") is None
    assert tickets.verify("PVE", plain, extra="anna@pve") is None
    assert tickets.verify("PVE", bound, extra="anna@pve").data == "!tfa!{}"
    assert tickets.verify("PVEVNC", console, extra="anna@pve:/vms/100", max_age=40) is not None
    assert tickets.verify("PVEVNC", console, extra="anna@pve:/vms/101", max_age=40) is None
    assert tickets.verify("PVE", console, extra="anna@pve:/vms/100") is None


def test_a_short_lived_ticket_ends_early(tickets, clock):
    ticket = tickets.issue("PVEVNC", extra="x")
    clock.now += 40
    assert tickets.verify("PVEVNC", ticket, extra="x", max_age=40) is None


@pytest.mark.parametrize(("prefix", "data"), [("", "x"), ("P:V", "x"), ("PVE1", "x"), ("PVE", "")])
def test_what_cannot_be_read_back_is_not_issued(tickets, prefix, data):
    with pytest.raises(ValueError):
        tickets.issue(prefix, data)


def test_keys_rotate_daily_and_nobody_is_thrown_out(tickets, clock):
    clock.now += DAY - 60
    old = tickets.issue("PVE", "anna@pve")
    clock.now += 120
    new = tickets.issue("PVE", "anna@pve")
    assert tickets._ring.keys().previous is not None
    assert tickets.verify("PVE", old) is not None
    assert tickets.verify("PVE", new) is not None
    clock.now += 7100
    assert tickets.verify("PVE", old) is None
    assert tickets.verify("PVE", new) is not None


def test_a_retired_key_signs_nothing_any_more(tickets, clock):
    stolen = tickets._ring.keys().current
    clock.now += DAY + 1
    tickets.issue("PVE", "anna@pve")
    for shift, good in [(0, True), (1, False), (3600, False)]:
        plain = f"PVE:root@pam:{int(clock.now) + shift:08X}"
        forged = f"{plain}::{base64.b64encode(stolen.sign(plain.encode())).decode()}"
        at = clock.now
        clock.now += shift
        assert (tickets.verify("PVE", forged) is not None) is good
        clock.now = at
    clock.now += DAY
    tickets.issue("PVE", "anna@pve")
    plain = f"PVE:root@pam:{int(clock.now) - 10:08X}"
    assert tickets.verify("PVE", f"{plain}::{base64.b64encode(stolen.sign(plain.encode())).decode()}") is None


def test_a_clock_set_back_makes_a_new_key_not_an_eternal_one(tickets, clock):
    before = tickets._ring.keys().current.created
    clock.now -= 10 * DAY
    ticket = tickets.issue("PVE", "anna@pve")
    assert tickets._ring.keys().current.created < before
    assert tickets.verify("PVE", ticket) is not None


def test_processes_share_keys_and_rotations(folder, tickets, clock):
    other = Tickets(folder, clock=clock)
    assert other.verify("PVE", tickets.issue("PVE", "anna@pve")) is not None
    clock.now += DAY
    ticket = other.issue("PVE", "anna@pve")
    assert tickets.verify("PVE", ticket) is not None
    assert tickets.issue("PVE", "anna@pve")
    assert tickets._ring.keys().current.created == clock.now
    assert other.verify_csrf("anna@pve", tickets.csrf_token("anna@pve"))


def test_keys_are_private_and_outlive_the_process(folder, tickets, clock):
    ticket = tickets.issue("PVE", "anna@pve")
    assert stat.S_IMODE((folder / signing.FILE).stat().st_mode) == 0o600
    assert Tickets(folder, clock=clock).verify("PVE", ticket) is not None


@pytest.mark.parametrize(
    "damage", ["", "{", "{}", '{"current": {}, "previous": null, "csrf": ""}', "short", "other key"]
)
def test_a_damaged_key_file_is_never_replaced(folder, damage):
    path = folder / signing.FILE
    if damage in ("short", "other key"):
        content = json.loads(path.read_text())
        if damage == "short":
            content["csrf"] = "AAAA"
        else:
            content["current"]["key"] = (
                "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA\n-----END PRIVATE KEY-----"
            )
        damage = json.dumps(content)
    path.write_text(damage)
    with pytest.raises(Corrupt, match=r"tickets\.json"):
        Tickets(folder)
    assert path.read_text() == damage


def test_csrf_tokens(tickets, clock):
    token = tickets.csrf_token("anna@pve")
    assert token.startswith("6B49D200:")
    assert tickets.verify_csrf("anna@pve", token)
    assert tickets.verify_csrf("anna@pve", token + "=")
    wrong = ["", ":", "6B49D200:", token[:-1], "6B49D201" + token[8:], token + "A", "x" * 10_000, "6B49D200:\u00e9"]
    assert not any(tickets.verify_csrf("anna@pve", text) for text in wrong)
    assert not tickets.verify_csrf("bert@pve", token)
    clock.now += 7199
    assert tickets.verify_csrf("anna@pve", token)
    clock.now += 1
    assert not tickets.verify_csrf("anna@pve", token)
    clock.now -= 7200 + 301
    assert not tickets.verify_csrf("anna@pve", token)
