# SPDX-License-Identifier: AGPL-3.0-or-later
"""/access: logging in and out, passwords, permissions."""

from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field

from orrery.access.identity import Identity
from orrery.access.rules import AllOf, AnyOf, Everyone, UseridGroup, UseridParam, World
from orrery.access.tickets import LOGIN_SECONDS
from orrery.api.call import Call
from orrery.api.credentials import PAGE_COOKIE
from orrery.api.endpoint import endpoint
from orrery.api.manners import Format, Int, ListOf, Pattern, Text
from orrery.api.parameters import Boolean, NoParams, Params, UserIdText
from orrery.api.reply import Result
from orrery.errors import Forbidden, NotSupported, ParameterError, Unauthenticated

REFUSAL = "authentication failure"
COOKIE_RULES = "Path=/; Secure; HttpOnly; SameSite=Strict"

Path = Annotated[str, Text(max_length=64, requires="privs", doc="Only ask whether the user has privileges here.")]
Privileges = Annotated[
    list[str], ListOf(Format("pve-priv"), max_length=64, requires="path", doc="All that are needed.")
]


class LogIn(Params):
    username: Annotated[str, Text(max_length=64, doc="Name, with or without @REALM.")]
    password: Annotated[str, Text(doc="Password, or a ticket that is still good.")]
    realm: Annotated[str, Format("pve-realm", max_length=32, doc="Realm, if the name is without it.")] | None = None
    path: Path | None = None
    privs: Privileges | None = None
    otp: Annotated[str, Text(doc="One-time password; not supported yet.")] | None = None
    tfa_challenge: Annotated[str, Text(doc="Second step of a login; not supported yet.")] | None = None
    new_format: Boolean = Field(default=True, description="Form of a second step; without meaning here.")
    cookie: Boolean = Field(
        default=False, description="Set the ticket as a cookie that scripts cannot read, and leave it out of the reply."
    )


class ConsoleTicket(Params):
    authid: Annotated[str, Text(max_length=64, doc="User or API token.")]
    vncticket: Annotated[str, Text(doc="The ticket.")]
    path: Annotated[str, Text(max_length=64, doc="What it is for.")]
    privs: Annotated[list[str], ListOf(Format("pve-priv"), max_length=64, doc="All that are needed.")]
    port: Annotated[int, Int(doc="Port that it is for.")] | None = None


class ChangePassword(Params):
    userid: UserIdText
    password: Annotated[str, Text(min_length=8, max_length=64, doc="The new password.")]
    confirmation_password: (
        Annotated[str, Text(min_length=5, max_length=64, doc="The current password of the caller.")] | None
    ) = None


class AskPermissions(Params):
    path: Annotated[str, Text(max_length=1024, doc="Only on this path.")] | None = None
    userid: (
        Annotated[str, Pattern(r"[^\s:/]+@[A-Za-z][A-Za-z0-9.\-_]+(![A-Za-z][A-Za-z0-9.\-_]+)?", doc="User or token.")]
        | None
    ) = None


class OneUser(Params):
    userid: UserIdText


class UserFactors(OneUser):
    multiple: Boolean = Field(default=False, description="List all types.")


@endpoint("GET", "/access/ticket", params=NoParams, permission=World())
def read_ticket(call: Call, p: NoParams) -> None:
    """Does nothing; login pages ask for it."""


@endpoint("POST", "/access/ticket", params=LogIn, permission=World(), returns=dict[str, Any], tokens=False)
def log_in(call: Call, p: LogIn) -> Any:
    """Log in, or prolong a login, or ask whether a user has privileges."""
    for name, value in (("otp", p.otp), ("tfa-challenge", p.tfa_challenge)):
        if value:
            raise NotSupported(f"second factors (parameter '{name}') are not supported yet")
    login, permissions = call.services.login, call.services.permissions
    if p.path is not None and p.privs is not None:
        try:
            user = login.verify(p.username, p.password, p.path, p.privs, call.origin, realm=p.realm)
        except Forbidden as error:
            raise Unauthenticated(REFUSAL) from error
        return {"username": str(user), "cap": permissions.capabilities(Identity(user))}
    session = login.log_in(p.username, p.password, call.origin, realm=p.realm)
    reply = {
        "username": str(session.user),
        "CSRFPreventionToken": session.csrf,
        "cap": permissions.capabilities(Identity(session.user)),
    }
    if not p.cookie:
        return reply | {"ticket": session.ticket}
    cookie = f"{PAGE_COOKIE}={quote(session.ticket, safe='')}; Max-Age={LOGIN_SECONDS}; {COOKIE_RULES}"
    return Result(reply, headers={"set-cookie": cookie})


