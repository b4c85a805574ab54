# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who may do what, on which path: privileges, built-in roles, and how rules combine.

Pure: an `AccessRules` value is a snapshot of everything that counts, an `AccessView` answers questions about one
identity. Names, built-in roles, valid paths and the way rules combine are those of the compatible API:

- A rule gives a user, a group or a token a role on a path; it reaches further down the tree only if it propagates.
- On each level rules of the user (or token) count before those of the user's groups; groups of one level add up.
- Rules on a deeper level replace what comes from above. The role NoAccess cancels every other role.
- Roles on /pool/P hold, without propagation, for the guests and storages in pool P as well.
- A token without privilege separation has what its user has; one with it has what both the user and itself have.
- Who is disabled, expired or unknown has nothing. root@pam has everything.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from orrery.model.identity import ROOT, Identity
from orrery.model.volume import VMID

SubjectKind = Literal["user", "group", "token"]
Privileges = Mapping[str, bool]
"""Privilege to whether it propagates to everything below."""


def _family(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


_DATASTORE = _family("Datastore", "Allocate AllocateSpace AllocateTemplate Audit")
_MAPPING = _family("Mapping", "Audit Modify Use")
_POOL = _family("Pool", "Allocate Audit")
_SDN = _family("SDN", "Allocate Audit Use")
_SYS = _family("Sys", "AccessNetwork Audit Console Incoming Modify PowerMgmt Syslog")
_USERS = ("Group.Allocate", "Realm.AllocateUser", "User.Modify")
_VM = (
    *_family("VM", "Allocate Audit Backup Clone Console Migrate PowerMgmt Replicate Snapshot Snapshot.Rollback"),
    *_family("VM.Config", "CDROM CPU Cloudinit Disk HWType Memory Network Options"),
    *_family("VM.GuestAgent", "Audit FileRead FileSystemMgmt FileWrite Unrestricted"),
)
_RESERVED = frozenset(
    (
        *("Permissions.Modify", "Mapping.Modify", "Realm.Allocate"),
        *_family("Sys", "AccessNetwork Incoming Modify PowerMgmt"),
    )
)

PRIVILEGES: tuple[str, ...] = tuple(
    sorted(
        (*_DATASTORE, *_MAPPING, *_POOL, *_SDN, *_SYS, *_USERS, *_VM, "Permissions.Modify", "Realm.Allocate"),
    )
)

NO_ACCESS = "NoAccess"
ADMINISTRATOR = "Administrator"


def _role(*privileges: str) -> tuple[str, ...]:
    return tuple(sorted(privileges))


BUILTIN_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        NO_ACCESS: (),
        ADMINISTRATOR: PRIVILEGES,
        "PVEAdmin": tuple(privilege for privilege in PRIVILEGES if privilege not in _RESERVED),
        "PVEAuditor": tuple(privilege for privilege in PRIVILEGES if privilege.endswith(".Audit")),
        "PVEDatastoreAdmin": _DATASTORE,
        "PVEDatastoreUser": _role("Datastore.AllocateSpace", "Datastore.Audit"),
        "PVEMappingAdmin": _MAPPING,
        "PVEMappingUser": _role("Mapping.Audit", "Mapping.Use"),
        "PVEPoolAdmin": _POOL,
        "PVEPoolUser": _role("Pool.Audit"),
        "PVESDNAdmin": _SDN,
        "PVESDNUser": _role("SDN.Audit", "SDN.Use"),
        "PVESysAdmin": _role("Sys.Audit", "Sys.Console", "Sys.Syslog"),
        "PVETemplateUser": _role("VM.Audit", "VM.Clone"),
        "PVEUserAdmin": _USERS,
        "PVEVMAdmin": _role(*_VM),
        "PVEVMUser": _role(
            *_family("VM", "Audit Backup Config.CDROM Config.Cloudinit Console PowerMgmt"),
            *_family("VM.GuestAgent", "Audit FileRead FileSystemMgmt FileWrite"),
        ),
    }
)
"""The roles that come with the program; they cannot be changed."""

_ID = r"[A-Za-z0-9._-]+"
_VALID_PATH = re.compile(
    "|".join(
        (
            r"/",
            rf"/access(/groups(/{_ID})?|/realm(/{_ID})?)?",
            rf"/nodes(/{_ID})?",
            rf"/pool(/{_ID}){{0,3}}",
            rf"/sdn(/(controllers|dns|fabrics|ipams)(/{_ID})?|/zones(/{_ID}(/{_ID}(/\d{{1,4}})?)?)?)?",
            rf"/storage(/{_ID})?",
            rf"/vms(/{VMID.pattern})?",
            rf"/mapping(/hwrng|/(pci|usb|dir)(/{_ID})?)?",
        )
    ),
    re.ASCII,
)
_TOP = ("/", "/access", "/access/groups", "/mapping", "/nodes", "/pool", "/sdn", "/storage", "/vms")
_NOTHING: Privileges = MappingProxyType({})
_EVERYTHING: Privileges = MappingProxyType(dict.fromkeys(PRIVILEGES, True))


