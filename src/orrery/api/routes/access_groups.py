# SPDX-License-Identifier: AGPL-3.0-or-later
"""/access/groups, /access/roles and /access/acl."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm, PermModify
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Flag, Format, ListOf, Text
from orrery.api.parameters import Boolean, NoParams, Params

GroupId = Annotated[str, Format("pve-groupid", doc="Name of the group.")]
RoleId = Annotated[str, Format("pve-roleid", doc="Name of the role.")]
Privileges = Annotated[list[str], ListOf(Format("pve-priv"), doc="Privileges.")]

ALLOCATE = Perm("/access/groups", ("Group.Allocate",))
SEE = Perm("/access/groups", ("Sys.Audit", "Group.Allocate"), any=True)
MODIFY_ROLES = Perm("/access", ("Sys.Modify",))


class GroupParams(Params):
    """One group."""

    groupid: GroupId


class GroupSettings(GroupParams):
    comment: Annotated[str, Text(max_length=4096, doc="A note.")] | None = None


class RoleParams(Params):
    """One role."""

    roleid: RoleId


class CreateRole(RoleParams):
    privs: Privileges = Field(default=[])


class UpdateRole(RoleParams):
    privs: Privileges | None = None
    append: Annotated[bool, Flag(requires="privs", doc="Add to the privileges instead of replacing them.")] = False


class ChangeAcl(Params):
    path: Annotated[str, Text(max_length=1024, doc="Where it holds.")]
    roles: Annotated[list[str], ListOf(Format("pve-roleid"), doc="What is granted.")]
    users: Annotated[list[str], ListOf(Format("pve-userid"), doc="To whom.")] = Field(default=[])
    groups: Annotated[list[str], ListOf(Format("pve-groupid"), doc="To whom.")] = Field(default=[])
    tokens: Annotated[list[str], ListOf(Format("pve-tokenid"), doc="To whom.")] = Field(default=[])
    propagate: Boolean = Field(default=True, description="Whether it holds below the path, too.")
    delete: Boolean = Field(default=False, description="Take away instead of granting.")


@endpoint("GET", "/access/groups", params=NoParams, permission=Everyone(), returns=list[dict[str, str]])
def list_groups(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """Groups that the caller may see."""
    return call.services.directory.groups.list(call.identity)


@endpoint("POST", "/access/groups", params=GroupSettings, permission=ALLOCATE)
def create_group(call: Call, p: GroupSettings) -> None:
    """Make a group."""
    call.services.directory.groups.create(p.groupid, p.comment)


@endpoint("GET", "/access/groups/{groupid}", params=GroupParams, permission=SEE, returns=dict[str, Any])
def read_group(call: Call, p: GroupParams) -> dict[str, Any]:
    """One group with its members."""
    return call.services.directory.groups.read(p.groupid)


@endpoint("PUT", "/access/groups/{groupid}", params=GroupSettings, permission=ALLOCATE)
def update_group(call: Call, p: GroupSettings) -> None:
    """Change a group's note."""
    call.services.directory.groups.update(p.groupid, p.comment)


@endpoint("DELETE", "/access/groups/{groupid}", params=GroupParams, permission=ALLOCATE)
def delete_group(call: Call, p: GroupParams) -> None:
    """Remove a group with its permissions."""
    call.services.directory.groups.delete(p.groupid)


@endpoint("GET", "/access/roles", params=NoParams, permission=Everyone(), returns=list[dict[str, Any]])
def list_roles(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """All roles."""
    return call.services.directory.roles.list()


@endpoint("POST", "/access/roles", params=CreateRole, permission=MODIFY_ROLES)
def create_role(call: Call, p: CreateRole) -> None:
    """Make a role."""
    call.services.directory.roles.create(p.roleid, p.privs)


@endpoint("GET", "/access/roles/{roleid}", params=RoleParams, permission=Everyone(), returns=dict[str, int])
def read_role(call: Call, p: RoleParams) -> dict[str, int]:
    """Privileges of a role."""
    return call.services.directory.roles.read(p.roleid)


@endpoint("PUT", "/access/roles/{roleid}", params=UpdateRole, permission=MODIFY_ROLES)
def update_role(call: Call, p: UpdateRole) -> None:
    """Change a role's privileges."""
    call.services.directory.roles.update(p.roleid, p.privs, append=p.append)


@endpoint("DELETE", "/access/roles/{roleid}", params=RoleParams, permission=MODIFY_ROLES)
def delete_role(call: Call, p: RoleParams) -> None:
    """Remove a role and what was granted by it."""
    call.services.directory.roles.delete(p.roleid)


@endpoint("GET", "/access/acl", params=NoParams, permission=Everyone(), returns=list[dict[str, Any]])
def list_acl(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """The access control list, as far as the caller may see it."""
    return call.services.directory.acl.list(call.identity)


@endpoint("PUT", "/access/acl", params=ChangeAcl, permission=PermModify("{path}"))
def change_acl(call: Call, p: ChangeAcl) -> None:
    """Grant roles on a path, or take them away."""
    call.services.directory.acl.update(
        call.identity,
        p.path,
        p.roles,
        users=p.users,
        groups=p.groups,
        tokens=p.tokens,
        propagate=p.propagate,
        delete=p.delete,
    )
