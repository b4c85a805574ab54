# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stored state as permissions, and the rules of endpoints judged for requests."""

import time

import pytest

from orrery.access.rules import (
    AllOf,
    AnyOf,
    Everyone,
    Perm,
    PermModify,
    RootOnly,
    Rule,
    UseridGroup,
    UseridParam,
    World,
)
from orrery.errors import Forbidden
from orrery.model.access import PRIVILEGES
from orrery.model.identity import Identity


def grant(node, path, role, *users, **more):
    node.directory.acl.update(node.root, path, [role], users=users, **more)


def refusal(node, rule, identity, **params):
    """The text of the refusal, or None when the rule holds."""
    try:
        node.permissions.check(rule, identity, params)
    except Forbidden as error:
        return error.message
    return None


def test_root_and_the_administrator_may_everything(node):
    node.permissions.require(node.root, "/anything/at/all", ("VM.Allocate",))
    assert set(node.permissions.privileges(node.admin, "/vms/100")) == set(PRIVILEGES)
    assert refusal(node, RootOnly(), node.root) is None
    assert refusal(node, RootOnly(), node.admin) == "Permission check failed"


def test_changes_count_at_once(node, anna):
    allowed = node.permissions.allowed
    assert not allowed(anna, "/vms/100", ("VM.Audit",))
    grant(node, "/vms/100", "PVEVMUser", "anna@pve")
    assert allowed(anna, "/vms/100", ("VM.Audit", "VM.Console"))
    assert not allowed(anna, "/vms/101", ("VM.Audit",))
    grant(node, "/vms/100", "PVEVMUser", "anna@pve", delete=True)
    assert not allowed(anna, "/vms/100", ("VM.Audit",))


def test_groups_and_pools_give_permissions(node, anna):
    directory = node.directory
    directory.groups.create("staff")
    directory.users.update("anna@pve", {}, groups=["staff"])
    directory.pools.create("shop")
    directory.acl.update(node.root, "/pool/shop", ["PVEVMUser"], groups=["staff"])
    node.store.put("/guests/100", b'{"kind": "qemu", "node": "n", "conf": ""}')
    assert not node.permissions.allowed(anna, "/vms/100", ("VM.Console",))
    directory.pools.update(node.root, "shop", vms=[100])
    assert node.permissions.allowed(anna, "/vms/100", ("VM.Console",))
    directory.groups.delete("staff")
    assert not node.permissions.allowed(anna, "/vms/100", ("VM.Console",))


def test_a_custom_role_changes_and_goes(node, anna):
    node.directory.roles.create("watch", ["VM.Audit"])
    grant(node, "/vms", "watch", "anna@pve")
    assert set(node.permissions.privileges(anna, "/vms/7")) == {"VM.Audit"}
    node.directory.roles.update("watch", ["VM.Console"], append=True)
    assert set(node.permissions.privileges(anna, "/vms/7")) == {"VM.Audit", "VM.Console"}
    node.directory.roles.delete("watch")
    assert not node.permissions.privileges(anna, "/vms/7")


def test_a_token_has_what_both_have(node, anna):
    token = Identity.parse("anna@pve!t1")
    grant(node, "/vms", "PVEVMUser", "anna@pve")
    node.directory.tokens.create("anna@pve", "t1")
    assert not node.permissions.privileges(token, "/vms/100")
    node.directory.acl.update(node.root, "/vms", ["PVEVMAdmin"], tokens=["anna@pve!t1"])
    assert set(node.permissions.privileges(token, "/vms/100")) == set(node.permissions.privileges(anna, "/vms/100"))
    node.directory.acl.update(node.root, "/vms/100", ["PVEAuditor"], tokens=["anna@pve!t1"])
    assert set(node.permissions.privileges(token, "/vms/100")) == {"VM.Audit", "VM.GuestAgent.Audit"}
    node.directory.tokens.update("anna@pve", "t1", privsep=False)
    assert set(node.permissions.privileges(token, "/vms/100")) == set(node.permissions.privileges(anna, "/vms/100"))
    grant(node, "/vms", "PVEVMUser", "anna@pve", delete=True)
    assert not node.permissions.privileges(token, "/vms/100")


def test_a_token_of_root_is_not_root(node):
    node.directory.tokens.create("root@pam", "t1")
    node.directory.tokens.create("root@pam", "t2", privsep=False)
    separate, full = Identity.parse("root@pam!t1"), Identity.parse("root@pam!t2")
    assert not node.permissions.privileges(separate, "/")
    assert set(node.permissions.privileges(full, "/vms/1")) == set(PRIVILEGES)
    assert refusal(node, RootOnly(), full) is not None


