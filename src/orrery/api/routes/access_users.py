# SPDX-License-Identifier: AGPL-3.0-or-later
"""/access/users and their API tokens."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import AllOf, AnyOf, Everyone, UseridGroup, UseridParam
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Flag, Format, Int, ListOf, Pattern, Text
from orrery.api.parameters import PATH_PARAMETERS, Boolean, DeleteList, Params, UserIdText
from orrery.errors import Forbidden
from orrery.model.identity import ROOT

MODIFY = UseridGroup(("User.Modify",))
SELF_OR_MODIFY = AnyOf((UseridParam("self"), MODIFY))
TOKEN = "/access/users/{userid}/token/{tokenid}"

Groups = Annotated[list[str], ListOf(Format("pve-groupid"), doc="Groups of the user.")]
Expire = Annotated[int, Int(minimum=0, doc="When it ends, in seconds since 1970; 0 is never.")]
Comment = Annotated[str, Text(max_length=2048, doc="A note.")]
TokenName: Any = PATH_PARAMETERS["tokenid"]


class ListUsers(Params):
    enabled: Boolean | None = Field(
        default=None, description="Only users that are enabled, or only those that are not."
    )
    full: Boolean = Field(default=False, description="Groups and tokens, too.")


class UserParams(Params):
    """One user."""

    userid: UserIdText


class UserSettings(UserParams):
    """What is known of a user."""

    comment: Comment | None = None
    email: Annotated[str, Format("email-opt", max_length=254, doc="Address for mail.")] | None = None
    enable: Boolean = Field(default=True, description="Whether the user may log in.")
    expire: Expire | None = None
    firstname: Annotated[str, Text(max_length=1024, doc="First name.")] | None = None
    lastname: Annotated[str, Text(max_length=1024, doc="Last name.")] | None = None
    keys: Annotated[str, Pattern("[0-9a-zA-Z!=]{0,4096}", doc="Keys of second factors in an old form.")] | None = None

    def settings(self) -> dict[str, Any]:
        """What was sent, in the form in which it is kept."""
        names = ("comment", "email", "enable", "expire", "firstname", "lastname", "keys")
        return {name: getattr(self, name) for name in names if self.sent(name)}


class CreateUser(UserSettings):
    groups: Groups = Field(default=[])
    password: Annotated[str, Text(min_length=8, max_length=64, doc="First password.")] | None = None


class UpdateUser(UserSettings):
    groups: Groups | None = None
    append: Annotated[bool, Flag(requires="groups", doc="Add to the groups instead of replacing them.")] = False


class TokenParams(UserParams):
    """One API token."""

    tokenid: TokenName


class CreateToken(TokenParams):
    comment: Annotated[str, Text(doc="A note.")] | None = None
    expire: Expire | None = None
    privsep: Boolean = Field(default=True, description="Whether the token has only what is granted to itself, too.")


class UpdateToken(TokenParams):
    comment: Annotated[str, Text(doc="A note.")] | None = None
    expire: Expire | None = None
    privsep: Boolean | None = Field(
        default=None, description="Whether the token has only what is granted to itself, too."
    )
    delete: DeleteList = Field(default=[])


def protect_root(call: Call, userid: str) -> None:
    """Raises `Forbidden` when somebody else would change root@pam, or act as root@pam by a new token."""
    if userid == str(ROOT) and call.identity.user != ROOT:
        raise Forbidden("Permission check failed (only root@pam may change root@pam)")


@endpoint("GET", "/access/users", params=ListUsers, permission=Everyone(), returns=list[dict[str, Any]])
def list_users(call: Call, p: ListUsers) -> list[dict[str, Any]]:
    """Users whom the caller may see."""
    return call.services.directory.users.list(call.identity, full=p.full, enabled=p.enabled)


@endpoint(
    "POST",
    "/access/users",
    params=CreateUser,
    permission=AllOf((UseridParam("Realm.AllocateUser"), UseridGroup(("User.Modify",), "create"))),
)
def create_user(call: Call, p: CreateUser) -> None:
    """Make a user."""
    call.services.directory.users.create(p.userid, p.settings(), groups=p.groups, password=p.password)


@endpoint(
    "GET",
    "/access/users/{userid}",
    params=UserParams,
    permission=UseridGroup(("User.Modify", "Sys.Audit")),
    returns=dict[str, Any],
)
def read_user(call: Call, p: UserParams) -> dict[str, Any]:
    """One user with groups and tokens."""
    return call.services.directory.users.read(p.userid)


@endpoint("PUT", "/access/users/{userid}", params=UpdateUser, permission=UseridGroup(("User.Modify",), "update"))
def update_user(call: Call, p: UpdateUser) -> None:
    """Change a user."""
    protect_root(call, p.userid)
    call.services.directory.users.update(p.userid, p.settings(), groups=p.groups, append=p.append)


@endpoint(
    "DELETE",
    "/access/users/{userid}",
    params=UserParams,
    permission=AllOf((UseridParam("Realm.AllocateUser"), MODIFY)),
)
def delete_user(call: Call, p: UserParams) -> None:
    """Remove a user with tokens and permissions."""
    call.services.directory.users.delete(p.userid)


@endpoint(
    "GET",
    "/access/users/{userid}/token",
    params=UserParams,
    permission=SELF_OR_MODIFY,
    returns=list[dict[str, Any]],
)
def list_tokens(call: Call, p: UserParams) -> list[dict[str, Any]]:
    """API tokens of a user."""
    return call.services.directory.tokens.list(p.userid)


@endpoint("GET", TOKEN, params=TokenParams, permission=SELF_OR_MODIFY, returns=dict[str, Any])
def read_token(call: Call, p: TokenParams) -> dict[str, Any]:
    """One API token, without its value."""
    return call.services.directory.tokens.read(p.userid, p.tokenid)


@endpoint("POST", TOKEN, params=CreateToken, permission=SELF_OR_MODIFY, returns=dict[str, Any])
def create_token(call: Call, p: CreateToken) -> dict[str, Any]:
    """Make an API token; its value is shown this once."""
    protect_root(call, p.userid)
    return call.services.directory.tokens.create(
        p.userid, p.tokenid, comment=p.comment, expire=p.expire, privsep=p.privsep
    )


@endpoint("PUT", TOKEN, params=UpdateToken, permission=SELF_OR_MODIFY, returns=dict[str, Any])
def update_token(call: Call, p: UpdateToken) -> dict[str, Any]:
    """Change what is known of an API token."""
    protect_root(call, p.userid)
    return call.services.directory.tokens.update(
        p.userid, p.tokenid, comment=p.comment, expire=p.expire, privsep=p.privsep, delete=p.delete
    )


@endpoint("DELETE", TOKEN, params=TokenParams, permission=SELF_OR_MODIFY)
def delete_token(call: Call, p: TokenParams) -> None:
    """Remove an API token; it is refused from now on."""
    protect_root(call, p.userid)
    call.services.directory.tokens.delete(p.userid, p.tokenid)
