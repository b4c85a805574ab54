# SPDX-License-Identifier: AGPL-3.0-or-later
"""Everything that can be changed about who may do what, under one roof for the handlers of /access and /pools."""

from collections.abc import Mapping
from dataclasses import dataclass

from orrery.access.acl import AccessControl
from orrery.access.domains import Domains
from orrery.access.groups import Groups
from orrery.access.login import Login
from orrery.access.passwords import Passwords
from orrery.access.permissions import Permissions
from orrery.access.pools import Pools
from orrery.access.realms.base import Realm
from orrery.access.realms.local import LocalRealm
from orrery.access.realms.pam import PamRealm
from orrery.access.roles import Roles
from orrery.access.tokens import Tokens
from orrery.access.users import Users
from orrery.store.base import Store


@dataclass(frozen=True)
class Directory:
    """The services; each checks what the endpoint's rule cannot."""

    users: Users
    groups: Groups
    roles: Roles
    acl: AccessControl
    tokens: Tokens
    domains: Domains
    pools: Pools
    passwords: Passwords


def built_in_realms(store: Store) -> dict[str, Realm]:
    """The realms that every node has, by name."""
    return {"pve": LocalRealm(store), "pam": PamRealm()}


def open_directory(store: Store, permissions: Permissions, realms: Mapping[str, Realm], login: Login) -> Directory:
    """The services over one store."""
    return Directory(
        Users(store, permissions, realms),
        Groups(store, permissions),
        Roles(store),
        AccessControl(store, permissions),
        Tokens(store),
        Domains(store),
        Pools(store, permissions),
        Passwords(store, realms, login),
    )
