# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be changed under /access and /pools, and everything that must not be."""

import threading

import orjson
import pytest

from orrery.access.bootstrap import initialize
from orrery.access.directory import built_in_realms
from orrery.access.pools import forget_guest, forget_storage, place_guest
from orrery.access.realms.local import shadow_key
from orrery.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Failure,
    Forbidden,
    NotFound,
    NotSupported,
    ParameterError,
)
from orrery.model.identity import Identity, UserId
from orrery.store.documents import atomically, read_document
from orrery.store.memory import MemoryStore

HERE = "192.0.2.1"


def keys(node, prefix=""):
    return [entry.key for entry in node.store.range(prefix)]


def refused(kind, match, function, *words, **more):
    """The error that a refused change raises; the change must have left nothing behind."""
    with pytest.raises(kind, match=match) as caught:
        function(*words, **more)
    return caught.value


# --- the beginning


def test_a_new_node_knows_root_and_an_administrator(node):
    users = node.directory.users.list(node.root)
    assert users == [
        {"userid": "admin@pve", "enable": 1, "expire": 0, "realm-type": "pve"},
        {"userid": "root@pam", "enable": 1, "expire": 0, "realm-type": "pam"},
    ]
    assert node.directory.acl.list(node.root) == [
        {"path": "/", "type": "user", "ugid": "admin@pve", "roleid": "Administrator", "propagate": 1}
    ]
    assert node.login.log_in("admin@pve", "correct horse", HERE)


def test_initialization_can_be_repeated_but_keeps_what_was_made(node):
    node.directory.users.update("admin@pve", {"comment": "me"})
    initialize(node.store, "another password", realm=node.local)
    assert node.directory.users.read("admin@pve")["comment"] == "me"
    assert node.login.log_in("admin@pve", "another password", HERE)
    with pytest.raises(Failure):
        initialize(node.store, "", realm=node.local)


def test_every_node_has_two_realms():
    assert sorted(built_in_realms(MemoryStore())) == ["pam", "pve"]


# --- users


def test_a_user_s_life(node):
    users = node.directory.users
    node.directory.groups.create("a")
    node.directory.groups.create("b")
    users.create("anna@pve", {"comment": "x", "email": "a@example.org", "expire": 5, "enable": True}, groups=["a"])
    node.directory.tokens.create("anna@pve", "t1", comment="for backups")
    info = {"privsep": 1, "expire": 0, "comment": "for backups"}
    assert users.read("anna@pve") == {
        "enable": 1, "expire": 5, "comment": "x", "email": "a@example.org", "groups": ["a"], "tokens": {"t1": info}
    }  # fmt: skip
    (listed,) = [user for user in users.list(node.root, full=True) if user["userid"] == "anna@pve"]
    assert listed["groups"] == "a"
    assert listed["tokens"] == [{"tokenid": "t1", **info}]
    users.update("anna@pve", {"comment": "", "enable": False}, groups=["b"], append=True)
    assert users.read("anna@pve")["groups"] == ["a", "b"]
    assert "comment" not in users.read("anna@pve")
    assert [user["userid"] for user in users.list(node.root, enabled=False)] == ["anna@pve"]
    users.update("anna@pve", {}, groups=["b"])
    assert node.directory.groups.read("a")["members"] == []
    users.update("anna@pve", {}, groups=[])
    assert users.read("anna@pve")["groups"] == []


def test_deleting_a_user_leaves_no_trace(node, anna):
    before = keys(node)
    node.directory.groups.create("g")
    node.directory.users.create("bert@pve", {}, groups=["g"], password="berts password")
    node.directory.tokens.create("bert@pve", "t1")
    node.directory.acl.update(node.root, "/vms", ["PVEVMUser"], users=["bert@pve"], tokens=["bert@pve!t1"])
    node.directory.users.delete("bert@pve")
    assert "bert" not in str([entry.value for entry in node.store.range("")])
    node.directory.groups.delete("g")
    assert keys(node) == before


