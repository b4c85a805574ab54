# SPDX-License-Identifier: AGPL-3.0-or-later
"""Privileges, built-in roles, and how rules combine."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.access import (
    BUILTIN_ROLES,
    PRIVILEGES,
    AccessRules,
    Account,
    AclRule,
    PoolMembers,
    normalize_path,
    valid_acl_path,
)
from orrery.model.identity import Identity

ANNA, BEN, ROOT = Identity.parse("anna@pve"), Identity.parse("ben@pve"), Identity.parse("root@pam")
CI = Identity.parse("anna@pve!ci")
NOW = 1_000_000.0
USERS = {"anna@pve": Account(), "ben@pve": Account()}


def rules(*acl: AclRule, **more: object) -> AccessRules:
    return AccessRules(**{"users": USERS, "acl": acl} | more)  # type: ignore[arg-type]


def held(access: AccessRules, path: str, identity: Identity = ANNA) -> dict[str, bool]:
    return dict(access.privileges(identity, path, NOW))


def user(path: str, role: str, propagate: bool = True, subject: str = "anna@pve") -> AclRule:
    return AclRule(path, "user", subject, role, propagate)


def group(path: str, role: str, propagate: bool = True, subject: str = "staff") -> AclRule:
    return AclRule(path, "group", subject, role, propagate)


STAFF = {"staff": frozenset(("anna@pve",)), "other": frozenset(("anna@pve",)), "empty": frozenset(("ben@pve",))}


def test_privileges_and_built_in_roles() -> None:
    assert len(PRIVILEGES) == len(set(PRIVILEGES)) == 47
    sizes = {role: len(privileges) for role, privileges in BUILTIN_ROLES.items()}
    assert sizes == {
        "NoAccess": 0,
        "Administrator": 47,
        "PVEAdmin": 40,
        "PVEAuditor": 7,
        "PVEDatastoreAdmin": 4,
        "PVEDatastoreUser": 2,
        "PVEMappingAdmin": 3,
        "PVEMappingUser": 2,
        "PVEPoolAdmin": 2,
        "PVEPoolUser": 1,
        "PVESDNAdmin": 3,
        "PVESDNUser": 2,
        "PVESysAdmin": 3,
        "PVETemplateUser": 2,
        "PVEUserAdmin": 3,
        "PVEVMAdmin": 23,
        "PVEVMUser": 10,
    }
    assert all(set(privileges) <= set(PRIVILEGES) for privileges in BUILTIN_ROLES.values())
    assert "VM.Snapshot.Rollback" in BUILTIN_ROLES["PVEVMAdmin"]
    assert "VM.GuestAgent.Audit" in BUILTIN_ROLES["PVEAuditor"]


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/vms/100/", "/vms/100"),
        ("//pool//a/b/c", "/pool/a/b/c"),
        ("/access/realm/pve", "/access/realm/pve"),
        ("/sdn/zones/z/v/5", "/sdn/zones/z/v/5"),
        ("/mapping/pci/gpu", "/mapping/pci/gpu"),
        ("/storage/local", "/storage/local"),
    ],
)
def test_paths(path: str, normal: str) -> None:
    assert normalize_path(path) == normal
    assert valid_acl_path(normal)


@pytest.mark.parametrize(
    "path",
    [
        *[
            "",
            "vms",
            "/vms/1",
            "/vms/abc",
            "/vms/100/x",
            "/vms\n",
            "/foo",
            "/pool/a/b/c/d",
            "/storage/..",
            "/storage/a/b",
        ],
        *["/nodes/a b", "/access/x", "/sdn/zones/z/v/x", "/mapping/x"],
    ],
)
def test_paths_without_rules(path: str) -> None:
    with pytest.raises(ValueError, match="invalid ACL path"):
        normalize_path(path)


def test_nobody_has_anything_without_a_rule() -> None:
    access = rules(user("/", "Administrator"))
    assert held(access, "/", BEN) == {}
    assert held(access, "/", Identity.parse("ghost@pve")) == {}
    assert held(rules(), "/vms/100") == {}


def test_root_has_everything() -> None:
    assert held(AccessRules(), "/vms/100", ROOT) == dict.fromkeys(PRIVILEGES, True)
    disabled = AccessRules(users={"root@pam": Account(enabled=False)})
    assert held(disabled, "/", ROOT) == {}


def test_rules_reach_down_if_they_propagate() -> None:
    access = rules(user("/vms", "PVETemplateUser"), user("/storage", "PVEDatastoreUser", propagate=False))
    assert held(access, "/vms/100") == {"VM.Audit": True, "VM.Clone": True}
    assert held(access, "/storage") == {"Datastore.AllocateSpace": False, "Datastore.Audit": False}
    assert held(access, "/storage/local") == {}
    assert held(access, "/") == {}


def test_the_deeper_rule_replaces_the_higher_one() -> None:
    access = rules(user("/", "Administrator"), user("/vms/100", "PVETemplateUser"))
    assert set(held(access, "/vms/100")) == {"VM.Audit", "VM.Clone"}
    assert len(held(access, "/vms/101")) == 47
    kept = rules(user("/", "PVEPoolUser"), user("/pool", "PVETemplateUser", propagate=False))
    assert set(held(kept, "/pool")) == {"VM.Audit", "VM.Clone"}
    assert set(held(kept, "/pool/x")) == {"Pool.Audit"}


def test_users_count_before_groups_and_groups_add_up() -> None:
    access = rules(
        group("/vms", "PVETemplateUser"),
        group("/vms", "PVEPoolUser", False, "other"),
        group("/vms", "PVEAdmin", True, "empty"),
        groups=STAFF,
    )
    assert held(access, "/vms") == {"VM.Audit": True, "VM.Clone": True, "Pool.Audit": False}
    assert set(held(access, "/vms/100")) == {"VM.Audit", "VM.Clone"}
    both = rules(group("/vms", "Administrator"), user("/vms", "PVEPoolUser"), groups=STAFF)
    assert set(held(both, "/vms/100")) == {"Pool.Audit"}
    deeper = rules(user("/", "Administrator"), group("/vms", "PVEPoolUser"), groups=STAFF)
    assert set(held(deeper, "/vms/100")) == {"Pool.Audit"}
    above = rules(user("/vms", "PVEPoolUser", False), group("/vms", "PVETemplateUser"), groups=STAFF)
    assert set(held(above, "/vms/100")) == {"VM.Audit", "VM.Clone"}


def test_several_roles_add_up_and_no_access_cancels_them() -> None:
    access = rules(user("/vms", "PVETemplateUser", False), user("/vms", "PVEAuditor"))
    assert held(access, "/vms")["VM.Audit"] is True
    assert held(access, "/vms")["VM.Clone"] is False
    barred = rules(user("/", "Administrator"), user("/vms/100", "NoAccess"), user("/vms/100", "PVEAdmin"))
    assert held(barred, "/vms/100") == {}
    assert held(barred, "/vms/101")


def test_own_roles() -> None:
    access = rules(user("/", "Watcher"), roles={"Watcher": ["VM.Audit"], "PVEAdmin": ["nothing"]})
    assert held(access, "/vms/5") == {"VM.Audit": True}
    assert held(rules(user("/", "PVEAdmin"), roles={"PVEAdmin": []}), "/")
    assert held(rules(user("/", "Gone")), "/") == {}


def test_pools_give_their_members_the_roles_without_propagation() -> None:
    pools = {"web": PoolMembers(frozenset((100,)), frozenset(("local",))), "web/inner": PoolMembers(frozenset((101,)))}
    access = rules(user("/pool/web", "PVETemplateUser"), user("/vms", "PVEPoolUser"), pools=pools)
    assert held(access, "/vms/100") == {"Pool.Audit": True, "VM.Audit": False, "VM.Clone": False}
    assert held(access, "/vms/101") == {"Pool.Audit": True, "VM.Audit": False, "VM.Clone": False}
    assert held(access, "/vms/102") == {"Pool.Audit": True}
    assert held(access, "/storage/local") == {"VM.Audit": False, "VM.Clone": False}
    barred = rules(user("/pool/web", "PVEAdmin"), user("/vms/100", "NoAccess"), pools=pools)
    assert held(barred, "/vms/100") == {}
    pool_bars = rules(user("/vms", "PVEAdmin"), user("/pool/web", "NoAccess"), pools=pools)
    assert held(pool_bars, "/vms/100") == {}
    assert held(pool_bars, "/vms/102")


@pytest.mark.parametrize(
    ("account", "active"),
    [
        (Account(), True),
        (Account(enabled=False), False),
        (Account(expire=999_999), False),
        (Account(expire=1_000_001), True),
    ],
)
def test_accounts_that_ended_have_nothing(account: Account, active: bool) -> None:
    acl = (user("/", "Administrator"), AclRule("/", "token", str(CI), "Administrator"))
    as_user = AccessRules(users={"anna@pve": account}, acl=acl, tokens={str(CI): Account()})
    assert bool(held(as_user, "/")) == active
    assert bool(held(as_user, "/", CI)) == active
    as_token = AccessRules(users=USERS, acl=acl, tokens={str(CI): account})
    assert bool(held(as_token, "/", CI)) == active
    assert held(as_token, "/")


def test_tokens() -> None:
    acl = (
        user("/vms", "PVETemplateUser"),
        AclRule("/vms", "token", str(CI), "PVEAuditor", False),
        AclRule("/vms/100", "token", str(CI), "PVEVMAdmin"),
    )
    separated = rules(*acl, tokens={str(CI): Account()})
    assert held(separated, "/vms", CI) == {"VM.Audit": False}
    assert held(separated, "/vms/100", CI) == {"VM.Audit": True, "VM.Clone": True}
    assert held(separated, "/vms/101", CI) == {}
    whole = rules(*acl, tokens={str(CI): Account(privsep=False)})
    assert held(whole, "/vms/101", CI) == held(whole, "/vms/101")
    assert held(rules(*acl), "/vms/100", CI) == {}
    grouped = rules(group("/", "Administrator"), groups=STAFF, tokens={str(CI): Account()})
    assert held(grouped, "/", CI) == {}


def test_tokens_of_root() -> None:
    token = Identity.parse("root@pam!ci")
    acl = AclRule("/vms", "token", str(token), "PVETemplateUser")
    separated = AccessRules(acl=(acl,), tokens={str(token): Account()})
    assert held(separated, "/vms/100", token) == {"VM.Audit": True, "VM.Clone": True}
    assert held(separated, "/", token) == {}
    whole = AccessRules(tokens={str(token): Account(privsep=False)})
    assert len(held(whole, "/", token)) == 47


def test_questions_to_a_view() -> None:
    access = rules(
        user("/vms", "PVETemplateUser"), user("/pool/x", "PVEPoolUser"), pools={"x": PoolMembers(frozenset((7,)))}
    )
    view = access.view(ANNA, NOW)
    assert view.allowed("/vms/100", ("VM.Audit", "VM.Clone"))
    assert not view.allowed("/vms/100", ("VM.Audit", "VM.Migrate"))
    assert view.allowed("/vms/100", ("VM.Audit", "VM.Migrate"), any_of=True)
    assert list(view.all_privileges()) == ["/pool/x", "/vms", "/vms/7"]


def test_ten_thousand_questions_are_fast() -> None:
    view = rules(user("/", "PVEAuditor"), *(user(f"/vms/{n}", "PVEVMUser") for n in range(100, 200))).view(ANNA, NOW)
    started = time.process_time()
    assert all(view.allowed(f"/vms/{vmid}", ("VM.Audit",)) for vmid in range(100, 10_100))
    assert time.process_time() - started < 1


paths = st.sampled_from(
    ["/", "/vms", "/vms/100", "/vms/101", "/pool", "/pool/a", "/pool/a/b", "/storage", "/storage/s1"]
)
acls = st.lists(
    st.one_of(
        st.builds(
            AclRule, paths, st.just("user"), st.just("anna@pve"), st.sampled_from(sorted(BUILTIN_ROLES)), st.booleans()
        ),
        st.builds(
            AclRule,
            paths,
            st.just("group"),
            st.sampled_from(["staff", "other", "empty"]),
            st.sampled_from(sorted(BUILTIN_ROLES)),
            st.booleans(),
        ),
        st.builds(
            AclRule, paths, st.just("token"), st.just(str(CI)), st.sampled_from(sorted(BUILTIN_ROLES)), st.booleans()
        ),
    ),
    max_size=8,
).map(tuple)
POOLS = {"a": PoolMembers(frozenset((100,))), "a/b": PoolMembers(frozenset((101,)), frozenset(("s1",)))}


@given(acls, paths)
def test_a_separated_token_never_has_more_than_its_user(acl: tuple[AclRule, ...], path: str) -> None:
    access = AccessRules(USERS, STAFF, {}, {str(CI): Account()}, acl, POOLS)
    view, token = access.view(ANNA, NOW), access.view(CI, NOW)
    for privilege, propagate in token.privileges(path).items():
        assert privilege in view.privileges(path)
        assert not propagate or view.privileges(path)[privilege]


@given(acls, paths)
def test_order_of_questions_does_not_matter(acl: tuple[AclRule, ...], path: str) -> None:
    access = AccessRules(USERS, STAFF, {}, {}, acl, POOLS)
    view = access.view(ANNA, NOW)
    everything = view.all_privileges()
    assert dict(view.privileges(path)) == dict(access.privileges(ANNA, path, NOW))
    assert everything.get(path, {}) == view.privileges(path) or path not in access.known_paths()


@given(acls, st.sampled_from([ANNA, BEN, CI, ROOT]), st.booleans())
def test_many_things_below_a_path_are_judged_like_each_of_them(
    acl: tuple[AclRule, ...], identity: Identity, any_of: bool
) -> None:
    access = AccessRules(USERS, STAFF, {}, {str(CI): Account()}, acl, POOLS)
    view = access.view(identity, NOW)
    privileges = ("VM.Audit", "VM.PowerMgmt")
    quick = view.below("/vms", privileges, any_of=any_of)
    for vmid in (100, 101, 102, 103):
        assert quick(vmid) == view.allowed(f"/vms/{vmid}", privileges, any_of=any_of)


@given(st.text(max_size=30))
def test_any_path_is_normal_or_refused(path: str) -> None:
    try:
        normal = normalize_path(path)
    except ValueError:
        return
    assert normalize_path(normal) == normal
