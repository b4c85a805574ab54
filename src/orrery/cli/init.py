# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery init`: makes a root in which a node can run."""

import secrets
import shlex
import socket
from pathlib import Path

import typer

from orrery.access.bootstrap import initialize
from orrery.access.tickets import Tickets
from orrery.errors import AlreadyExists, ParameterError
from orrery.front.certificate import ensure_certificate
from orrery.model.formats import check_format
from orrery.store.documents import encode_document
from orrery.store.local import SqliteStore
from orrery.system.files import write_json
from orrery.system.jail import account
from orrery.system.paths import Paths

PASSWORD_MIN = 8
"""Characters; as for every password that is set through the API."""


def command(
    admin_password_file: Path = typer.Option(..., help="File whose first line becomes the password of admin@pve."),
    root: Path | None = typer.Option(
        None, envvar="ORRERY_ROOT", help="Folder for everything the node owns; the system's places without it."
    ),
    node_name: str = typer.Option(socket.gethostname().split(".")[0], help="Name of the node."),
) -> None:
    """Prepare a folder for a new node; refuses one that holds a node already.

    Example:  orrery init --root /srv/orrery --node-name alpha --admin-password-file /root/password
    """
    try:
        check_format("pve-node", node_name)
    except ValueError as error:
        raise ParameterError({"node-name": str(error)}) from error
    password = read_password(admin_password_file)
    paths = Paths.of(root)
    if paths.node_json.exists():
        raise AlreadyExists(f"'{paths.node_json}' exists: this folder holds a node already")
    front = account("orrery")
    paths.create((front.uid, front.gid))
    store = SqliteStore(paths.store_db)
    initialize(store, password)
    if store.get("/cluster/id") is None:
        store.put("/cluster/id", encode_document(secrets.token_hex(16)))
    store.close()
    Tickets(paths.keys)
    ensure_certificate(paths.tls_key, paths.tls_cert, node_name, (), (front.uid, front.gid))
    write_json(paths.node_json, {"version": 1, "node": node_name})  # last: its presence says that all of this is done
    start = f"orrery serve --root {shlex.quote(str(root))}" if root else "orrery serve"
    typer.echo(f"node '{node_name}' is ready below '{paths.root or paths.lib}'; start it with `{start}`")


def read_password(file: Path) -> str:
    """First line of a password file. Raises `ParameterError`."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError({"admin-password-file": f"cannot be read: {error}"}) from error
    password = lines[0] if lines else ""
    if len(password) < PASSWORD_MIN:
        raise ParameterError({"admin-password-file": f"the password must have at least {PASSWORD_MIN} characters"})
    return password
