# SPDX-License-Identifier: AGPL-3.0-or-later
"""Credentials, good and bad, of users in every state."""

import threading
import time

import pytest

from orrery.access.login import REFUSAL_SECONDS, remaining_delay
from orrery.access.realms import local
from orrery.errors import Forbidden, Unauthenticated
from orrery.model.identity import Identity

PASSWORD = "annas password"
HERE = "192.0.2.1"


def refused(node, username, password, origin=HERE, **more):
    with pytest.raises(Unauthenticated) as caught:
        node.login.log_in(username, password, origin, **more)
    return caught.value.message == "authentication failure"


def test_a_password_gives_a_ticket_and_a_token(node, anna):
    session = node.login.log_in("anna@pve", PASSWORD, HERE)
    assert session.ticket.startswith("PVE:anna@pve:")
    assert node.login.by_ticket(session.ticket) == anna
    assert node.login.csrf_matches(anna, session.csrf)
    assert not node.login.csrf_matches(node.admin, session.csrf)
    assert not node.login.csrf_matches(anna, "")
    assert node.login.log_in("anna", PASSWORD, HERE, realm="pve").user == anna.user


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("anna@pve", "wrong"),
        ("anna@pve", ""),
        ("anna@pve", PASSWORD + "\0"),
        ("anna@pve", "x" * 100_000),
        ("anna@pve", "\ud800"),
        ("anna@pve", "PVE:anna@pve:00000000::AAAA"),
        ("anna@pam", PASSWORD),
        ("anna@other", PASSWORD),
        ("anna@none", PASSWORD),
        ("bert@pve", PASSWORD),
        ("bert@pve", "nobody has this password"),
        ("anna", PASSWORD),
        ("", ""),
        ("@", PASSWORD),
        ("an na@pve", PASSWORD),
        ("../anna@pve", PASSWORD),
        ("x" * 1000 + "@pve", PASSWORD),
        ("ANNA@pve", PASSWORD),
        ("anna@PVE", PASSWORD),
    ],
)
def test_bad_credentials_all_look_the_same(node, anna, username, password):
    assert refused(node, username, password)


@pytest.mark.parametrize("settings", [{"enable": False}, {"expire": 1_799_999_999}, {"expire": 1_800_000_000}])
def test_a_disabled_or_expired_user_is_out_everywhere(node, anna, settings):
    session = node.login.log_in("anna@pve", PASSWORD, HERE)
    token = node.directory.tokens.create("anna@pve", "t1")
    bearer = f"anna@pve!t1={token['value']}"
    node.directory.users.update("anna@pve", settings)
    assert refused(node, "anna@pve", PASSWORD)
    assert refused(node, "anna@pve", session.ticket)
    for attempt in (lambda: node.login.by_ticket(session.ticket), lambda: node.login.by_token(bearer)):
        with pytest.raises(Unauthenticated, match="Authentication failed!"):
            attempt()
    node.directory.users.update("anna@pve", {"enable": True, "expire": 0})
    assert node.login.by_ticket(session.ticket) == anna
    assert node.login.by_token(bearer) == Identity(anna.user, "t1")


def test_a_deleted_user_is_out_and_a_namesake_inherits_nothing(node, anna):
    session = node.login.log_in("anna@pve", PASSWORD, HERE)
    token = node.directory.tokens.create("anna@pve", "t1")
    node.directory.users.delete("anna@pve")
    with pytest.raises(Unauthenticated):
        node.login.by_ticket(session.ticket)
    node.local.set_password(anna.user, PASSWORD)
    node.directory.users.create("anna@pve", {})
    assert refused(node, "anna@pve", PASSWORD)
    with pytest.raises(Unauthenticated):
        node.login.by_token(f"anna@pve!t1={token['value']}")


def test_the_host_s_accounts_need_to_be_known_here(node):
    assert node.login.log_in("root@pam", "toor", HERE).user.name == "root"
    assert refused(node, "carl@pam", "carls password")
    assert node.pam.asked == ["root"]
    node.directory.users.create("carl@pam", {})
    assert node.login.log_in("carl@pam", "carls password", HERE).user.name == "carl"


def test_a_ticket_renews_itself(node, anna):
    first = node.login.log_in("anna@pve", PASSWORD, HERE)
    node.clock.now += 7000
    second = node.login.log_in("anna@pve", first.ticket, HERE)
    node.clock.now += 7000
    assert node.login.by_ticket(second.ticket) == anna
    assert refused(node, "anna@pve", first.ticket)


def test_a_ticket_renews_nobody_else_but_root_s_does(node, anna):
    session = node.login.log_in("anna@pve", PASSWORD, HERE)
    assert refused(node, "admin@pve", session.ticket)
    assert refused(node, "root@pam", session.ticket)
    root = node.login.log_in("root@pam", "toor", HERE)
    assert node.login.log_in("anna@pve", root.ticket, HERE).user == anna.user
    assert refused(node, "nobody@pve", root.ticket)
    admin = node.login.session(node.admin.user)
    assert refused(node, "anna@pve", admin.ticket)


def test_tickets_of_other_kinds_are_no_login(node, anna):
    for ticket in (
        node.tickets.issue("PVE", "anna@pve", extra="anna@pve"),
        node.tickets.issue("PVE", "!tfa!{}", extra="anna@pve"),
        node.tickets.issue("PVEVNC", "anna@pve"),
        node.tickets.issue("PVE", "no user id"),
        "",
        "garbage",
    ):
        with pytest.raises(Unauthenticated, match="Authentication failed!"):
            node.login.by_ticket(ticket)


