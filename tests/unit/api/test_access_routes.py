# SPDX-License-Identifier: AGPL-3.0-or-later
"""Everything below /access and /pools over the wire, as clients of this API use it."""

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from tests.unit.api.conftest import ADMIN_PASSWORD, NODE
from tests.unit.api.wire import Wire

from orrery.api.directory import declare_directories
from orrery.api.endpoint import REGISTRY, Registry
from orrery.api.services import Services
from orrery.metrics.facts import FactsCache

MODULES = ("access", "access_users", "access_groups", "access_domains", "pools")
PASSWORD = "long enough"


@pytest.fixture(scope="module")
def registry() -> Registry:
    for name in MODULES:
        importlib.import_module(f"orrery.api.routes.{name}")
    made = Registry()
    for endpoint in REGISTRY:
        if endpoint.handler.__module__.rpartition(".")[2] in MODULES:
            made.add(endpoint)
    declare_directories(made)
    return made


@pytest.fixture
def anna(admin: Wire) -> Wire:
    """A user without any rights."""
    assert admin.post("/access/users", userid="anna@pve", password=PASSWORD).status == 200
    return admin.with_ticket("anna@pve", PASSWORD)


# --- logging in


def test_login_reply(stranger: Wire) -> None:
    data = stranger.post("/access/ticket", username="admin", realm="pve", password=ADMIN_PASSWORD).data
    assert set(data) == {"username", "ticket", "CSRFPreventionToken", "cap"}
    assert data["username"] == "admin@pve"
    assert data["ticket"].startswith("PVE:admin@pve:")
    assert data["cap"]["vms"]["VM.Allocate"] == 1
    assert {"vms", "storage", "access", "nodes", "sdn", "dc", "mapping"} <= set(data["cap"])


def test_login_without_content_type_and_as_json(stranger: Wire) -> None:
    form = f"username=admin%40pve&password={ADMIN_PASSWORD.replace(' ', '+')}".encode()
    assert stranger.send("POST", "/access/ticket", body=form, headers={"content-type": ""}).status == 200
    json = orjson.dumps({"username": "admin@pve", "password": ADMIN_PASSWORD})
    headers = {"content-type": "application/json"}
    assert stranger.send("POST", "/access/ticket", body=json, headers=headers).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"username": "admin@pve", "password": "wrong"},
        {"username": "nobody@pve", "password": "wrong"},
        {"username": "admin", "password": ADMIN_PASSWORD},
        {"username": "admin@nowhere", "password": ADMIN_PASSWORD},
        {"username": "admin@pve", "password": ""},
        {"username": "admin@pve", "password": "PVE:admin@pve:00000000::AAAA"},
    ],
)
def test_refused_logins_say_nothing(stranger: Wire, sent: dict[str, str]) -> None:
    answer = stranger.post("/access/ticket", **sent)
    assert (answer.status, answer.reason) == (401, "authentication failure")
    assert answer.json["data"] is None


def test_a_ticket_prolongs_itself(stranger: Wire) -> None:
    ticket = stranger.post("/access/ticket", username="admin@pve", password=ADMIN_PASSWORD).data["ticket"]
    assert stranger.post("/access/ticket", username="admin@pve", password=ticket).data["username"] == "admin@pve"
    assert stranger.post("/access/ticket", username="root@pam", password=ticket).status == 401


def test_cookie_login_hides_the_ticket(stranger: Wire) -> None:
    answer = stranger.post("/access/ticket", username="admin@pve", password=ADMIN_PASSWORD, cookie=1)
    assert "ticket" not in answer.data
    assert "PVE:" not in answer.body.decode()
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-OrreryAuth=PVE%3A")
    assert cookie.endswith("; Path=/; Secure; HttpOnly; SameSite=Strict")
    page = Wire(
        stranger.api, {"cookie": cookie.partition(";")[0], "csrfpreventiontoken": answer.data["CSRFPreventionToken"]}
    )
    assert page.get("/access/permissions").status == 200
    assert page.post("/access/groups", groupid="g").status == 200
    del page.headers["csrfpreventiontoken"]
    assert page.post("/access/groups", groupid="h").status == 401
    assert stranger.delete("/access/ticket").headers["set-cookie"].startswith("__Host-OrreryAuth=; Max-Age=0;")


