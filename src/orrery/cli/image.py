# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery image`: what guests can be made from."""

from typing import Any

import typer

from orrery.cli import completion
from orrery.cli.verbs import Columns, Session, moment, size, verb
from orrery.errors import Failure

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

IMAGE = typer.Argument(
    ..., help="Name in the catalogue (debian-12), or of an OCI image (docker.io/library/nginx:1.27)."
)
STORAGE = typer.Option("local", help="Where to put it.", autocompletion=completion.storages)
MACHINE = typer.Option(False, "--vm", help="For virtual machines; for containers without it.")
WAIT = typer.Option(True, help="Wait for the end of the task.")


@verb(app, "list")
def list_(
    session: Session,
    vm: bool = typer.Option(False, "--vm", help="Only those for virtual machines."),
    ct: bool = typer.Option(False, "--ct", help="Only those for containers."),
    check: bool = typer.Option(
        False, "--check", help="Ask the sources what is newer, and image servers what they have."
    ),
) -> None:
    """List what guests can be made from, and what of it is here.

    Example:  orrery image list --check
    """
    if vm and ct:
        raise Failure("--vm and --ct exclude each other; without either all images are listed")
    kind = "machine" if vm else "container" if ct else None
    columns: Columns = {
        "IMAGE": "image",
        "FOR": "type",
        "TITLE": "title",
        "SOURCE": "source",
        "STATE": "state",
        "VOLUME": "volid",
        "SIZE": size("size"),
        "FETCHED": moment("fetched"),
    }
    session.table(session.get(f"{session.node}/images", type=kind, check=check or None), columns)


@verb(app)
def pull(
    session: Session,
    image: str = IMAGE,
    storage: str = STORAGE,
    vm: bool = MACHINE,
    filename: str | None = typer.Option(None, help="Name of the file of an OCI image."),
    force: bool = typer.Option(False, "--force", help="Also when it is here and nothing newer is known."),
    wait: bool = WAIT,
) -> None:
    """Fetch an image; one that is here is replaced when there is a newer one.

    Example:  orrery image pull debian-12 --vm
    """
    _fetch(session, wait=wait, image=image, storage=storage, type=_kind(vm), filename=filename, force=force or None)


@verb(app)
def build(
    session: Session,
    image: str = typer.Argument(..., help="Name in the catalogue, such as debian-12."),
    storage: str = STORAGE,
    vm: bool = MACHINE,
    ssh: bool = typer.Option(False, "--ssh", help="With a server for SSH, which disks of machines have anyway."),
    wait: bool = WAIT,
) -> None:
    """Build a template of containers, or a disk of machines, anew from the distribution's packages.

    Example:  orrery image build debian-12 --ssh
    """
    name = f"{image}-built" if vm and not image.endswith("-built") else image
    _fetch(session, wait=wait, image=name, storage=storage, type=_kind(vm), force=True, ssh=ssh or None)


@verb(app)
def remove(session: Session, volume: str = typer.Argument(..., help="Volume of the image, STORAGE:NAME.")) -> None:
    """Remove an image from its storage; guests that were made from it have copies.

    Example:  orrery image remove local:vztmpl/debian-12_amd64.tar.zst
    """
    session.follow(session.delete(f"{session.node}/images/{volume}"))


@verb(app)
def tags(
    session: Session, repository: str = typer.Argument(..., help="Repository, such as docker.io/library/nginx.")
) -> None:
    """List the tags of a repository of OCI images."""
    found = session.get(f"{session.node}/query-oci-repo-tags", reference=repository)
    session.table([{"tag": tag} for tag in found], {"TAG": "tag"})


@verb(app)
def sources(
    session: Session,
    mirrors: str | None = typer.Option(None, help="Beginnings of addresses to read elsewhere: OLD=NEW,OLD=NEW."),
    simplestreams: str | None = typer.Option(None, help="Addresses of image servers, separated by commas."),
    insecure: str | None = typer.Option(None, "--insecure-registries", help="Registries spoken to by HTTP: HOST:PORT."),
) -> None:
    """Show, or set, where images come from besides where the catalogue says.

    Example:  orrery image sources --simplestreams https://images.example.org
    """
    changes = {"mirrors": mirrors, "simplestreams": simplestreams, "insecure_registries": insecure}
    if any(text is not None for text in changes.values()):
        session.put("/cluster/images", **changes)
    session.facts(session.get("/cluster/images"))


def _kind(vm: bool) -> str:
    return "machine" if vm else "container"


def _fetch(session: Session, *, wait: bool, **parameters: Any) -> None:
    session.follow(session.post(f"{session.node}/images", **parameters), wait=wait)