def test_users_that_cannot_be(node, anna):
    users = node.directory.users
    before = node.store.revision()
    refused(AlreadyExists, r"create user failed: user 'anna@pve' already exists", users.create, "anna@pve", {})
    refused(NotFound, "domain 'ldap' does not exist", users.create, "bert@ldap", {})
    refused(NotFound, "no such group 'g'", users.create, "bert@pve", {}, groups=["g"])
    refused(NotFound, r"no such user \('bert@pve'\)", users.update, "bert@pve", {})
    refused(NotFound, r"no such user \('bert@pve'\)", users.read, "bert@pve")
    refused(NotFound, r"no such user \('bert@pve'\)", users.delete, "bert@pve")
    refused(Failure, "root@pam", users.delete, "root@pam")
    refused(ParameterError, None, users.create, "bert@pam", {}, password="long enough")
    refused(ParameterError, None, users.create, "../x@pve", {})
    refused(ParameterError, None, users.create, "bert@pve", {}, groups=["../users/x"])
    refused(NotFound, "no such group", users.update, "anna@pve", {"comment": "x"}, groups=["g"])
    assert node.store.revision() == before


def test_who_sees_whom(node, anna):
    users = node.directory.users
    node.directory.groups.create("mine")
    users.create("in@pve", {}, groups=["mine"])
    assert [user["userid"] for user in users.list(anna)] == ["anna@pve"]
    node.directory.acl.update(node.root, "/access/groups/mine", ["PVEUserAdmin"], users=["anna@pve"])
    assert [user["userid"] for user in users.list(anna)] == ["anna@pve", "in@pve"]
    assert [group["groupid"] for group in node.directory.groups.list(anna)] == ["mine"]
    assert len(users.list(node.admin)) == 4


# --- groups, roles


def test_a_group_s_life(node, anna):
    groups = node.directory.groups
    groups.create("g", "words")
    node.directory.users.update("anna@pve", {}, groups=["g"])
    assert groups.read("g") == {"comment": "words", "members": ["anna@pve"]}
    assert groups.list(node.admin) == [{"groupid": "g", "comment": "words", "users": "anna@pve"}]
    groups.update("g", "")
    assert groups.read("g") == {"members": ["anna@pve"]}
    node.directory.acl.update(node.root, "/", ["PVEAdmin"], groups=["g"])
    groups.delete("g")
    groups.create("g")
    assert groups.read("g") == {"members": []}
    assert [entry["type"] for entry in node.directory.acl.list(node.root)] == ["user"]


def test_groups_that_cannot_be(node):
    groups = node.directory.groups
    groups.create("g")
    refused(AlreadyExists, "group 'g' already exists", groups.create, "g")
    refused(NotFound, "group 'x' does not exist", groups.read, "x")
    refused(NotFound, "group 'x' does not exist", groups.update, "x", "c")
    refused(NotFound, "group 'x' does not exist", groups.delete, "x")
    for name in ("", "a/b", "a b", "..\n", "x" * 200, "\u00e9"):
        refused(ParameterError, None, groups.create, name)


def test_roles(node, anna):
    roles = node.directory.roles
    assert len(roles.list()) == 17
    assert all(role["special"] == 1 for role in roles.list())
    roles.create("ops", ["VM.Audit", "VM.Console"])
    assert {"roleid": "ops", "privs": "VM.Audit,VM.Console", "special": 0} in roles.list()
    assert roles.read("ops") == {"VM.Audit": 1, "VM.Console": 1}
    roles.update("ops", ["VM.Clone"])
    assert roles.read("ops") == {"VM.Clone": 1}
    roles.update("ops")
    assert roles.read("ops") == {"VM.Clone": 1}
    node.directory.acl.update(node.root, "/vms", ["ops"], users=["anna@pve"])
    roles.delete("ops")
    assert len(node.directory.acl.list(node.root)) == 1