def test_second_factors_are_refused_by_name(stranger: Wire) -> None:
    for name in ("otp", "tfa-challenge"):
        answer = stranger.post("/access/ticket", username="admin@pve", password=ADMIN_PASSWORD, **{name: "123456"})
        assert answer.status == 501
        assert name in answer.reason
    sent = {"username": "admin@pve", "password": ADMIN_PASSWORD, "otp": "", "new-format": "1"}
    assert stranger.post("/access/ticket", **sent).status == 200


def test_asking_for_privileges(stranger: Wire, anna: Wire) -> None:
    ask = {"path": "/vms/100", "privs": "VM.Audit VM.Console"}
    answer = stranger.post("/access/ticket", username="admin@pve", password=ADMIN_PASSWORD, **ask)
    assert answer.data["username"] == "admin@pve"
    assert "ticket" not in answer.data
    assert stranger.post("/access/ticket", username="anna@pve", password=PASSWORD, **ask).status == 401
    lonely = stranger.post("/access/ticket", username="a@pve", password="x", privs="VM.Audit")
    assert lonely.errors == {"path": "missing property - 'privs' requires this property"}


def test_console_tickets(stranger: Wire, services: Services) -> None:
    identity = services.login.by_ticket(
        stranger.post("/access/ticket", username="admin@pve", password=ADMIN_PASSWORD).data["ticket"]
    )
    ticket = services.login.console_ticket(identity, "/vms/100", 5900)
    sent = {"authid": "admin@pve", "vncticket": ticket, "path": "/vms/100", "privs": "VM.Console", "port": 5900}
    assert stranger.post("/access/vncticket", **sent).status == 200
    for change in ({"port": 5901}, {"path": "/vms/101"}, {"authid": "x@pve"}, {"vncticket": "PVEVNC:0"}):
        assert stranger.post("/access/vncticket", **{**sent, **change}).status == 401


def test_realms_are_shown_to_strangers(stranger: Wire) -> None:
    realms = {realm["realm"]: realm for realm in stranger.get("/access/domains").data}
    assert set(realms) == {"pam", "pve"}
    assert realms["pve"]["default"] == 1


# --- users


def test_users(admin: Wire, anna: Wire) -> None:
    assert admin.post("/access/groups", groupid="staff", comment="All").status == 200
    sent = {"comment": "Ann", "email": "ann@example.org", "expire": 0, "enable": 1, "groups": "staff"}
    assert admin.put("/access/users/anna@pve", **sent).data is None
    user = admin.get("/access/users/anna%40pve").data
    assert user["comment"] == "Ann"
    assert user["groups"] == ["staff"]
    assert user["enable"] == 1
    listed = {row["userid"]: row for row in admin.get("/access/users", full=1).data}
    assert listed["anna@pve"]["groups"] == "staff"
    assert set(listed) == {"root@pam", "admin@pve", "anna@pve"}
    assert [row["userid"] for row in anna.get("/access/users").data] == ["anna@pve"]
    assert admin.put("/access/users/anna@pve", enable=0).status == 200
    assert anna.get("/access/users").status == 401
    assert admin.delete("/access/users/anna@pve").status == 200
    answer = admin.get("/access/users/anna@pve")
    assert (answer.status, answer.reason) == (500, "no such user ('anna@pve')")


def test_user_faults(admin: Wire, anna: Wire) -> None:
    assert "already exists" in admin.post("/access/users", userid="anna@pve").reason
    root = admin.local()
    assert set(root.post("/access/users", userid="no realm", email="x", groups="a b/c").errors) == {
        "userid",
        "email",
        "groups",
    }
    assert admin.put("/access/users/anna@pve", append=1).errors == {
        "groups": "missing property - 'append' requires this property"
    }
    assert admin.post("/access/users", userid="b@nowhere").status == 500
    assert anna.post("/access/users", userid="b@pve").status == 403
    assert anna.delete("/access/users/admin@pve").status == 403


def test_passwords(admin: Wire, anna: Wire, stranger: Wire) -> None:
    confirmed = {"confirmation-password": PASSWORD}
    assert anna.put("/access/password", userid="anna@pve", password="the new one", **confirmed).status == 200
    assert stranger.post("/access/ticket", username="anna@pve", password="the new one").status == 200
    assert stranger.post("/access/ticket", username="anna@pve", password=PASSWORD).status == 401
    assert "confirmation-password" in anna.put("/access/password", userid="anna@pve", password="another one").errors
    assert anna.put("/access/password", userid="admin@pve", password="another one").status == 403
    assert set(admin.put("/access/password", userid="anna@pve", password="short").errors) == {"password"}