def test_api_tokens(node, anna):
    made = node.directory.tokens.create("anna@pve", "t1")
    identity = node.login.by_token(f"anna@pve!t1={made['value']}")
    assert str(identity) == "anna@pve!t1"
    assert identity.is_token
    node.directory.users.create("bert@pve", {})
    node.directory.tokens.create("bert@pve", "t1")
    node.directory.tokens.create("anna@pve", "t2")
    wrong = [
        "",
        "=",
        "anna@pve!t1",
        "anna@pve!t1=",
        f"anna@pve!t1={made['value'].upper()}x",
        f"anna@pve!t2={made['value']}",
        f"bert@pve!t1={made['value']}",
        f"anna@pve!t3={made['value']}",
        f"root@pam!t1={made['value']}",
        f"anna@pve={made['value']}",
        f"anna@pve!t1/../t2={made['value']}",
        f"anna@pve!t1={made['value']}=",
        "anna@pve!t1=\udcff",
    ]
    for text in wrong:
        with pytest.raises(Unauthenticated, match="Authentication failed!"):
            node.login.by_token(text)


def test_an_api_token_expires(node, anna):
    made = node.directory.tokens.create("anna@pve", "t1", expire=int(node.clock.now) + 10)
    bearer = f"anna@pve!t1={made['value']}"
    node.clock.now += 9
    node.login.by_token(bearer)
    node.clock.now += 1
    with pytest.raises(Unauthenticated):
        node.login.by_token(bearer)
    node.directory.tokens.update("anna@pve", "t1", expire=0)
    node.login.by_token(bearer)


def test_guessing_is_limited_but_not_for_who_is_at_home(node, anna):
    node.login.log_in("anna@pve", PASSWORD, HERE)
    for number in range(20):
        assert refused(node, f"u{number}@pve", "guess")
    assert refused(node, "admin@pve", "correct horse")
    assert node.login.log_in("anna@pve", PASSWORD, HERE)
    assert node.login.log_in("admin@pve", "correct horse", "192.0.2.99")
    node.monotonic.now += 15
    assert node.login.log_in("admin@pve", "correct horse", HERE)


def test_a_limited_guess_costs_no_hash(node, anna, monkeypatch):
    for _ in range(20):
        refused(node, "anna@pve", "guess")
    monkeypatch.setattr(node.local, "authenticate", lambda *_: pytest.fail("the password was looked at"))
    assert refused(node, "anna@pve", PASSWORD)


def test_unknown_users_cost_as_much_as_known_ones(node, anna, monkeypatch):
    hashed = []
    verify = type(node.local._hasher).verify

    def counted(self, *words):
        hashed.append(words[0])
        return verify(self, *words)

    monkeypatch.setattr(type(node.local._hasher), "verify", counted)
    node.directory.users.create("off@pve", {"enable": False}, password=PASSWORD)
    for username in ("anna@pve", "bert@pve", "off@pve", "dora@pam", "x@nowhere"):
        refused(node, username, "wrong")
    assert len(hashed) == 5


def test_two_hashes_run_at_most(node, anna, monkeypatch):
    running, most = [], []

    def slow(self, known, password):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return False

    monkeypatch.setattr(type(node.local._hasher), "verify", slow)
    threads = [threading.Thread(target=node.local.authenticate, args=(anna.user, "x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2
    assert local._slots._value == 2


def test_verification_for_other_programs(node, anna):
    grant(node, "/vms/100", "PVEVMUser", "anna@pve")
    assert node.login.verify("anna@pve", PASSWORD, "/vms/100", ["VM.Console"], HERE) == anna.user
    with pytest.raises(Forbidden, match=r"/vms/100, VM\.Allocate"):
        node.login.verify("anna@pve", PASSWORD, "/vms/100", ["VM.Console", "VM.Allocate"], HERE)
    with pytest.raises(Unauthenticated):
        node.login.verify("anna@pve", "wrong", "/vms/100", ["VM.Console"], HERE)
    ticket = node.login.console_ticket(anna, "/vms/100")
    assert node.login.verify("anna@pve", ticket, "/vms/100", ["VM.Console"], HERE) == anna.user
    with pytest.raises(Unauthenticated):
        node.login.verify("anna@pve", ticket, "/vms/101", ["VM.Console"], HERE)


def test_console_tickets(node, anna):
    grant(node, "/vms", "PVEVMUser", "anna@pve")
    check = node.login.check_console_ticket
    ticket = node.login.console_ticket(anna, "/vms/100", 5900)
    check("anna@pve", ticket, "/vms/100", ["VM.Console"], 5900)
    for authid, path, port in [
        ("anna@pve", "/vms/101", 5900),
        ("anna@pve", "/vms/100", 5901),
        ("anna@pve", "/vms/100", None),
        ("admin@pve", "/vms/100", 5900),
        ("anna", "/vms/100", 5900),
    ]:
        with pytest.raises(Unauthenticated):
            check(authid, ticket, path, ["VM.Console"], port)
    with pytest.raises(Forbidden):
        check("anna@pve", ticket, "/vms/100", ["VM.Migrate"], 5900)
    node.clock.now += 40
    with pytest.raises(Unauthenticated):
        check("anna@pve", ticket, "/vms/100", ["VM.Console"], 5900)


def test_local_root_and_nobody(node):
    assert node.login.local_root().is_root
    nobody = node.login.nobody()
    assert not nobody.is_root
    assert node.permissions.effective(nobody) == {}


def test_a_refusal_waits_for_the_rest_of_three_seconds():
    assert remaining_delay(100.0, 100.5) == REFUSAL_SECONDS - 0.5
    assert remaining_delay(100.0, 104.0) == 0


def grant(node, path, role, user, **more):
    node.directory.acl.update(node.root, path, [role], users=[user], **more)