def test_roles_that_cannot_be(node):
    roles = node.directory.roles
    roles.create("ops")
    before = node.store.revision()
    for name in ("PVEmine", "pveX", "Pve"):
        assert "roleid" in refused(ParameterError, None, roles.create, name).errors
    refused(AlreadyExists, "role 'ops' already exists", roles.create, "ops")
    refused(AlreadyExists, "role 'NoAccess' already exists", roles.create, "NoAccess")
    refused(Failure, r"invalid privilege 'VM\.Fly'", roles.create, "x", ["VM.Audit", "VM.Fly"])
    refused(Failure, "invalid privilege", roles.update, "ops", ["vm.audit"])
    refused(NotFound, "role 'x' does not exist", roles.read, "x")
    refused(NotFound, "role 'x' does not exist", roles.update, "x", [])
    refused(NotFound, "role 'x' does not exist", roles.delete, "x")
    for name in ("Administrator", "PVEAdmin", "NoAccess"):
        refused(Failure, f"auto-generated role '{name}' cannot be modified", roles.update, name, [])
        refused(Failure, f"auto-generated role '{name}' cannot be deleted", roles.delete, name)
    assert node.store.revision() == before


# --- the access control list


def test_entries_are_replaced_not_doubled(node, anna):
    acl = node.directory.acl
    for propagate in (True, False, False):
        acl.update(node.root, "/vms//100/", ["PVEVMUser"], users=["anna@pve"], propagate=propagate)
    entry = {"path": "/vms/100", "type": "user", "ugid": "anna@pve", "roleid": "PVEVMUser", "propagate": 0}
    assert acl.list(node.root)[1:] == [entry]
    acl.update(node.root, "/vms/100", ["PVEVMUser"], users=["anna@pve"], delete=True)
    acl.update(node.root, "/vms/100", ["PVEVMUser"], users=["gone@pve"], groups=["gone"], delete=True)
    assert len(acl.list(node.root)) == 1


def test_what_the_list_refuses(node, anna):
    update = node.directory.acl.update
    before = node.store.revision()
    assert (
        "path" in refused(ParameterError, None, update, node.root, "/nonsense", ["PVEAdmin"], users=["anna@pve"]).errors
    )
    refused(ParameterError, None, update, node.root, "vms", ["PVEAdmin"], users=["anna@pve"])
    refused(ParameterError, None, update, node.root, "/vms", ["PVEAdmin"])
    refused(NotFound, "role 'x' does not exist", update, node.root, "/vms", ["x"], users=["anna@pve"])
    refused(NotFound, "no such user", update, node.root, "/vms", ["PVEAdmin"], users=["anna@pve", "bert@pve"])
    refused(NotFound, "group 'g' does not exist", update, node.root, "/vms", ["PVEAdmin"], groups=["g"])
    refused(NotFound, "no such token 't1'", update, node.root, "/vms", ["PVEAdmin"], tokens=["anna@pve!t1"])
    refused(ParameterError, None, update, node.root, "/vms", ["PVEAdmin"], tokens=["anna@pve"])
    refused(ParameterError, None, update, node.root, "/vms", ["PVEAdmin"], users=["anna"])
    assert node.store.revision() == before


def test_owners_hand_out_no_more_than_they_have(node, anna):
    acl = node.directory.acl
    node.directory.users.create("bert@pve", {})
    acl.update(node.root, "/vms/100", ["PVEVMAdmin"], users=["anna@pve"], propagate=False)
    acl.update(anna, "/vms/100", ["PVEVMUser"], users=["bert@pve"], propagate=False)
    before = node.store.revision()
    for role in ("PVEAdmin", "Administrator", "NoAccess", "PVEDatastoreUser"):
        refused(ParameterError, None, acl.update, anna, "/vms/100", [role], users=["bert@pve"], propagate=False)
    error = refused(ParameterError, None, acl.update, anna, "/vms/100", ["PVEVMUser"], users=["bert@pve"])
    assert "propagation" in error.errors["roles"]
    refused(ParameterError, None, acl.update, anna, "/vms/100", ["Administrator"], users=["bert@pve"], delete=True)
    assert node.store.revision() == before
    acl.update(anna, "/vms/100", ["PVEVMUser"], users=["bert@pve"], delete=True)
    assert [entry["path"] for entry in acl.list(anna)] == ["/vms/100"]


# --- tokens