def test_tokens(admin: Wire, anna: Wire) -> None:
    path = "/access/users/anna@pve/token/robot"
    made = anna.post(path, comment="For tests", privsep=0).data
    assert made["full-tokenid"] == "anna@pve!robot"
    assert made["info"] == {"comment": "For tests", "expire": 0, "privsep": 0}
    robot = anna.with_token("anna@pve!robot", made["value"])
    assert robot.get("/access/permissions").status == 200
    assert admin.post(path).errors == {"tokenid": "Token already exists."}
    assert anna.get(path).data["privsep"] == 0
    assert anna.put(path, comment="New", expire=1).data["comment"] == "New"
    assert robot.get("/access/permissions").status == 401
    assert anna.put(path, delete="expire,comment").data == {"privsep": 0, "expire": 0}
    assert [row["tokenid"] for row in anna.get("/access/users/anna@pve/token").data] == ["robot"]
    assert robot.put("/access/password", userid="anna@pve", password="x" * 9).status == 403
    assert anna.delete(path).status == 200
    assert anna.get(path).reason == "no such token 'robot' for user 'anna@pve'"
    assert robot.get("/access/permissions").status == 401


def test_root_is_nobody_elses(admin: Wire, stranger: Wire) -> None:
    """Who administers users may not lock root out, nor act as root@pam."""
    token = "/access/users/root@pam/token/robot"
    assert admin.post(token, privsep=0).status == 403
    assert admin.put("/access/users/root@pam", enable=0).status == 403
    root = stranger.local()
    assert root.post(token, privsep=0).status == 200
    assert admin.put(token, privsep=0).status == 403
    assert admin.delete(token).status == 403
    assert root.delete(token).status == 200


def test_local_root_stays_root_when_its_account_is_disabled(admin: Wire, stranger: Wire) -> None:
    root = stranger.local()
    assert root.put("/access/users/root@pam", enable=0).status == 200
    granted = root.put("/access/acl", path="/", roles="Administrator", users="admin@pve")
    assert granted.status == 200, granted.json
    assert root.put("/access/users/root@pam", enable=1).status == 200


# --- groups, roles, list


def test_roles(admin: Wire, anna: Wire) -> None:
    roles = {role["roleid"]: role for role in anna.get("/access/roles").data}
    assert len(roles) == 17
    assert roles["PVEAuditor"]["special"] == 1
    assert admin.post("/access/roles", roleid="Looker", privs="VM.Audit,Sys.Audit").status == 200
    assert admin.get("/access/roles/Looker").data == {"VM.Audit": 1, "Sys.Audit": 1}
    assert admin.put("/access/roles/Looker", privs="VM.Console", append=1).status == 200
    assert set(admin.get("/access/roles/Looker").data) == {"VM.Audit", "Sys.Audit", "VM.Console"}
    assert set(admin.post("/access/roles", roleid="PVEx").errors) == {"roleid"}
    assert anna.post("/access/roles", roleid="Mine").reason == "Permission check failed (/access, Sys.Modify)"
    assert admin.delete("/access/roles/Looker").status == 200
    assert admin.get("/access/roles/Looker").reason == "role 'Looker' does not exist"


def test_the_access_control_list(admin: Wire, anna: Wire) -> None:
    assert anna.get("/access/permissions").data == {}
    grant = {"path": "/vms/100", "roles": "PVEVMUser", "users": "anna@pve", "propagate": 0}
    assert admin.put("/access/acl", **grant).status == 200
    entries = [entry for entry in admin.get("/access/acl").data if entry["ugid"] == "anna@pve"]
    assert entries == [{"path": "/vms/100", "type": "user", "ugid": "anna@pve", "roleid": "PVEVMUser", "propagate": 0}]
    mine = anna.get("/access/permissions", path="/vms/100").data
    assert mine["/vms/100"]["VM.PowerMgmt"] == 0
    assert admin.get("/access/permissions", userid="anna@pve").data["/vms/100"]["VM.Audit"] == 0
    assert anna.get("/access/permissions", userid="admin@pve").status == 403
    assert anna.put("/access/acl", **grant).status == 403
    assert set(admin.local().put("/access/acl", path="/nonsense", roles="PVEAdmin", users="anna@pve").errors) == {
        "path"
    }
    assert admin.put("/access/acl", **{**grant, "delete": 1}).status == 200
    assert anna.get("/access/permissions").data == {}


