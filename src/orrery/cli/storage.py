# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery storage`: storages and the volumes in them."""

from pathlib import Path
from urllib.parse import quote

import typer

from orrery.cli import completion
from orrery.cli.verbs import Columns, Session, listed, moment, pairs, size, verb
from orrery.errors import Failure

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

STORAGE = typer.Argument(..., help="Name of the storage.", autocompletion=completion.storages)
NEW = typer.Argument(..., help="Name of the storage.")
FORMATS = completion.words("raw", "qcow2", "vmdk")
FILES = completion.words("iso", "vztmpl", "import")
SYSTEMS = completion.words("debian", "ubuntu", "windows")
KINDS = completion.words("images", "iso", "vztmpl", "import", "backup", "snippets")
VOLUME = typer.Argument(..., help="Volume, as STORAGE:NAME.")


@verb(app, "list")
def list_(session: Session) -> None:
    """List the storages of the node and how full they are."""
    columns: Columns = {
        "NAME": "storage",
        "TYPE": "type",
        "CONTENT": listed("content"),
        "ACTIVE": "active",
        "TOTAL": size("total"),
        "USED": size("used"),
        "FREE": size("avail"),
    }
    session.table(session.get(f"{session.node}/storage"), columns)


@verb(app)
def add(
    session: Session,
    name: str = NEW,
    path: str = typer.Option(..., help="Its folder."),
    type_: str = typer.Option("dir", "--type", help="Its type."),
    content: str = typer.Option("images,iso,vztmpl,snippets,backup,import", help="What it holds."),
    set_: list[str] = typer.Option([], "--set", help="Any option as KEY=VALUE; may repeat."),
) -> None:
    """Add a storage.

    Example:  orrery storage add fast --path /srv/fast --content images,iso
    """
    session.client.call(
        "POST", "/storage", {"storage": name, "type": type_, "path": path, "content": content, **pairs(set_)}
    )
    session.say(f"added storage {name}")


@verb(app, "set")
def set_(
    session: Session,
    name: str = STORAGE,
    options: list[str] = typer.Argument(None, help="Options as KEY=VALUE."),
    delete: str | None = typer.Option(None, help="Options to remove, separated by commas."),
) -> None:
    """Change a storage's options.

    Example:  orrery storage set fast content=images
    """
    session.client.call("PUT", f"/storage/{name}", {**pairs(options or ()), "delete": delete})


@verb(app)
def remove(session: Session, name: str = STORAGE) -> None:
    """Forget a storage; what lies on it stays."""
    session.delete(f"/storage/{name}")


@verb(app)
def config(session: Session, name: str = STORAGE) -> None:
    """Show a storage's options."""
    session.facts(session.get(f"/storage/{name}"))


@verb(app)
def status(session: Session, name: str = STORAGE) -> None:
    """Show whether a storage is active and how full it is."""
    session.facts(session.get(f"{session.node}/storage/{name}/status"))


@verb(app)
def content(
    session: Session,
    name: str = STORAGE,
    kind: str | None = typer.Option(
        None, "--content", help="Only this kind: images, iso, import and so on.", autocompletion=KINDS
    ),
    vmid: int | None = typer.Option(None, help="Only volumes of this guest."),
) -> None:
    """List the volumes on a storage."""
    rows = session.get(f"{session.node}/storage/{name}/content", content=kind, vmid=vmid)
    columns: Columns = {
        "VOLUME": "volid",
        "CONTENT": "content",
        "FORMAT": "format",
        "SIZE": size("size"),
        "MADE": moment("ctime"),
        "NOTES": "notes",
    }
    session.table(rows, columns)


@verb(app)
def upload(
    session: Session,
    name: str = STORAGE,
    file: Path = typer.Argument(..., exists=True, dir_okay=False, help="The file."),
    kind: str = typer.Option(..., "--content", help="iso, vztmpl or import.", autocompletion=FILES),
    filename: str | None = typer.Option(None, help="Its name there; that of the file without it."),
    checksum: str | None = typer.Option(None, help="Checksum to verify, as ALGORITHM:HEX."),
) -> None:
    """Upload a file.

    Example:  orrery storage upload local debian.iso --content iso --checksum sha256:1f0c...
    """
    fields = {"content": kind, **_checksum(checksum)}
    session.upload(f"{session.node}/storage/{name}/upload", fields, file, filename or file.name)


