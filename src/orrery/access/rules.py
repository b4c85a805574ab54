# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who may call a method, as data: rules are declared with the endpoints and judged by `orrery.access.permissions`.

Paths are those of the access control list; `{name}` in them stands for the parameter of that name in the request.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """Base of all rules."""


@dataclass(frozen=True)
class Perm(Rule):
    """All of the privileges on the path, or any one. `require_param`: only requests with that parameter pass."""

    path: str
    privs: tuple[str, ...]
    any: bool = False
    require_param: str | None = None


@dataclass(frozen=True)
class AllOf(Rule):
    """Every rule holds."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class AnyOf(Rule):
    """At least one rule holds."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class UseridGroup(Rule):
    """One of the privileges on /access/groups, or on a group of the user named by `userid`.

    `groups_param`: "create" demands it on every group in parameter `groups` (and at least one), "update" also on those.
    """

    privs: tuple[str, ...]
    groups_param: Literal["create", "update"] | None = None


@dataclass(frozen=True)
class UseridParam(Rule):
    """Parameter `userid` is the caller ("self"), or the caller has Realm.AllocateUser on the user's realm."""

    what: Literal["self", "Realm.AllocateUser"]


@dataclass(frozen=True)
class PermModify(Rule):
    """The caller may change the access control list of the path."""

    path: str


@dataclass(frozen=True)
class Everyone(Rule):
    """Any login."""


@dataclass(frozen=True)
class World(Rule):
    """No login needed."""


@dataclass(frozen=True)
class RootOnly(Rule):
    """root@pam alone."""