def valid_acl_path(path: str) -> bool:
    """Whether rules can be given on a path (in its normal form)."""
    return _VALID_PATH.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))


def normalize_path(path: str) -> str:
    """A path in its normal form: one `/` between parts, none at the end; ValueError when no rule can be given on it."""
    normal = "/" + "/".join(part for part in path.split("/") if part)
    if not path.startswith("/") or not valid_acl_path(normal):
        raise ValueError(f"invalid ACL path '{path[:200]}'")
    return normal


@dataclass(frozen=True, slots=True)
class AclRule:
    """One rule: `subject` (a user id, group name or full token id, by `kind`) has `role` on `path`."""

    path: str
    kind: SubjectKind
    subject: str
    role: str
    propagate: bool = True


@dataclass(frozen=True, slots=True)
class Account:
    """A user's or token's state. `expire`: seconds since 1970, 0 for never. `privsep` concerns tokens only."""

    enabled: bool = True
    expire: int = 0
    privsep: bool = True

    def is_active(self, now: float) -> bool:
        """Whether the account counts at that time (seconds since 1970)."""
        return self.enabled and (self.expire == 0 or self.expire > now)


@dataclass(frozen=True, slots=True)
class PoolMembers:
    """What lies in a pool."""

    vms: frozenset[int] = frozenset()
    storage: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Node:
    """The rules on one path: subject to role to propagation."""

    users: dict[str, dict[str, bool]] = field(default_factory=dict)
    groups: dict[str, dict[str, bool]] = field(default_factory=dict)
    tokens: dict[str, dict[str, bool]] = field(default_factory=dict)

    def of(self, kind: SubjectKind) -> dict[str, dict[str, bool]]:
        return {"user": self.users, "group": self.groups, "token": self.tokens}[kind]