@endpoint("DELETE", "/access/ticket", params=NoParams, permission=World())
def log_out(call: Call, p: NoParams) -> Result:
    """Have the browser forget the cookie of a login with `cookie=1`."""
    return Result(None, headers={"set-cookie": f"{PAGE_COOKIE}=; Max-Age=0; {COOKIE_RULES}"})


@endpoint("POST", "/access/vncticket", params=ConsoleTicket, permission=World())
def check_console_ticket(call: Call, p: ConsoleTicket) -> None:
    """Whether a console's ticket is good, for programs that carry consoles."""
    try:
        call.services.login.check_console_ticket(p.authid, p.vncticket, p.path, p.privs, p.port)
    except (Unauthenticated, Forbidden) as error:
        raise Unauthenticated(REFUSAL) from error


@endpoint(
    "PUT",
    "/access/password",
    params=ChangePassword,
    permission=AnyOf(
        (
            UseridParam("self"),
            AllOf((UseridParam("Realm.AllocateUser"), UseridGroup(("User.Modify",)))),
        )
    ),
    tokens=False,
)
def change_password(call: Call, p: ChangePassword) -> None:
    """Change a password."""
    call.services.directory.passwords.change(
        call.identity, p.userid, p.password, confirmation=p.confirmation_password, origin=call.origin
    )


@endpoint(
    "GET",
    "/access/permissions",
    params=AskPermissions,
    permission=Everyone(),
    returns=dict[str, dict[str, int]],
)
def read_permissions(call: Call, p: AskPermissions) -> dict[str, dict[str, int]]:
    """What a user may do where. Of others only for who may audit /access."""
    identity = call.identity if p.userid is None else _identity(p.userid)
    if identity != call.identity and not (identity.user == call.identity.user and call.identity.token is None):
        call.require("/access", "Sys.Audit")
    try:
        return call.services.permissions.effective(identity, p.path)
    except ValueError as error:
        raise ParameterError({"path": str(error)}) from error


@endpoint("GET", "/access/tfa", params=NoParams, permission=Everyone(), returns=list[dict[str, Any]])
def list_factors(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """Second factors of all users; there are none yet."""
    return []


@endpoint(
    "GET",
    "/access/tfa/{userid}",
    params=OneUser,
    permission=AnyOf((UseridParam("self"), UseridGroup(("User.Modify", "Sys.Audit")))),
    returns=list[dict[str, Any]],
)
def list_user_factors(call: Call, p: OneUser) -> list[dict[str, Any]]:
    """Second factors of a user; there are none yet."""
    call.services.directory.users.read(p.userid)
    return []


@endpoint(
    "GET",
    "/access/users/{userid}/tfa",
    params=UserFactors,
    permission=AnyOf((UseridParam("self"), UseridGroup(("User.Modify", "Sys.Audit")))),
    returns=dict[str, Any],
)
def read_factor_types(call: Call, p: UserFactors) -> dict[str, Any]:
    """Types of a user's second factors; there are none yet."""
    call.services.directory.users.read(p.userid)
    return {"types": []} if p.multiple else {}


@endpoint(
    "PUT",
    "/access/users/{userid}/unlock-tfa",
    params=OneUser,
    permission=UseridGroup(("User.Modify",)),
    returns=bool,
)
def unlock_factors(call: Call, p: OneUser) -> bool:
    """Let a user who used up the tries of second factors try again; whether there was such a lock."""
    call.services.directory.users.read(p.userid)
    return False


def _identity(text: str) -> Identity:
    try:
        return Identity.parse(text)
    except ValueError as error:
        raise ParameterError({"userid": str(error)}) from error