def test_a_deleted_token_has_nothing(node, anna):
    token = Identity.parse("anna@pve!t1")
    grant(node, "/vms", "PVEVMUser", "anna@pve")
    node.directory.tokens.create("anna@pve", "t1", privsep=False)
    assert node.permissions.allowed(token, "/vms/1", ("VM.Audit",))
    node.directory.tokens.delete("anna@pve", "t1")
    assert not node.permissions.allowed(token, "/vms/1", ("VM.Audit",))


def test_refusals_name_path_and_privilege(node, anna):
    require = node.permissions.require
    with pytest.raises(Forbidden) as caught:
        require(anna, "/vms/100", ("VM.Audit", "VM.Console"))
    assert caught.value.message == "Permission check failed (/vms/100, VM.Audit)"
    assert caught.value.status == 403
    with pytest.raises(Forbidden) as caught:
        require(anna, "/", ("Sys.Audit", "Sys.Modify"), any=True)
    assert caught.value.message == "Permission check failed (/, Sys.Audit|Sys.Modify)"
    grant(node, "/vms/100", "PVETemplateUser", "anna@pve")
    with pytest.raises(Forbidden) as caught:
        require(anna, "/vms/100", ("VM.Audit", "VM.Console"))
    assert caught.value.message == "Permission check failed (/vms/100, VM.Console)"
    require(anna, "/vms/100", ("VM.Console", "VM.Audit"), any=True)


def test_perm_rules(node, anna):
    grant(node, "/vms/100", "PVEVMUser", "anna@pve")
    rule = Perm("/vms/{vmid}", ("VM.Audit",))
    assert refusal(node, rule, anna, vmid=100) is None
    assert refusal(node, rule, anna, vmid="101") == "Permission check failed (/vms/101, VM.Audit)"
    assert refusal(node, rule, anna) == "Permission check failed"
    assert refusal(node, rule, anna, vmid=["100", "101"]) is not None
    assert refusal(node, rule, anna, vmid="100/../101") is not None
    needs = Perm("/vms/{vmid}", ("VM.Audit",), require_param="vmid")
    assert refusal(node, needs, anna, vmid=100) is None
    assert refusal(node, needs, anna) == "Permission check failed"
    either = Perm("/vms/{vmid}", ("VM.Allocate", "VM.Audit"), any=True)
    assert refusal(node, either, anna, vmid=100) is None


def test_combined_rules(node, anna):
    grant(node, "/vms/100", "PVEVMUser", "anna@pve")
    yes, no = Perm("/vms/100", ("VM.Audit",)), Perm("/vms/100", ("VM.Allocate",))
    assert refusal(node, AllOf((yes, yes)), anna) is None
    assert refusal(node, AllOf((yes, no)), anna) == "Permission check failed (/vms/100, VM.Allocate)"
    assert refusal(node, AnyOf((no, yes)), anna) is None
    assert refusal(node, AnyOf((no, no)), anna) == "Permission check failed"
    assert refusal(node, AnyOf(()), anna) == "Permission check failed"
    assert refusal(node, AllOf((Everyone(), World())), anna) is None


def test_an_unknown_rule_lets_nobody_in(node, anna):
    with pytest.raises(TypeError):
        node.permissions.check(Rule(), anna, {})


def test_userid_param(node, anna):
    self_rule, realm_rule = UseridParam("self"), UseridParam("Realm.AllocateUser")
    assert refusal(node, self_rule, anna, userid="anna@pve") is None
    assert refusal(node, self_rule, anna, userid="bert@pve") == "Permission check failed"
    assert refusal(node, self_rule, anna) == "Permission check failed"
    assert refusal(node, self_rule, Identity.parse("anna@pve!t1"), userid="anna@pve") is not None
    assert refusal(node, realm_rule, anna, userid="x@pve") == (
        "Permission check failed (/access/realm/pve, Realm.AllocateUser)"
    )
    grant(node, "/access/realm/pve", "PVEUserAdmin", "anna@pve")
    assert refusal(node, realm_rule, anna, userid="x@pve") is None
    assert refusal(node, realm_rule, anna, userid="x@pam") is not None
    assert refusal(node, realm_rule, anna, userid="x") == "Permission check failed"