@dataclass(frozen=True)
class AccessRules:
    """A snapshot of everything that decides what somebody may do.

    `users` and `tokens` by full id, `groups` to their users' ids, `roles` to their privileges (built-in ones are known
    and need not be given), `pools` by full name.
    """

    users: Mapping[str, Account] = field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    roles: Mapping[str, Iterable[str]] = field(default_factory=dict)
    tokens: Mapping[str, Account] = field(default_factory=dict)
    acl: tuple[AclRule, ...] = ()
    pools: Mapping[str, PoolMembers] = field(default_factory=dict)
    _tree: dict[str, _Node] = field(init=False, repr=False, compare=False, default_factory=dict)
    _in_pools: dict[str, list[str]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _granted: dict[str, frozenset[str]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for rule in self.acl:
            subjects = self._tree.setdefault(rule.path, _Node()).of(rule.kind)
            subjects.setdefault(rule.subject, {})[rule.role] = rule.propagate
        for pool, members in self.pools.items():
            for path in (*(f"/vms/{vmid}" for vmid in members.vms), *(f"/storage/{each}" for each in members.storage)):
                self._in_pools.setdefault(path, []).append(f"/pool/{pool}")
        self._granted.update({role: frozenset(privileges) for role, privileges in self.roles.items()})
        self._granted.update({role: frozenset(privileges) for role, privileges in BUILTIN_ROLES.items()})

    def view(self, identity: Identity, now: float) -> "AccessView":
        """What that identity may do at that time (seconds since 1970); cheap to make, remembers what it worked out."""
        return AccessView(self, identity, now)

    def privileges(self, identity: Identity, path: str, now: float) -> Privileges:
        """The identity's privileges on a path. For many questions about one identity use a `view`."""
        return self.view(identity, now).privileges(path)

    def node(self, path: str) -> _Node | None:
        """The rules given on exactly this path."""
        return self._tree.get(path)

    def pools_of(self, path: str) -> list[str]:
        """Paths of the pools in which the guest or storage of this path lies."""
        return self._in_pools.get(path, [])

    def granted(self, role: str) -> frozenset[str]:
        """The privileges of a role; none for a role that does not exist."""
        return self._granted.get(role, frozenset())

    def known_paths(self) -> list[str]:
        """Paths that somebody may have particular privileges on: the top ones, those with rules, pools' members."""
        return sorted({*_TOP, *self._tree, *self._in_pools, *(f"/pool/{pool}" for pool in self.pools)})


class AccessView:
    """What one identity may do; see `AccessRules.view`."""

    def __init__(self, rules: AccessRules, identity: Identity, now: float) -> None:
        self._rules = rules
        user = str(identity.user)
        account = rules.users.get(user, Account() if identity.user == ROOT else None)
        self._active = account is not None and account.is_active(now)
        self._everything = identity.user == ROOT
        self._own: AccessView | None = None
        self._subject, self._kind = user, "user"
        if identity.token is not None:
            token = rules.tokens.get(str(identity))
            self._active = self._active and token is not None and token.is_active(now)
            if token is not None and token.privsep:
                self._own = AccessView(rules, Identity(identity.user), now)
                self._subject, self._kind, self._everything = str(identity), "token", False
        self._groups = {group for group, users in rules.groups.items() if user in users and self._kind == "user"}
        self._inherited: dict[str, dict[str, bool]] = {}
        self._combined: dict[tuple[tuple[str, bool], ...], Privileges] = {}

    def privileges(self, path: str) -> Privileges:
        """Privileges on a path, in its normal form, with whether each propagates."""
        if not self._active:
            return _NOTHING
        if self._everything:
            return _EVERYTHING
        held = self._combine(self._roles(path))
        if self._own is None or not held:
            return held
        own = self._own.privileges(path)
        return {privilege: propagate and own[privilege] for privilege, propagate in held.items() if privilege in own}

    def allowed(self, path: str, privileges: Iterable[str], *, any_of: bool = False) -> bool:
        """Whether all (or any) of the privileges are held on a path."""
        held = self.privileges(path)
        return any(each in held for each in privileges) if any_of else all(each in held for each in privileges)

    def below(self, parent: str, privileges: Iterable[str], *, any_of: bool = False) -> Callable[[object], bool]:
        """A quick `allowed` for many things below one path: those without rules of their own and in the same pools, in
        none above all, are judged once.
        """
        wanted = tuple(privileges)
        judged: dict[tuple[str, ...], bool] = {}

        def allowed(name: object) -> bool:
            path = f"{parent}/{name}"
            if self._rules.node(path) is not None:
                return self.allowed(path, wanted, any_of=any_of)
            pools = tuple(self._rules.pools_of(path))
            if pools not in judged:
                judged[pools] = self.allowed(path, wanted, any_of=any_of)
            return judged[pools]

        return allowed

    def all_privileges(self) -> dict[str, Privileges]:
        """Every path on which the identity holds something in particular, with what it holds."""
        found = {path: self.privileges(path) for path in self._rules.known_paths()}
        return {path: held for path, held in found.items() if held}

    def _roles(self, path: str) -> dict[str, bool]:
        """Roles on a path with propagation, the pools' included; NoAccess stands alone."""
        roles = self._path_roles(path)
        if NO_ACCESS in roles:
            return {NO_ACCESS: roles[NO_ACCESS]}
        from_pools = {role for pool in self._rules.pools_of(path) for role in self._pool_roles(pool)}
        if NO_ACCESS in from_pools:
            return {NO_ACCESS: False}
        return {**dict.fromkeys(from_pools, False), **roles} if from_pools else roles

    def _pool_roles(self, pool: str) -> dict[str, bool]:
        roles = self._path_roles(pool)
        return {NO_ACCESS: roles[NO_ACCESS]} if NO_ACCESS in roles else roles

    def _path_roles(self, path: str) -> dict[str, bool]:
        """Roles that hold on a path: those of its own rules, else what comes down from above."""
        parent = path.rpartition("/")[0] or "/"
        above = {} if path == "/" else self._from_above(parent)
        own = self._level(path, final=True)
        return above if own is None else own

    def _from_above(self, path: str) -> dict[str, bool]:
        """Roles that reach below a path by propagation."""
        if path in self._inherited:
            return self._inherited[path]
        above = {} if path == "/" else self._from_above(path.rpartition("/")[0] or "/")
        own = self._level(path, final=False)
        self._inherited[path] = above if own is None else own
        return self._inherited[path]

    def _level(self, path: str, *, final: bool) -> dict[str, bool] | None:
        """Roles by the rules of one level; None when none counts there."""
        node = self._rules.node(path)
        if node is None:
            return None
        direct = (node.users if self._kind == "user" else node.tokens).get(self._subject, {})
        found = {role: propagate for role, propagate in direct.items() if final or propagate}
        if not found:
            for group, roles in node.groups.items():
                if group in self._groups:
                    for role, propagate in roles.items():
                        if final or propagate:
                            found[role] = found.get(role, False) or propagate
        return found or None

    def _combine(self, roles: Mapping[str, bool]) -> Privileges:
        key = tuple(roles.items())
        if key not in self._combined:
            held: dict[str, bool] = {}
            for role, propagate in roles.items():
                for privilege in self._rules.granted(role):
                    held[privilege] = held.get(privilege, False) or propagate
            self._combined[key] = MappingProxyType(held)
        return self._combined[key]
