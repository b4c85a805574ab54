# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery vm cloudinit`: what a machine is told about itself."""

import typer

from orrery.cli import completion
from orrery.cli.verbs import Session, verb

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

VMID = typer.Argument(..., help="Number of the machine.", autocompletion=completion.vmids)

PARTS = completion.words("user", "network", "meta")


def place(session: Session, vmid: int) -> str:
    """Path of what a machine is told."""
    return f"{session.node}/qemu/{vmid}/cloudinit"


@verb(app)
def show(session: Session, vmid: int = VMID) -> None:
    """Show what a machine is told, and what is not on its medium yet."""
    rows = session.get(place(session, vmid))
    session.table(rows, {"OPTION": "key", "ON THE MEDIUM": "value", "PENDING": "pending", "DELETE": "delete"})


@verb(app)
def dump(
    session: Session,
    vmid: int = VMID,
    part: str = typer.Argument("user", help="user, network or meta.", autocompletion=PARTS),
) -> None:
    """Print a part of what a machine would be told now, without the password.

    Example:  orrery vm cloudinit dump 100 network
    """
    text = session.get(place(session, vmid) + "/dump", type=part)
    if session.json:
        session.dump(text)
    else:
        typer.echo(text, nl=not text.endswith("\n"))


@verb(app)
def regenerate(session: Session, vmid: int = VMID) -> None:
    """Make a machine's medium anew, such as after a change of a file that `cicustom` names."""
    session.put(place(session, vmid))
    session.say(f"the cloud-init medium of VM {vmid} has been made anew")