def test_userid_group_of_an_administrator_of_one_group(node, anna):
    directory = node.directory
    for group in ("mine", "theirs"):
        directory.groups.create(group)
    directory.users.create("in@pve", {}, groups=["mine"])
    directory.users.create("out@pve", {}, groups=["theirs"])
    grant(node, "/access/groups/mine", "PVEUserAdmin", "anna@pve")
    read = UseridGroup(("User.Modify", "Sys.Audit"))
    assert refusal(node, read, anna, userid="in@pve") is None
    assert refusal(node, read, anna, userid="out@pve") == (
        "Permission check failed (/access/groups, User.Modify|Sys.Audit)"
    )
    assert refusal(node, read, anna, userid="nobody@pve") is not None
    create = UseridGroup(("User.Modify",), "create")
    assert refusal(node, create, anna, userid="new@pve", groups="mine") is None
    assert refusal(node, create, anna, userid="new@pve", groups="mine,theirs") == (
        "Permission check failed (/access/groups/theirs, User.Modify)"
    )
    assert refusal(node, create, anna, userid="new@pve", groups=["mine", "theirs"]) is not None
    assert refusal(node, create, anna, userid="new@pve") is not None
    assert refusal(node, create, anna, userid="new@pve", groups="") is not None
    update = UseridGroup(("User.Modify",), "update")
    assert refusal(node, update, anna, userid="in@pve") is None
    assert refusal(node, update, anna, userid="in@pve", groups="mine") is None
    assert refusal(node, update, anna, userid="in@pve", groups="theirs") is not None
    assert refusal(node, update, anna, userid="out@pve", groups="mine") is not None
    grant(node, "/access/groups", "PVEUserAdmin", "anna@pve")
    assert refusal(node, update, anna, userid="out@pve", groups="theirs") is None
    assert refusal(node, create, anna, userid="new@pve") is None


def test_perm_modify(node, anna):
    rule = PermModify("{path}")
    assert refusal(node, rule, anna, path="/vms/100") == (
        "Permission check failed (/vms/100, Permissions.Modify|VM.Allocate)"
    )
    grant(node, "/vms/100", "PVEVMAdmin", "anna@pve")
    assert refusal(node, rule, anna, path="/vms/100") is None
    assert refusal(node, rule, anna, path="/vms/100/") is None
    assert refusal(node, rule, anna, path="/vms") is not None
    assert refusal(node, rule, anna, path="/nonsense/x") is not None
    assert refusal(node, rule, anna) is not None
    assert refusal(node, rule, node.admin, path="/access") is None


def test_effective_permissions(node, anna):
    assert node.permissions.effective(anna) == {}
    assert node.permissions.effective(anna, "/vms/100") == {"/vms/100": {}}
    grant(node, "/vms/100", "PVETemplateUser", "anna@pve", propagate=False)
    grant(node, "/storage", "PVEDatastoreUser", "anna@pve")
    assert node.permissions.effective(anna) == {
        "/storage": {"Datastore.AllocateSpace": 1, "Datastore.Audit": 1},
        "/vms/100": {"VM.Audit": 0, "VM.Clone": 0},
    }
    assert node.permissions.effective(anna, "/storage/x/") == {
        "/storage/x": {"Datastore.AllocateSpace": 1, "Datastore.Audit": 1}
    }
    everything = node.permissions.effective(node.root)
    assert set(everything["/"]) == set(PRIVILEGES)


def test_capabilities(node, anna):
    empty: dict[str, dict[str, int]] = {
        area: {} for area in ("access", "dc", "mapping", "nodes", "sdn", "storage", "vms")
    }
    assert node.permissions.capabilities(anna) == empty
    grant(node, "/vms/100", "PVETemplateUser", "anna@pve")
    assert node.permissions.capabilities(anna) == {**empty, "vms": {"VM.Audit": 1, "VM.Clone": 1}}
    full = node.permissions.capabilities(node.admin)
    assert full["vms"]["VM.Allocate"] == 1
    assert full["dc"]["Sys.Modify"] == 1
    assert full["nodes"]["Sys.PowerMgmt"] == 1
    assert "Datastore.Allocate" not in full["vms"]


def test_remembered_views_are_bounded(node, monkeypatch):
    monkeypatch.setattr("orrery.access.permissions.VIEWS", 10)
    for number in range(100):
        node.permissions.allowed(Identity.parse(f"u{number}@pve"), "/vms/100", ("VM.Audit",))
    assert len(node.permissions._views) <= 10


def test_an_account_that_expires_loses_its_privileges(node, anna):
    grant(node, "/vms", "PVEVMUser", "anna@pve")
    node.directory.users.update("anna@pve", {"expire": int(node.clock.now) + 10})
    assert node.permissions.allowed(anna, "/vms/100", ("VM.Audit",))
    node.clock.now += 10
    assert not node.permissions.allowed(anna, "/vms/100", ("VM.Audit",))
    node.directory.users.update("anna@pve", {"expire": 0, "enable": False})
    assert not node.permissions.allowed(anna, "/vms/100", ("VM.Audit",))


def test_filtering_many_guests_is_quick(node, anna):
    for pool in range(20):
        node.directory.pools.create(f"p{pool}")
    grant(node, "/vms/500", "PVEVMUser", "anna@pve")
    begun = time.perf_counter()
    seen = [vmid for vmid in range(100, 10_100) if node.permissions.allowed(anna, f"/vms/{vmid}", ("VM.Audit",))]
    assert seen == [500]
    assert time.perf_counter() - begun < 0.5
