# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images: the catalogue for both kinds of guests, what was fetched of it, and where it comes from."""

from typing import Annotated, Any, Final

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Text
from orrery.api.parameters import Boolean, NodeParams, NoParams, Params, StorageId
from orrery.api.volumerights import may_read, named_volume, require_read, require_remove
from orrery.errors import Forbidden, OrreryError, ParameterError
from orrery.model.images import (
    CATALOGUE,
    KINDS,
    ImageEntry,
    Kind,
    Reference,
    Sources,
    looks_like_reference,
    oci_volume,
)
from orrery.model.volume import VolumeId, parse_volname
from orrery.operations.image_oci import OciImport, OciPull
from orrery.operations.image_pull import PullImage, RemoveImage, newest_mark
from orrery.operations.image_records import Present, entries, image_volume, present, required_entry
from orrery.operations.image_workshop import OPTIONS, Web
from orrery.store.documents import read_document, update_document
from orrery.tasks.operation import Operation

IMAGES: Final = "/nodes/{node}/images"
TEMPLATES: Final = Perm("/storage/{storage}", ("Datastore.AllocateTemplate",))
_TYPE = Enum(*KINDS, doc="What is made from it: containers or machines.")
ImageName = Annotated[str, Text(min_length=1, max_length=512, doc="Name in the catalogue, or of an OCI image.")]
_KIND: Final[dict[str, Kind]] = {"container": "container", "machine": "machine"}


class ListImages(NodeParams):
    """Which images to list."""

    type: Annotated[str, _TYPE] | None = None
    check: Boolean = Field(
        default=False, description="Ask the sources what is newer, and the image servers what they have besides."
    )


class FetchImage(NodeParams):
    """Which image to fetch or build."""

    image: ImageName
    storage: StorageId
    type: Annotated[str, _TYPE] = "container"
    filename: Annotated[str, Text(max_length=255, doc="Name of the file of an OCI image.")] | None = None
    force: Boolean = Field(default=False, description="Also when it is there and nothing newer is known.")
    ssh: Boolean = Field(default=False, description="Put a server for SSH into an image that is built.")


class OneImage(NodeParams):
    """One image on a storage."""

    volume: Annotated[str, Text(max_length=1024, doc="Volume id of the image.")]


class SetSources(Params):
    """Where images come from; an empty text is as good as none."""

    mirrors: (
        Annotated[str, Text(max_length=16384, doc="Beginnings of addresses to read elsewhere: OLD=NEW,OLD=NEW.")] | None
    ) = None
    simplestreams: Annotated[str, Text(max_length=4096, doc="Addresses of image servers.")] | None = None
    insecure_registries: (
        Annotated[str, Text(max_length=4096, doc="Registries that are spoken to by HTTP: HOST:PORT.")] | None
    ) = None


@endpoint(
    "GET", IMAGES, params=ListImages, permission=Everyone(), returns=list[dict[str, Any]], proxy="node", waits=True
)
def list_images(call: Call, p: ListImages) -> list[dict[str, Any]]:
    """What guests can be made from, and what of it is on the storages."""
    ctx = call.services.context
    if p.check:
        require_asking(call)
    kinds = KINDS if p.type is None else (_KIND[p.type],)
    there = [found for found in present(ctx, kinds) if _visible(call, found)]
    listed = entries(ctx) if p.check else CATALOGUE
    rows = []
    for entry in listed:
        if entry.kind in kinds:
            found = [each for each in there if _is_of(each, entry)]
            rows += [_row(call, entry, each, check=p.check) for each in found] or [_row(call, entry, None, check=False)]
    rows += [_oci_row(each) for each in there if each.record is not None and each.record.source == "oci"]
    return rows


def require_asking(call: Call) -> None:
    """Raises `Forbidden` for who may fetch no image: the node asks other servers for those alone who may."""
    names = call.services.context.storages.names()
    if not any(call.allowed(f"/storage/{name}", "Datastore.AllocateTemplate") for name in names):
        raise Forbidden("Permission check failed (/storage, Datastore.AllocateTemplate)")


def _visible(call: Call, found: Present) -> bool:
    volume = VolumeId.parse(found.volid)
    return may_read(call, volume.storage, parse_volname(volume.name))


def _is_of(found: Present, entry: ImageEntry) -> bool:
    record = found.record
    return record is not None and (record.alias, record.kind) == (entry.alias, entry.kind)


