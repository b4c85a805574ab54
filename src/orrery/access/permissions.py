# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who may do what: the rules of `orrery.model.access` over the stored users, groups, roles, list and pools.

The rules are built once per change of what lies under /access and /pools, and each identity's view of them is kept for
a second, so that a list of thousands of guests can be filtered per request.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orrery.access import rules as declared
from orrery.access.records import ACL, GROUPS, POOLS, ROLES, TOKENS, USERS
from orrery.errors import Forbidden
from orrery.model.access import PRIVILEGES, AccessRules, AccessView, Account, AclRule, PoolMembers, normalize_path
from orrery.model.identity import Identity, UserId
from orrery.model.textformats import split_list
from orrery.store.base import Change, Store
from orrery.store.documents import read_document, read_documents
from orrery.store.mirror import Mirror

MODIFY = "Permissions.Modify"
OWNERS = (("/vms/", "VM.Allocate"), ("/storage/", "Datastore.Allocate"), ("/pool/", "Pool.Allocate"))
"""Who may allocate a thing may also say who else may use it."""

VIEW_SECONDS = 1.0
"""How long an identity's view may be used: an account that expires loses its privileges this much later at most."""
VIEWS = 1000

AREAS: Mapping[str, re.Pattern[str]] = {
    "access": re.compile(r"(User|Group|Realm)\.|Permissions\.Modify"),
    "dc": re.compile(r"Sys\.(Audit|Modify)|SDN\.|Permissions\.Modify"),
    "mapping": re.compile(r"Mapping\.|Permissions\.Modify"),
    "nodes": re.compile(r"Sys\.|Permissions\.Modify"),
    "sdn": re.compile(r"SDN\.|Permissions\.Modify"),
    "storage": re.compile(r"Datastore\.|Permissions\.Modify"),
    "vms": re.compile(r"VM\.|Permissions\.Modify"),
}
"""What a login page is told: privileges by area, so that it can hide what nobody may use."""

_FITTING = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))[^\s\0]+")
"""What may stand in the middle of a path: a pool's name may have levels, but nothing climbs up."""
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_-]*)\}")