def test_a_token_s_value_is_shown_once_and_not_kept(node, anna):
    tokens = node.directory.tokens
    made = tokens.create("anna@pve", "t1", comment="c", expire=7, privsep=False)
    assert made["full-tokenid"] == "anna@pve!t1"
    assert made["info"] == {"privsep": 0, "expire": 7, "comment": "c"}
    assert len(made["value"]) == 36
    assert made["value"].encode() not in b"".join(entry.value for entry in node.store.range(""))
    assert tokens.read("anna@pve", "t1") == made["info"]
    assert tokens.list("anna@pve") == [{"tokenid": "t1", **made["info"]}]
    assert tokens.update("anna@pve", "t1", delete=["comment"], privsep=True) == {"privsep": 1, "expire": 7}
    assert tokens.update("anna@pve", "t1", delete=["expire"]) == {"privsep": 1, "expire": 0}
    tokens.delete("anna@pve", "t1")
    assert tokens.list("anna@pve") == []
    assert keys(node, "/secrets/tokens") == []


def test_tokens_that_cannot_be(node, anna):
    tokens = node.directory.tokens
    tokens.create("anna@pve", "t1")
    error = refused(ParameterError, None, tokens.create, "anna@pve", "t1")
    assert (error.status, error.errors) == (400, {"tokenid": "Token already exists."})
    missing = r"no such token 't2' for user 'anna@pve'"
    for function in (tokens.read, tokens.update, tokens.delete):
        refused(NotFound, missing, function, "anna@pve", "t2")
    refused(NotFound, "no such user", tokens.create, "bert@pve", "t1")
    refused(NotFound, "no such user", tokens.list, "bert@pve")
    for name in ("", "a/b", "1x", "a b", "x" * 200):
        refused(ParameterError, None, tokens.create, "anna@pve", name)
    refused(ParameterError, None, tokens.update, "anna@pve", "t1", delete=["privsep"])
    refused(ParameterError, None, tokens.update, "anna@pve", "t1", delete=["comment"], comment="x")


def test_a_token_made_while_its_user_is_deleted_does_not_survive(node):
    for number in range(10):
        node.directory.users.create(f"u{number}@pve", {})

    def make():
        for number in range(10):
            try:
                node.directory.tokens.create(f"u{number}@pve", "t1")
            except NotFound:
                continue

    maker = threading.Thread(target=make)
    maker.start()
    for number in range(10):
        node.directory.users.delete(f"u{number}@pve")
    maker.join()
    assert keys(node, "/access/tokens/") == keys(node, "/secrets/tokens/") == []


# --- realms


def test_realms(node):
    domains = node.directory.domains
    assert [(realm["realm"], realm["type"]) for realm in domains.list()] == [("pam", "pam"), ("pve", "pve")]
    digest = domains.read("pam")["digest"]
    assert len(digest) == 40
    domains.update("pam", {"default": True, "comment": "hosts"}, digest=digest)
    assert domains.read("pam")["default"] == 1
    assert "default" not in domains.read("pve")
    refused(Conflict, "detected modified configuration", domains.update, "pam", {"comment": "x"}, digest=digest)
    domains.update("pam", {}, delete=["comment", "default"])
    assert set(domains.read("pam")) == {"type", "digest"}
    refused(ParameterError, None, domains.update, "pam", {"base_dn": "x"})
    refused(ParameterError, None, domains.update, "pam", {"comment": "x"}, delete=["comment"])
    refused(NotSupported, "tfa", domains.update, "pam", {"tfa": "type=oath"})
    refused(NotFound, "domain 'x' does not exist", domains.update, "x", {})
    refused(NotFound, "domain 'x' does not exist", domains.read, "x")


def test_realms_of_other_types_are_refused_by_name(node):
    domains = node.directory.domains
    for kind in ("ldap", "ad", "openid"):
        assert refused(NotSupported, kind, domains.create, "corp", kind).status == 501
    refused(AlreadyExists, "domain 'pam' already exists", domains.create, "pam", "pam")
    refused(ParameterError, None, domains.create, "pam2", "pam")
    refused(Failure, "cannot be removed", domains.delete, "pve")
    refused(NotFound, "domain 'x' does not exist", domains.delete, "x")
    assert refused(ParameterError, None, domains.sync, "pve").status == 400
    refused(NotFound, "domain 'x' does not exist", domains.sync, "x")