def _row(call: Call, entry: ImageEntry, found: Present | None, *, check: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image": entry.alias,
        "type": entry.kind,
        "title": entry.title,
        "os": entry.system,
        "release": entry.release,
        "source": entry.source.name,
        "state": "available",
        "also": list(entry.also),
    }
    if entry.default_user:
        row["user"] = entry.default_user
    if found is not None and found.record is not None:
        row |= {"state": "fetched", "volid": found.volid, "size": found.size, "fetched": found.record.fetched}
        if check:
            row["state"] = _state(call, entry, found.record.mark)
    return row


def _state(call: Call, entry: ImageEntry, mark: str) -> str:
    """Whether there is something newer; an entry whose source does not answer counts as fetched, no more is known."""
    try:
        newest = newest_mark(Web(call.services.store), entry.source, entry.kind)
    except OrreryError:
        return "fetched"
    return "fetched" if newest in ("", mark) else "outdated"


def _oci_row(found: Present) -> dict[str, Any]:
    record = found.record
    assert record is not None  # noqa: S101  (the caller looked)
    return {
        "image": record.alias,
        "type": record.kind,
        "title": record.origin,
        "source": record.source,
        "state": "fetched",
        "volid": found.volid,
        "size": found.size,
        "fetched": record.fetched,
    }


@endpoint("POST", IMAGES, params=FetchImage, permission=TEMPLATES, returns=str, task=True, proxy="node", waits=True)
def fetch_image(call: Call, p: FetchImage) -> Any:
    """Fetch an image, or build it; one that is there is replaced when there is a newer one."""
    return call.start(fetching(call, p.image, _KIND[p.type], p.storage, p.filename, force=p.force, ssh=p.ssh))


def fetching(
    call: Call, image: str, kind: Kind, storage: str, filename: str | None = None, *, force: bool, ssh: bool = False
) -> Operation:
    """The operation that fetches an image by whatever name. Raises `ParameterError`, `NotFound`, `Forbidden`."""
    if kind == "container" and ":vztmpl/" in image:
        volume, _ = image_volume(image)
        require_read(call, volume.storage, parse_volname(volume.name))
        stem = volume.name.partition("/")[2].removesuffix(".tar")
        return OciImport(storage, image, _oci_name(filename or f"{stem}_root"))
    if kind == "container" and looks_like_reference(image):
        call.require(f"/nodes/{call.services.node}", "Sys.AccessNetwork")
        reference = parse_reference("image", image)
        return OciPull(storage, str(reference), _oci_name(filename or reference.filename))
    entry = required_entry(call.services.context, image, kind)
    return PullImage(storage, entry.alias, entry.kind, entry.volume, force=force, ssh=ssh)


def parse_reference(parameter: str, text: str) -> Reference:
    """An image in a registry. Raises `ParameterError`."""
    try:
        return Reference.parse(text)
    except ValueError as error:
        raise ParameterError({parameter: f"invalid format - {error}"}) from error


def _oci_name(filename: str) -> str:
    try:
        return oci_volume(filename)
    except ValueError as error:
        raise ParameterError({"filename": str(error)}) from error


@endpoint("DELETE", IMAGES + "/{volume}", params=OneImage, permission=Everyone(), returns=str, task=True, proxy="node")
def remove_image(call: Call, p: OneImage) -> Any:
    """Remove an image from a storage. Guests that were made from it have copies."""
    volume, parsed = named_volume(p.volume.partition(":")[0], p.volume)
    image_volume(str(volume))
    require_remove(call, volume.storage, parsed)
    return call.start(RemoveImage(str(volume)))


# --- where from


@endpoint("GET", OPTIONS, params=NoParams, permission=Perm("/", ("Sys.Audit",)), returns=dict[str, Any])
def read_sources(call: Call, p: NoParams) -> dict[str, Any]:
    """Where images come from, besides where the catalogue says."""
    return dict(read_document(call.services.store, OPTIONS) or {})


@endpoint("PUT", OPTIONS, params=SetSources, permission=Perm("/", ("Sys.Modify",)), returns=None)
def set_sources(call: Call, p: SetSources) -> None:
    """Say where images come from."""
    sent = {
        name: text
        for name, text in (
            ("mirrors", p.mirrors),
            ("simplestreams", p.simplestreams),
            ("insecure-registries", p.insecure_registries),
        )
        if text is not None
    }
    try:
        Sources.parse(sent)
    except ValueError as error:
        name, _, fault = str(error).partition(": ")
        raise ParameterError({name: fault}) from error

    def change(document: dict[str, str] | None) -> dict[str, str]:
        return {name: text for name, text in {**(document or {}), **sent}.items() if text}

    update_document(call.services.store, OPTIONS, change)