class Permissions:
    """Answers from memory; follows the mirror by itself. Safe for threads."""

    def __init__(self, mirror: Mirror, *, clock: Callable[[], float] = time.time) -> None:
        self._mirror = mirror
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: AccessRules | None = None
        self._views: dict[Identity, tuple[AccessView, float]] = {}
        mirror.subscribe(self._follow)

    def privileges(self, identity: Identity, path: str) -> Mapping[str, bool]:
        """The identity's privileges on a path, each with whether it goes on to what lies below."""
        if identity.is_root:
            # Also when root@pam is disabled: it may not log in then, but local root is still root.
            return dict.fromkeys(PRIVILEGES, True)
        return self._view(identity).privileges(path)

    def allowed(self, identity: Identity, path: str, privs: Sequence[str], *, any: bool = False) -> bool:  # noqa: A002
        """Whether the identity has all of the privileges on the path, or any one of them."""
        return self._missing(identity, path, privs, any=any) is None

    def below(
        self,
        identity: Identity,
        parent: str,
        privs: Sequence[str],
        *,
        any: bool = False,  # noqa: A002
    ) -> Callable[[object], bool]:
        """A quick `allowed` for many things below one path, by name: `below(anna, "/vms", ("VM.Audit",))(100)`.

        Good for one request: it does not follow changes.
        """
        if identity.is_root:
            return lambda name: True
        return self._view(identity).below(parent, privs, any_of=any)

    def require(self, identity: Identity, path: str, privs: Sequence[str], *, any: bool = False) -> None:  # noqa: A002
        """Raises `Forbidden` naming the first privilege that is missing."""
        missing = self._missing(identity, path, privs, any=any)
        if missing is not None:
            raise Forbidden(f"Permission check failed ({path}, {missing})")

    def may_modify(self, identity: Identity, path: str) -> bool:
        """Whether the identity may change the access control list of a path."""
        return self.allowed(identity, path, _modifiers(path), any=True)

    def check(self, rule: declared.Rule, identity: Identity, params: Mapping[str, Any]) -> None:
        """Judges an endpoint's rule for a request's parameters. Raises `Forbidden`."""
        match rule:
            case declared.World() | declared.Everyone():
                return
            case _ if identity.is_root:
                return
            case declared.RootOnly():
                raise Forbidden("Permission check failed")
            case declared.Perm():
                self._check_perm(rule, identity, params)
            case declared.AllOf():
                for part in rule.rules:
                    self.check(part, identity, params)
            case declared.AnyOf():
                if not any(self._holds(part, identity, params) for part in rule.rules):
                    raise Forbidden("Permission check failed")
            case declared.UseridGroup():
                self._check_userid_group(rule, identity, params)
            case declared.UseridParam():
                self._check_userid_param(rule, identity, params)
            case declared.PermModify():
                self._check_perm_modify(rule, identity, params)
            case _:
                raise TypeError(f"unknown rule {rule!r}")

    def capabilities(self, identity: Identity) -> dict[str, dict[str, int]]:
        """The privileges that the identity has anywhere, by area; see `AREAS`."""
        found: dict[str, dict[str, int]] = {area: {} for area in AREAS}
        for path, privs in self._view(identity).all_privileges().items():
            top = path.split("/")[1] or "dc"
            areas = ("vms", "storage") if top == "pool" else (top,)
            for area in areas:
                if area in found:
                    found[area].update({priv: 1 for priv in sorted(privs) if AREAS[area].match(priv)})
        return found

    def effective(self, identity: Identity, path: str | None = None) -> dict[str, dict[str, int]]:
        """Privileges by path as `{path: {privilege: propagate}}`: of one path, or of all where there are any."""
        if path is not None:
            place = normalize_path(path)
            return {place: _shown(self.privileges(identity, place))}
        return {place: _shown(privs) for place, privs in self._view(identity).all_privileges().items()}

    # --- rules

    def _holds(self, rule: declared.Rule, identity: Identity, params: Mapping[str, Any]) -> bool:
        try:
            self.check(rule, identity, params)
        except Forbidden:
            return False
        return True

    def _check_perm(self, rule: declared.Perm, identity: Identity, params: Mapping[str, Any]) -> None:
        if rule.require_param is not None and params.get(rule.require_param) is None:
            raise Forbidden("Permission check failed")
        self.require(identity, _filled(rule.path, params), rule.privs, any=rule.any)

    def _check_perm_modify(self, rule: declared.PermModify, identity: Identity, params: Mapping[str, Any]) -> None:
        path = _filled(rule.path, params)
        try:
            path = normalize_path(path)
        except ValueError:
            # Says nothing of the path; that it is malformed is for the parameters' check to say.
            raise Forbidden("Permission check failed") from None
        self.require(identity, path, _modifiers(path), any=True)

    def _check_userid_param(self, rule: declared.UseridParam, identity: Identity, params: Mapping[str, Any]) -> None:
        userid = str(params.get("userid", ""))
        if rule.what == "self":
            # A token is not its user: it must not change what its user would have to confirm.
            if str(identity) != userid:
                raise Forbidden("Permission check failed")
            return
        try:
            realm = UserId.parse(userid).realm
        except ValueError:
            raise Forbidden("Permission check failed") from None
        self.require(identity, f"/access/realm/{realm}", (rule.what,))

    def _check_userid_group(self, rule: declared.UseridGroup, identity: Identity, params: Mapping[str, Any]) -> None:
        userid = str(params.get("userid", ""))
        if self.allowed(identity, "/access/groups", rule.privs, any=True):
            return
        own = [
            group
            for group in read_documents(self._mirror, GROUPS)
            if self.allowed(identity, f"/access/groups/{group}", rule.privs, any=True)
        ]
        if rule.groups_param is not None:
            self._check_groups_param(rule, own, params)
        if rule.groups_param != "create":
            groups = read_documents(self._mirror, GROUPS)
            if not any(userid in groups[group]["users"] for group in own):
                raise Forbidden(f"Permission check failed (/access/groups, {'|'.join(rule.privs)})")

    @staticmethod
    def _check_groups_param(rule: declared.UseridGroup, own: Sequence[str], params: Mapping[str, Any]) -> None:
        given = params.get("groups")
        groups = [str(group) for group in given] if isinstance(given, list) else split_list(str(given or ""))
        if not groups and (rule.groups_param == "create" or given is not None):
            raise Forbidden(f"Permission check failed (/access/groups, {'|'.join(rule.privs)})")
        for group in groups:
            if group not in own:
                raise Forbidden(f"Permission check failed (/access/groups/{group}, {'|'.join(rule.privs)})")

    # --- what the answers come from

    def _missing(self, identity: Identity, path: str, privs: Sequence[str], *, any: bool) -> str | None:  # noqa: A002
        if identity.is_root:
            return None
        held = self.privileges(identity, path)
        if any:
            return None if not held.keys().isdisjoint(privs) else "|".join(privs)
        return next((priv for priv in privs if priv not in held), None)

    def _follow(self, changes: Sequence[Change]) -> None:
        if any(change.key.startswith(("/access/", POOLS)) for change in changes):
            with self._lock:
                self._rules = None
                self._views.clear()

    def _view(self, identity: Identity) -> AccessView:
        now = self._clock()
        with self._lock:
            if self._rules is None:
                self._rules = _build(self._mirror)
            view, made = self._views.get(identity, (None, 0.0))
            if view is None or not 0 <= now - made < VIEW_SECONDS:
                if len(self._views) >= VIEWS:
                    self._views.clear()
                view = self._rules.view(identity, now)
                self._views[identity] = (view, now)
            return view