# --- passwords


def test_own_passwords_need_the_old_one(node, anna):
    change = node.directory.passwords.change
    assert (
        "confirmation-password"
        in refused(ParameterError, None, change, anna, "anna@pve", "new password", origin=HERE).errors
    )
    refused(ParameterError, None, change, anna, "anna@pve", "new password", confirmation="wrong", origin=HERE)
    ticket = node.login.session(anna.user).ticket
    refused(ParameterError, None, change, anna, "anna@pve", "new password", confirmation=ticket, origin=HERE)
    change(anna, "anna@pve", "new password", confirmation="annas password", origin=HERE)
    assert node.login.log_in("anna@pve", "new password", HERE)


def test_others_passwords(node, anna):
    change = node.directory.passwords.change
    change(node.admin, "anna@pve", "given by admin", confirmation="correct horse", origin=HERE)
    assert node.login.log_in("anna@pve", "given by admin", HERE)
    change(node.root, "anna@pve", "given by root", origin=HERE)
    node.directory.users.create("carl@pam", {})
    for userid in ("root@pam", "carl@pam"):
        refused(
            Forbidden, "^Permission check failed$", change, node.admin, userid, "x" * 9,
            confirmation="correct horse", origin=HERE,
        )  # fmt: skip
    change(node.root, "root@pam", "new root password", origin=HERE)
    assert node.pam.passwords["root"] == "new root password"
    refused(NotFound, "no such user", change, node.root, "nobody@pve", "x" * 9, origin=HERE)
    refused(Failure, "NUL", change, node.root, "anna@pve", "abc\0defgh", origin=HERE)
    assert node.pam.passwords["carl"] == "carls password"


