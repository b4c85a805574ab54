# SPDX-License-Identifier: AGPL-3.0-or-later
"""/nodes/{node}/storage/{storage}/content: the volumes of a storage."""

from typing import Annotated, Any, Final

from pydantic import Field

from orrery.access.rules import Everyone, Perm, RootOnly
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Format, Int, Pattern, Text
from orrery.api.parameters import Boolean, Node, StorageParams, Vmid
from orrery.api.routes.storage_status import LOOK
from orrery.api.volumerights import may_read, named_volume, require_read, require_remove
from orrery.drivers.storage.base import StorageDriver, VolumeInfo
from orrery.drivers.storage.registry import require_content
from orrery.errors import Failure, NotSupported, ParameterError
from orrery.model.volume import IMAGE_FORMATS, ParsedVolume, VolumeId, content_for, image_name, parse_volname
from orrery.operations.guest_lock import guest_lock
from orrery.operations.volume import CopyVolume, DeleteVolume

CONTENT = "/nodes/{node}/storage/{storage}/content"
VOLUME = CONTENT + "/{volume}"
LOCK_SECONDS: Final = 10.0
_UNITS: Final = {"": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_PROTECTED_BY_USERS: Final = 5


class ListContent(StorageParams):
    """Which volumes to list."""

    content: Annotated[str, Format("pve-storage-content", doc="Only volumes of this kind.")] | None = None
    vmid: Vmid | None = Field(default=None, description="Only volumes of this guest.")


class Allocate(StorageParams):
    """A new, empty disk image."""

    filename: Annotated[str, Text(max_length=255, doc="Name of the image, `vm-VMID-…`.")]
    size: Annotated[str, Pattern(r"\d{1,15}[MG]?", doc="Size in KiB, or with M in MiB, with G in GiB.")]
    vmid: Vmid
    format: Annotated[str, Enum("raw", "qcow2", "subvol", "vmdk", requires="size", doc="Format.")] | None = None


class OneVolume(StorageParams):
    """One volume, by its name or its whole id."""

    volume: Annotated[str, Text(max_length=1024, doc="Volume, with or without its storage's name.")]


class Copy(OneVolume):
    target: Annotated[str, Text(max_length=1024, doc="Volume id of the copy.")]
    target_node: Node | None = Field(default=None, alias="target_node", description="Node of the copy.")


class UpdateVolume(OneVolume):
    notes: Annotated[str, Text(doc="The new notes.")] | None = None
    protected: Boolean | None = Field(default=None, description="Keep the volume from being removed.")


class DeleteVolumeParams(OneVolume):
    delay: (
        Annotated[int, Int(minimum=1, maximum=30, doc="Wait so many seconds; null when it is done by then.")] | None
    ) = None


@endpoint("GET", CONTENT, params=ListContent, permission=LOOK, returns=list[dict[str, Any]], proxy="node", waits=True)
def list_content(call: Call, p: ListContent) -> list[dict[str, Any]]:
    """Volumes that the caller may see."""
    driver = call.services.context.storages.get(p.storage)
    wanted = driver.contents if p.content is None else {p.content}
    kinds = {guest.vmid: guest.kind for guest in call.services.collector.facts}
    rows = []
    for info in driver.list(wanted, p.vmid):
        parsed = parse_volname(info.volid.partition(":")[2])
        content = content_for(parsed, kinds.get(info.vmid or 0))
        if p.content in (None, content) and may_read(call, p.storage, parsed):
            rows.append(_row(info, content))
    return rows


def _row(info: VolumeInfo, content: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "volid": info.volid,
        "content": content,
        "format": info.format,
        "size": info.size,
        "used": info.used,
        "ctime": info.ctime,
    }
    optional = {"vmid": info.vmid, "parent": info.parent, "notes": info.notes, "protected": int(info.protected) or None}
    return row | {name: value for name, value in optional.items() if value is not None}


@endpoint(
    "POST",
    CONTENT,
    params=Allocate,
    permission=Perm("/storage/{storage}", ("Datastore.AllocateSpace",)),
    returns=str,
    proxy="node",
    waits=True,
)
def allocate(call: Call, p: Allocate) -> str:
    """Make an empty disk image for a guest; its volume id."""
    driver = call.services.context.storages.get(p.storage)
    name = _new_image(driver, p)
    kinds = {guest.vmid: guest.kind for guest in call.services.collector.facts}
    require_content(driver, content_for(parse_volname(name), kinds.get(p.vmid)))
    number, unit = (p.size[:-1], p.size[-1]) if p.size[-1] in "MG" else (p.size, "")
    # Whoever works on the guest may just be choosing the same name, or removing all that is the guest's.
    with call.services.journal.locked(guest_lock(p.vmid), wait=LOCK_SECONDS):
        driver.activate()
        driver.allocate(name, int(number) * _UNITS[unit])
    return f"{p.storage}:{name}"


def _new_image(driver: StorageDriver, p: Allocate) -> str:
    """The volume's name. The format may come from the file name's ending; one that has none gets it."""
    stem, dot, ending = p.filename.rpartition(".")
    if not dot or ending not in IMAGE_FORMATS:
        stem, ending = p.filename, p.format or driver.formats[0]
    if p.format is not None and p.format != ending:
        raise ParameterError({"format": f"different storage formats ('{ending}' in the name, '{p.format}' asked for)"})
    try:
        return image_name(p.vmid, f"{stem}.{ending}")
    except ValueError as error:
        raise ParameterError({"filename": str(error)}) from error


@endpoint("GET", VOLUME, params=OneVolume, permission=Everyone(), returns=dict[str, Any], proxy="node", waits=True)
def read_volume(call: Call, p: OneVolume) -> dict[str, Any]:
    """Size, format and path of a volume."""
    driver, volume, _ = _volume(call, p)
    info = driver.info(volume.name)
    row: dict[str, Any] = {
        "path": str(driver.path(volume.name)),
        "size": info.size,
        "used": info.used,
        "format": info.format,
    }
    if info.content == "backup":
        row["protected"] = int(info.protected)
        if info.notes is not None:
            row["notes"] = info.notes
    return row


@endpoint("PUT", VOLUME, params=UpdateVolume, permission=Everyone(), proxy="node", waits=True)
def update_volume(call: Call, p: UpdateVolume) -> None:
    """Change the notes or the protection of a backup."""
    driver, volume, parsed = _volume(call, p)
    if p.protected:
        _check_protected(call, driver, volume, parsed)
    driver.set_attributes(volume.name, notes=p.notes, protected=p.protected)


def _check_protected(call: Call, driver: StorageDriver, volume: VolumeId, parsed: ParsedVolume) -> None:
    """Raises Failure when the guest has as many protected backups there as the storage allows."""
    options = call.services.context.storages.definition(volume.storage)
    unlimited = call.allowed(f"/storage/{volume.storage}", "Datastore.Allocate")
    limit = int(options.get("max-protected-backups", -1 if unlimited else _PROTECTED_BY_USERS))
    if limit < 0 or parsed.vmid is None or parsed.content != "backup":
        return
    protected = {info.volid for info in driver.list(("backup",), parsed.vmid) if info.protected}
    if len(protected - {str(volume)}) >= limit:
        raise Failure(f"guest {parsed.vmid} has {limit} protected backups on storage '{volume.storage}' already")


@endpoint("POST", VOLUME, params=Copy, permission=RootOnly(), returns=str, task=True, proxy="node", waits=True)
def copy_volume(call: Call, p: Copy) -> Any:
    """Copy a volume."""
    _, volume, _ = _volume(call, p)
    if p.target_node not in (None, call.services.node, "localhost"):
        raise NotSupported("volumes cannot be copied to other nodes yet")
    target = p.target if ":" in p.target else f"{p.storage}:{p.target}"
    return call.start(CopyVolume(str(volume), target))


@endpoint(
    "DELETE",
    VOLUME,
    params=DeleteVolumeParams,
    permission=Everyone(),
    returns=str | None,
    task=True,
    proxy="node",
    waits=True,
)
def delete_volume(call: Call, p: DeleteVolumeParams) -> Any:
    """Remove a volume."""
    volume, parsed = named_volume(p.storage, p.volume)
    require_remove(call, p.storage, parsed)
    return call.start(DeleteVolume(str(volume)), background_delay=p.delay or 0)


def _volume(call: Call, p: OneVolume) -> tuple[StorageDriver, VolumeId, ParsedVolume]:
    volume, parsed = named_volume(p.storage, p.volume)
    require_read(call, p.storage, parsed)
    return call.services.context.storages.get(p.storage), volume, parsed
