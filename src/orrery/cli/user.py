# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery user`: users, groups, roles, tokens, and what they may."""

from pathlib import Path

import typer

from orrery.cli import completion
from orrery.cli.verbs import Columns, Session, listed, moment, pairs, verb
from orrery.errors import Failure

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

USER = typer.Argument(..., help="User, as name@realm.", autocompletion=completion.users)
NEW = typer.Argument(..., help="User, as name@realm.")
GROUP = typer.Argument(..., help="Name of the group.", autocompletion=completion.groups)
TOKEN = typer.Argument(..., help="Name of the token.")
OPTIONS = typer.Argument(None, help="Options as KEY=VALUE: comment, email, enable, expire, firstname, lastname.")


def password_from(file: Path | None, prompt: str) -> str:
    """A password from a file, or asked for twice; never from the command line, where others could read it."""
    if file is None:
        return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=True))
    try:
        return file.read_text().splitlines()[0]
    except (OSError, IndexError) as error:
        raise Failure(f"no password can be read from '{file}'") from error


@verb(app, "list")
def list_(session: Session) -> None:
    """List users."""
    columns: Columns = {
        "USER": "userid",
        "ENABLED": "enable",
        "EXPIRES": moment("expire"),
        "NAME": lambda row: " ".join(filter(None, (row.get("firstname"), row.get("lastname")))),
        "EMAIL": "email",
        "COMMENT": "comment",
    }
    session.table(session.get("/access/users"), columns)


@verb(app)
def add(
    session: Session,
    user: str = NEW,
    options: list[str] = OPTIONS,
    groups: str | None = typer.Option(None, help="Groups, separated by commas."),
    new_password_file: Path | None = typer.Option(None, help="File with the new user's password."),
) -> None:
    """Add a user.

    Example:  orrery user add anna@pve email=anna@example.org --groups staff --new-password-file secret
    """
    password = password_from(new_password_file, "Password") if user.endswith("@pve") else None
    session.client.call(
        "POST", "/access/users", {"userid": user, "groups": groups, "password": password, **pairs(options or ())}
    )


@verb(app, "set")
def set_(
    session: Session,
    user: str = USER,
    options: list[str] = OPTIONS,
    groups: str | None = typer.Option(None, help="Groups, separated by commas."),
) -> None:
    """Change a user.

    Example:  orrery user set anna@pve enable=0
    """
    session.client.call("PUT", f"/access/users/{user}", {"groups": groups, **pairs(options or ())})


@verb(app)
def remove(session: Session, user: str = USER) -> None:
    """Remove a user, with their tokens and rights."""
    session.delete(f"/access/users/{user}")


@verb(app)
def password(
    session: Session,
    user: str = USER,
    file: Path | None = typer.Option(None, "--new-password-file", help="File with the new password."),
) -> None:
    """Set a user's password."""
    session.put("/access/password", userid=user, password=password_from(file, "New password"))


@verb(app)
def tokens(session: Session, user: str = USER) -> None:
    """List a user's tokens."""
    columns: Columns = {"TOKEN": "tokenid", "PRIVSEP": "privsep", "EXPIRES": moment("expire"), "COMMENT": "comment"}
    session.table(session.get(f"/access/users/{user}/token"), columns)


@verb(app)
def token_add(
    session: Session,
    user: str = USER,
    token: str = TOKEN,
    privsep: bool = typer.Option(True, help="It has only the rights that it is given itself."),
    expire: int = typer.Option(0, help="When it ends, in seconds since 1970; 0 for never."),
    comment: str | None = typer.Option(None, help="What it is for."),
) -> None:
    """Make a token; its secret is printed once and never again.

    Example:  orrery user token-add anna@pve backup --comment "nightly script"
    """
    where = f"/access/users/{user}/token/{token}"
    session.facts(session.post(where, privsep=privsep, expire=expire, comment=comment))


@verb(app)
def token_remove(
    session: Session, user: str = USER, token: str = typer.Argument(..., help="Name of the token.")
) -> None:
    """Remove a token."""
    session.delete(f"/access/users/{user}/token/{token}")


@verb(app)
def groups(session: Session) -> None:
    """List groups."""
    session.table(session.get("/access/groups"), {"GROUP": "groupid", "USERS": "users", "COMMENT": "comment"})


@verb(app)
def group_add(
    session: Session,
    group: str = typer.Argument(..., help="Name of the group."),
    comment: str | None = typer.Option(None, help="What it is for."),
) -> None:
    """Add a group."""
    session.post("/access/groups", groupid=group, comment=comment)


@verb(app)
def group_remove(session: Session, group: str = GROUP) -> None:
    """Remove a group."""
    session.delete(f"/access/groups/{group}")


@verb(app)
def roles(session: Session) -> None:
    """List roles and their privileges."""
    columns: Columns = {"ROLE": "roleid", "BUILT-IN": "special", "PRIVILEGES": listed("privs")}
    session.table(session.get("/access/roles"), columns)


@verb(app)
def acl(session: Session) -> None:
    """List who has which role where."""
    columns: Columns = {"PATH": "path", "TYPE": "type", "WHO": "ugid", "ROLE": "roleid", "PROPAGATE": "propagate"}
    session.table(session.get("/access/acl"), columns)


@verb(app)
def grant(
    session: Session,
    path: str = typer.Argument(..., help="Path, such as /vms/100 or /pool/lab."),
    role: str = typer.Argument(..., help="Role, such as PVEVMUser.", autocompletion=completion.roles),
    user: str | None = typer.Option(None, help="User, as name@realm.", autocompletion=completion.users),
    group: str | None = typer.Option(None, help="Group.", autocompletion=completion.groups),
    token: str | None = typer.Option(None, help="Token, as name@realm!token."),
    propagate: bool = typer.Option(True, help="Also for what lies below the path."),
    revoke: bool = typer.Option(False, "--revoke", help="Take it away instead."),
) -> None:
    """Give somebody a role on a path.

    Example:  orrery user grant /vms/100 PVEVMUser --user anna@pve
    """
    if not (user or group or token):
        raise Failure("say who: --user, --group or --token")
    session.put(
        "/access/acl",
        path=path,
        roles=role,
        users=user,
        groups=group,
        tokens=token,
        propagate=propagate,
        delete=revoke,
    )


@verb(app)
def permissions(
    session: Session,
    user: str | None = typer.Argument(None, help="User, as name@realm; yourself without it."),
    path: str | None = typer.Option(None, help="Only this path."),
) -> None:
    """Show what somebody may."""
    found = session.get("/access/permissions", userid=user, path=path)
    if session.json:
        session.dump(found)
        return
    same: dict[tuple[str, ...], list[str]] = {}
    for where, privileges in sorted(found.items()):
        same.setdefault(tuple(sorted(privileges)), []).append(where)
    rows = [{"paths": paths, "privileges": list(privileges)} for privileges, paths in same.items()]
    session.table(rows, {"PATHS": "paths", "PRIVILEGES": "privileges"})