def test_groups_carry_permissions(admin: Wire, anna: Wire) -> None:
    admin.post("/access/groups", groupid="staff")
    admin.put("/access/users/anna@pve", groups="staff")
    admin.put("/access/acl", path="/", roles="PVEAuditor", groups="staff")
    assert "Sys.Audit" in anna.get("/access/permissions", path="/nodes/x").data["/nodes/x"]
    assert admin.get("/access/groups/staff").data["members"] == ["anna@pve"]
    assert admin.delete("/access/groups/staff").status == 200
    assert anna.get("/access/permissions").data == {}
    assert admin.get("/access/groups/staff").reason == "group 'staff' does not exist"


# --- realms


def test_realms(admin: Wire) -> None:
    realm = admin.get("/access/domains/pve").data
    assert realm["type"] == "pve"
    assert admin.put("/access/domains/pve", comment="Ours", digest=realm["digest"]).status == 200
    assert admin.put("/access/domains/pve", comment="Again", digest=realm["digest"]).reason.startswith(
        "detected modified configuration"
    )
    assert set(admin.put("/access/domains/pve", base_dn="x").errors) == {"base_dn"}
    answer = admin.post("/access/domains", realm="corp", type="ldap", server1="ldap.example.org", base_dn="dc=x")
    assert answer.status == 501
    assert admin.get("/access/domains/corp").reason == "domain 'corp' does not exist"
    assert admin.delete("/access/domains/pam").status == 500


# --- pools


@pytest.fixture
def services(services: Services) -> Services:
    """Nothing runs, and what is known of guests comes from the store."""
    resting: Any = SimpleNamespace(facts=FactsCache(services.store), sample=lambda vmid: None)
    return replace(services, collector=resting)


def guest(services: Services, vmid: int) -> None:
    services.store.put(f"/guests/{vmid}", orjson.dumps({"kind": "qemu", "node": NODE, "conf": "name: web\n"}))


def test_pools(admin: Wire, anna: Wire, services: Services) -> None:
    guest(services, 100)
    services.store.put("/storage/local", orjson.dumps({"type": "dir"}))
    assert admin.post("/pools", poolid="dev", comment="Development").status == 200
    assert admin.post("/pools", poolid="dev/a").status == 200
    assert admin.put("/pools", poolid="dev", vms="100", storage="local").status == 200
    machine, storage = admin.get("/pools/dev").data["members"]
    expected = {"id": "qemu/100", "type": "qemu", "vmid": 100, "node": NODE, "name": "web", "status": "stopped"}
    assert machine.items() >= expected.items()
    assert storage == {"id": f"storage/{NODE}/local", "type": "storage", "storage": "local", "node": NODE}
    assert [row["poolid"] for row in admin.get("/pools").data] == ["dev", "dev/a"]
    (one,) = admin.get("/pools", poolid="dev", type="qemu").data
    assert [member["id"] for member in one["members"]] == ["qemu/100"]
    assert anna.get("/pools").data == []
    assert anna.get("/pools", poolid="dev").reason == "Permission check failed (/pool/dev, Pool.Audit)"
    assert admin.delete("/pools", poolid="dev").status == 500
    assert admin.put("/pools/dev", vms="100", storage="local", delete=1).status == 200
    assert admin.delete("/pools", poolid="dev/a").status == 200
    assert admin.delete("/pools/dev").status == 200
    assert admin.get("/pools/dev").reason == "pool 'dev' does not exist"


# --- the tree


def test_listings(anna: Wire, stranger: Wire) -> None:
    assert {entry["subdir"] for entry in anna.get("/access").data} == {
        *("acl", "domains", "groups", "password", "permissions", "roles", "tfa", "ticket", "users", "vncticket")
    }
    assert {"subdir": "access"} in anna.get("/").data
    assert stranger.get("/access").status == 401


def test_second_factors_are_truthfully_absent(admin: Wire, anna: Wire) -> None:
    assert anna.get("/access/tfa").data == []
    assert anna.get("/access/tfa/anna@pve").data == []
    assert anna.get("/access/users/anna@pve/tfa", multiple=1).data == {"types": []}
    assert admin.put("/access/users/anna@pve/unlock-tfa").data == 0
    assert anna.get("/access/tfa/admin@pve").status == 403


def test_no_secret_reaches_the_audit_log(admin: Wire, anna: Wire, services: Services) -> None:
    value: Any = anna.post("/access/users/anna@pve/token/robot").data["value"]
    text = services.paths.audit_log.read_text()
    assert PASSWORD not in text
    assert value not in text
    assert "anna@pve" in text