def test_hashes_are_renewed_with_stronger_parameters(node, anna):
    from argon2 import PasswordHasher

    from orrery.access.realms.local import LocalRealm

    key = shadow_key(anna.user)
    before = (read_document(node.store, key) or {})["hash"]
    stronger = LocalRealm(node.store, hasher=PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    assert not stronger.authenticate(anna.user, "wrong")
    assert (read_document(node.store, key) or {})["hash"] == before
    assert stronger.authenticate(anna.user, "annas password")
    assert "t=2" in (read_document(node.store, key) or {})["hash"]
    assert stronger.authenticate(anna.user, "annas password")


def test_a_damaged_hash_is_no_way_in(node, anna):
    node.store.put(shadow_key(anna.user), orjson.dumps({"hash": "plain text"}))
    with pytest.raises(Corrupt, match="set the password again"):
        node.local.authenticate(anna.user, "plain text")
    assert not node.local.authenticate(UserId("x", "pve"), "nobody has this password")


# --- pools


@pytest.fixture
def things(node):
    for vmid, kind in ((100, "qemu"), (101, "lxc")):
        node.store.put(f"/guests/{vmid}", orjson.dumps({"kind": kind, "node": "n1", "conf": ""}))
    node.store.put("/storage/local", b'{"type": "dir"}')


def test_a_pool_s_life(node, things):
    pools = node.directory.pools
    pools.create("shop", "words")
    pools.create("shop/web")
    pools.update(node.root, "shop", vms=[101, 100], storage=["local"])
    pools.update(node.root, "shop", vms=[100], comment="new")
    read = pools.read("shop")
    assert read["comment"] == "new"
    assert read["members"] == [
        {"id": "qemu/100", "type": "qemu", "vmid": 100, "node": "n1"},
        {"id": "lxc/101", "type": "lxc", "vmid": 101, "node": "n1"},
        {"id": "storage/local", "type": "storage", "storage": "local"},
    ]
    assert [member["id"] for member in pools.read("shop", "lxc")["members"]] == ["lxc/101"]
    assert pools.list(node.root) == [{"poolid": "shop", "comment": "new"}, {"poolid": "shop/web"}]
    refused(Failure, "is not empty", pools.delete, "shop")
    pools.update(node.root, "shop", vms=[100, 101], storage=["local"], delete=True)
    refused(Failure, "shop/web", pools.delete, "shop")
    node.directory.acl.update(node.root, "/pool/shop/web", ["PVEPoolUser"], users=["admin@pve"])
    pools.delete("shop/web")
    pools.delete("shop")
    assert pools.list(node.root) == []
    assert len(node.directory.acl.list(node.root)) == 1


def test_a_guest_is_in_one_pool(node, things):
    pools = node.directory.pools
    for pool in ("a", "b"):
        pools.create(pool)
    pools.update(node.root, "a", vms=[100])
    refused(Failure, "already in pool 'a'", pools.update, node.root, "b", vms=[100])
    pools.update(node.root, "b", vms=[100], allow_move=True)
    assert pools.read("a")["members"] == []
    refused(Failure, "is not a member", pools.update, node.root, "a", vms=[100], delete=True)
    atomically(node.store, lambda transaction: place_guest(transaction, 101, "b"))
    atomically(node.store, lambda transaction: forget_guest(transaction, 100))
    atomically(node.store, lambda transaction: forget_guest(transaction, 100))
    assert [member["vmid"] for member in pools.read("b")["members"]] == [101]


def test_what_is_gone_leaves_pools_and_permissions(node, things, anna):
    node.directory.pools.create("a")
    node.directory.pools.update(node.root, "a", vms=[100], storage=["local"])
    for path in ("/vms/100", "/storage/local"):
        node.directory.acl.update(node.root, path, ["PVEAuditor"], users=["anna@pve"])
    atomically(node.store, lambda transaction: forget_guest(transaction, 100))
    atomically(node.store, lambda transaction: forget_storage(transaction, "local"))
    assert read_document(node.store, "/pools/a") == {"comment": "", "vms": [], "storage": []}
    assert len(node.directory.acl.list(node.root)) == 1


def test_what_pools_refuse(node, things, anna):
    pools = node.directory.pools
    pools.create("a")
    node.directory.acl.update(node.root, "/pool/a", ["PVEPoolAdmin"], users=["anna@pve"])
    before = node.store.revision()
    refused(AlreadyExists, "pool 'a' already exists", pools.create, "a")
    refused(NotFound, "pool 'x' does not exist", pools.create, "x/y")
    refused(NotFound, "pool 'x' does not exist", pools.read, "x")
    refused(NotFound, "pool 'x' does not exist", pools.update, node.root, "x")
    refused(NotFound, "pool 'x' does not exist", pools.delete, "x")
    for name in ("", "/", "a/", "a//b", "a/../b", "a/b/c/d", "a b"):
        refused(ParameterError, None, pools.create, name)
    refused(NotFound, "VM 999 does not exist", pools.update, node.root, "a", vms=[100, 999])
    refused(NotFound, "storage 'x' does not exist", pools.update, node.root, "a", storage=["x"])
    refused(Forbidden, r"/vms/100, VM\.Allocate", pools.update, anna, "a", vms=[100])
    refused(Forbidden, r"/storage/local, Datastore\.Allocate", pools.update, anna, "a", storage=["local"])
    assert node.store.revision() == before


def test_moving_a_guest_takes_rights_on_both_pools(node, things, anna):
    pools = node.directory.pools
    for pool in ("a", "b"):
        pools.create(pool)
    pools.update(node.root, "a", vms=[100])
    acl = node.directory.acl
    acl.update(node.root, "/pool/b", ["PVEPoolAdmin"], users=["anna@pve"])
    acl.update(node.root, "/vms/100", ["PVEVMAdmin"], users=["anna@pve"])
    refused(Forbidden, r"/pool/a, Pool\.Allocate", pools.update, anna, "b", vms=[100], allow_move=True)
    acl.update(node.root, "/pool/a", ["PVEPoolAdmin"], users=["anna@pve"])
    pools.update(anna, "b", vms=[100], allow_move=True)
    assert [pool["poolid"] for pool in pools.list(anna)] == ["a", "b"]


def test_pools_are_seen_by_who_may(node, anna):
    node.directory.pools.create("a")
    assert node.directory.pools.list(anna) == []
    assert node.directory.pools.list(Identity.parse("admin@pve")) == [{"poolid": "a"}]