def _build(store: Store) -> AccessRules:
    """The stored state as the model wants it."""
    acl = read_document(store, ACL) or []
    tokens = read_documents(store, TOKENS)
    return AccessRules(
        users={
            user: Account(enabled=bool(document.get("enable", 1)), expire=document.get("expire", 0))
            for user, document in read_documents(store, USERS).items()
        },
        groups={group: frozenset(document["users"]) for group, document in read_documents(store, GROUPS).items()},
        roles={role: document["privs"] for role, document in read_documents(store, ROLES).items()},
        tokens={
            "!".join(key.rsplit("/", 1)): Account(
                expire=document.get("expire", 0), privsep=bool(document.get("privsep", 1))
            )
            for key, document in tokens.items()
        },
        acl=tuple(
            AclRule(rule["path"], rule["type"], rule["ugid"], rule["roleid"], bool(rule["propagate"])) for rule in acl
        ),
        pools={
            pool: PoolMembers(frozenset(document["vms"]), frozenset(document["storage"]))
            for pool, document in read_documents(store, POOLS).items()
        },
    )


def _filled(template: str, params: Mapping[str, Any]) -> str:
    """A path with the request's parameters put in. Raises `Forbidden` when one is missing or no single word."""

    def value(match: re.Match[str]) -> str:
        given = params.get(match[1])
        whole = template == match[0]
        if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
            raise Forbidden("Permission check failed")
        if not whole and not _FITTING.fullmatch(str(given)):
            raise Forbidden("Permission check failed")
        return str(given)

    return _PLACEHOLDER.sub(value, template)


def _modifiers(path: str) -> tuple[str, ...]:
    """The privileges of which any one allows to change the list of a path."""
    return (MODIFY, *(privilege for prefix, privilege in OWNERS if path.startswith(prefix)))


def _shown(privileges: Mapping[str, bool]) -> dict[str, int]:
    return {privilege: int(privileges[privilege]) for privilege in sorted(privileges)}