@verb(app)
def download(
    session: Session,
    name: str = STORAGE,
    url: str = typer.Argument(..., help="Address of the file."),
    kind: str = typer.Option(..., "--content", help="iso, vztmpl or import.", autocompletion=FILES),
    filename: str | None = typer.Option(None, help="Its name here; that in the address without it."),
    checksum: str | None = typer.Option(None, help="Checksum to verify, as ALGORITHM:HEX."),
    wait: bool = typer.Option(True, help="Wait for the end of the task."),
) -> None:
    """Have the node download a file.

    Example:  orrery storage download local https://example.org/debian.iso --content iso
    """
    parameters = {"url": url, "content": kind, "filename": filename or url.rstrip("/").rsplit("/", 1)[-1]}
    where = f"{session.node}/storage/{name}/download-url"
    session.follow(session.client.call("POST", where, {**parameters, **_checksum(checksum)}), wait=wait)


@verb(app, "answer-disk")
def answer_disk(
    session: Session,
    name: str = STORAGE,
    filename: str = typer.Argument(..., help="Name of the medium, such as web1-answers.iso."),
    system: str = typer.Option(..., help="Whose installer.", autocompletion=SYSTEMS),
    hostname: str = typer.Option(..., help="Name of the new system."),
    user: str = typer.Option(..., help="Name of its first user."),
    password_of: Path = typer.Option(..., "--user-password-file", help="File with that user's password.", exists=True),
    keys: Path | None = typer.Option(None, "--ssh-keys", help="File with public keys of the user.", exists=True),
    set_: list[str] = typer.Option([], "--set", help="Any other answer as KEY=VALUE; may repeat."),
) -> None:
    """Make a medium with answers, from which an installer of Debian, Ubuntu or Windows needs nobody.

    Example:  orrery storage answer-disk local pc.iso --system windows --hostname pc --user anna --user-password-file pw
    """
    parameters = {
        "filename": filename,
        "system": system,
        "hostname": hostname,
        "user": user,
        "password": password_of.read_text().rstrip("\n"),
        "sshkeys": quote(keys.read_text(), safe="") if keys else None,
        **pairs(set_),
    }
    made = session.client.call("POST", f"{session.node}/storage/{name}/answer-disk", parameters)
    session.say(f"made {made}")


@verb(app)
def allocate(
    session: Session,
    name: str = STORAGE,
    vmid: int = typer.Argument(..., help="Guest that it is for.", autocompletion=completion.vmids),
    amount: str = typer.Argument(..., metavar="SIZE", help="Its size, such as 32G."),
    filename: str = typer.Argument(..., help="Its name, such as vm-100-disk-1.qcow2."),
    format_: str | None = typer.Option(None, "--format", help="raw, qcow2 or vmdk.", autocompletion=FORMATS),
) -> None:
    """Make an empty disk image.

    Example:  orrery storage allocate local 100 32G vm-100-disk-1.qcow2
    """
    where = f"{session.node}/storage/{name}/content"
    session.dump(session.post(where, vmid=vmid, size=amount, filename=filename, format=format_))


@verb(app, "delete")
def delete_volume(session: Session, volume: str = VOLUME) -> None:
    """Delete a volume.

    Example:  orrery storage delete local:iso/debian.iso
    """
    storage, colon, _ = volume.partition(":")
    if not colon:
        raise Failure(f"'{volume}' is not STORAGE:NAME")
    session.follow(session.delete(f"{session.node}/storage/{storage}/content/{volume}"))


def _checksum(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    algorithm, colon, value = text.partition(":")
    if not colon:
        raise Failure(f"'{text}' is not ALGORITHM:HEX")
    return {"checksum-algorithm": algorithm, "checksum": value}
