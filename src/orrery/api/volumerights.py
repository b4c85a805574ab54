# SPDX-License-Identifier: AGPL-3.0-or-later
"""May the caller see, change or remove a volume? By its storage, its kind, and the guest that owns it."""

from orrery.api.call import Call
from orrery.errors import Failure, Forbidden, ParameterError
from orrery.model.volume import ParsedVolume, VolumeId, parse_volname

_MEDIA = ("iso", "vztmpl", "import")


def named_volume(storage: str, text: str) -> tuple[VolumeId, ParsedVolume]:
    """The volume that a path means: a name on `storage`, or a whole volume id. Raises ParameterError, Failure."""
    try:
        volume = VolumeId.parse(text) if ":" in text else VolumeId(storage, text)
        parsed = parse_volname(volume.name)
    except ValueError as error:
        raise Failure(f"unable to parse volume ID '{storage}:{text}': {error}") from error
    if volume.storage != storage:
        raise ParameterError({"storage": f"storage ID mismatch ('{volume.storage}' != '{storage}')"})
    return volume, parsed


def may_read(call: Call, storage: str, volume: ParsedVolume) -> bool:
    """Whether the caller may see a volume and use it.

    Who may configure the storage may see everything on it. Media are for all who may look at the storage; a guest's
    disks are for those who may configure its disks, its backups for those who may back it up. Snippets and foreign
    files are for the storage's administrators.
    """
    place = f"/storage/{storage}"
    if call.allowed(place, "Datastore.Allocate"):
        return True
    if volume.content in _MEDIA:
        return call.allowed(place, "Datastore.Audit", "Datastore.AllocateSpace", any=True)
    if volume.vmid is None:
        return False
    guest = f"/vms/{volume.vmid}"
    if volume.content == "backup":
        return call.allowed(place, "Datastore.AllocateSpace") and call.allowed(guest, "VM.Backup")
    return call.allowed(place, "Datastore.Audit", "Datastore.AllocateSpace", any=True) and call.allowed(
        guest, "VM.Config.Disk"
    )


def require_read(call: Call, storage: str, volume: ParsedVolume) -> None:
    """Raises `Forbidden` unless `may_read`."""
    if not may_read(call, storage, volume):
        raise Forbidden(f"Permission check failed (/storage/{storage}, Datastore.Allocate)")


def require_remove(call: Call, storage: str, volume: ParsedVolume) -> None:
    """Raises `Forbidden` unless the caller may remove a volume: a storage's administrator, or a backup's owner."""
    require_read(call, storage, volume)
    if volume.content == "backup" and volume.vmid is not None:
        call.require(f"/storage/{storage}", "Datastore.AllocateSpace")
        call.require(f"/vms/{volume.vmid}", "VM.Backup")
        return
    call.require(f"/storage/{storage}", "Datastore.Allocate")
