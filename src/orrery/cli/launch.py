# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery launch`: a guest from an image in one step."""

import time
from pathlib import Path
from typing import Any

import typer

from orrery.cli import completion
from orrery.cli.verbs import Session, verb
from orrery.errors import Failure, OrreryError

_app = typer.Typer()
_POLL_SECONDS = 1.0


@verb(_app)
def launch(
    session: Session,
    image: str = typer.Argument(..., help="What to make it from: debian-12, docker.io/library/nginx:1, or a volume."),
    name: str | None = typer.Option(None, help="Its name."),
    vm: bool = typer.Option(False, "--vm", help="Make a virtual machine."),
    ct: bool = typer.Option(False, "--ct", help="Make a container."),
    vmid: int | None = typer.Option(None, help="Its number; the next free one without it."),
    memory: int | None = typer.Option(None, help="Memory in MiB."),
    cores: int | None = typer.Option(None, help="Processors."),
    disk: int | None = typer.Option(None, help="Size of its disk in GiB."),
    storage: str = typer.Option("local", help="Where its disk lies.", autocompletion=completion.storages),
    image_storage: str = typer.Option("local", help="Where images lie.", autocompletion=completion.storages),
    bridge: str = typer.Option("vmbr0", help="Bridge of its network card."),
    ip: str = typer.Option("dhcp", help="IPv4 address as ADDRESS/PREFIX, or dhcp."),
    gateway: str | None = typer.Option(None, help="Gateway of a fixed address."),
    user: str | None = typer.Option(None, help="Account that a machine gets."),
    guest_password: Path | None = typer.Option(None, "--guest-password-file", help="File with the account's password."),
    keys: Path | None = typer.Option(None, "--ssh-keys", help="File with public keys that may log in."),
    pool: str | None = typer.Option(None, help="Pool to enter it in."),
    start: bool = typer.Option(True, help="Start it."),
    wait: bool = typer.Option(True, help="Wait for the end of the task, and for an address."),
    patience: int = typer.Option(120, help="Seconds to wait for an address."),
) -> None:
    """Create a guest from an image, fetched if it is not here yet, start it, and tell its address.

    Example:  orrery launch debian-12 --name web1 --ssh-keys ~/.ssh/id_ed25519.pub
    """
    if vm and ct:
        raise Failure("--vm and --ct exclude each other")
    parameters: dict[str, Any] = {
        "image": image,
        "type": "machine" if vm else "container" if ct else None,
        "name": name,
        "memory": memory,
        "cores": cores,
        "disk": disk,
        "storage": storage,
        "image-storage": image_storage,
        "bridge": bridge,
        "ip": ip,
        "gateway": gateway,
        "user": user,
        "pool": pool,
        "start": start,
        "vmid": vmid or int(session.get("/cluster/nextid")),
    }
    if guest_password is not None:
        parameters["password"] = _read(guest_password).splitlines()[0]
    if keys is not None:
        parameters["ssh-public-keys"] = _read(keys)
    number = parameters["vmid"]
    session.follow(session.client.call("POST", f"{session.node}/launch", parameters), wait=wait)
    if not wait:
        return
    session.say(f"created guest {number}")
    if start:
        address = _address(session, number, patience)
        session.say(f"address: {address}" if address else f"no address within {patience} seconds")


def _read(file: Path) -> str:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read '{file}': {error}") from error
    if not text.strip():
        raise Failure(f"'{file}' is empty")
    return text


def _address(session: Session, vmid: int, patience: int) -> str | None:
    """The address that the node's DHCP gave to the guest, or that it says it has; None when there is none in time."""
    end = time.monotonic() + patience
    while True:
        found = _given(session, vmid) or _told(session, vmid)
        if found or time.monotonic() > end:
            return found
        time.sleep(_POLL_SECONDS)


def _given(session: Session, vmid: int) -> str | None:
    rows = session.get(f"{session.node}/addresses", vmid=vmid)
    return str(rows[0]["address"]) if rows else None


def _told(session: Session, vmid: int) -> str | None:
    """The first address of a container's own; machines are known by their leases."""
    try:
        rows = session.get(f"{session.node}/lxc/{vmid}/interfaces")
    except OrreryError:
        return None
    for row in rows:
        if row.get("name") != "lo" and "inet" in row:
            return str(row["inet"]).partition("/")[0]
    return None


command = _app.registered_commands[0].callback
