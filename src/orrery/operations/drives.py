# SPDX-License-Identifier: AGPL-3.0-or-later
"""What stands in a drive's option, and how a new drive gets its volume.

`local:32` asks for a new image of 32 GiB; `local:0,import-from=VOLUME` for a copy of a volume; `none` and `cdrom` mean
a drive without medium; everything else names a volume that exists.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from orrery.drivers.qemu.devices.firmware import variables_template
from orrery.drivers.qemu.plan import VolumeFile
from orrery.drivers.storage.base import StorageDriver, VolumeInfo
from orrery.errors import AlreadyExists, Failure, NotFound, ParameterError
from orrery.model import cloudinit
from orrery.model.disksize import format_size
from orrery.model.guest import GuestConfig
from orrery.model.machine import find_option, is_disk
from orrery.model.propertystring import PropertyString
from orrery.model.values import Value
from orrery.model.volume import VolumeId, image_name, parse_volname
from orrery.operations.context import NodeContext
from orrery.store.guests import find_guest
from orrery.system.files import takes_direct
from orrery.tasks.operation import TaskHandle
from orrery.tasks.revert import Log, undo

NO_MEDIUM = ("none", "cdrom")
CLOUDINIT_SIZE = 4 << 20
"""Bytes of a cloud-init medium, whatever it says."""
UNUSED = "unused"
KIB = 1 << 10
GIB = 1 << 30
_NEW = re.compile(r"([A-Za-z][A-Za-z0-9._-]*):([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Drive:
    """A drive's option, taken apart. `size` is in bytes and set for a new image only; `source` for an imported one.

    `cloudinit`: its medium says what the machine is told, and is made by `orrery.operations.cloudinit`.
    """

    key: str
    values: Mapping[str, Value]
    storage: str | None = None
    size: int | None = None
    source: VolumeId | None = None
    volume: VolumeId | None = None
    cloudinit: bool = False

    @property
    def is_new(self) -> bool:
        """Whether a volume has to be made for it."""
        return self.storage is not None

    @property
    def is_cdrom(self) -> bool:
        """Whether it is an optical drive."""
        return self.values.get("media") == "cdrom" or str(self.values["file"]) in NO_MEDIUM or self.cloudinit


def is_drive(key: str) -> bool:
    """Whether an option is a drive: a disk on a bus, or the firmware's variables."""
    return key not in ("cdrom", "tpmstate0") and is_disk(key)


def names_volume(key: str) -> bool:
    """Whether an option names a volume: a drive, or a disk that is unused."""
    return is_drive(key) or key.startswith(UNUSED)


def drive_schema(key: str) -> PropertyString:
    """The property string of a drive's option."""
    option = find_option(key)
    if option is None or option.properties is None or "file" not in option.properties.properties:
        raise ParameterError({key: "is no drive"})
    return option.properties


def parse_drive(key: str, text: str) -> Drive:
    """Takes a drive's option apart. Raises `ParameterError` naming the option."""
    try:
        values = drive_schema(key).parse(text, key)
    except ValueError as error:
        raise ParameterError({key: f"invalid format - {error}"}) from error
    file = str(values["file"])
    if file in NO_MEDIUM or file.startswith("/"):
        return Drive(key, values)
    source = values.get("import-from")
    if cloudinit.is_volume(file):
        return _parse_cloudinit(key, values, _volume(key, file))
    if new := _NEW.fullmatch(file):
        size = int(float(new[2]) * GIB) // KIB * KIB
        if not size and source is None and key != "efidisk0":
            raise ParameterError({key: "a new disk needs a size in GiB, or import-from"})
        return Drive(key, values, storage=new[1], size=size, source=_volume(key, str(source)) if source else None)
    if source is not None:
        raise ParameterError({key: "import-from needs a new volume: STORAGE:0,import-from=VOLUME"})
    return Drive(key, values, volume=_volume(key, file))


def _parse_cloudinit(key: str, values: Mapping[str, Value], volume: VolumeId) -> Drive:
    if not cloudinit.is_drive_key(key):
        raise ParameterError({key: "a cloud-init drive is on ide, sata or scsi"})
    if values.get("media", "cdrom") != "cdrom":
        raise ParameterError({key: "a cloud-init drive is an optical drive: media=cdrom"})
    if volume.name == cloudinit.DRIVE:
        return Drive(key, values, storage=volume.storage, cloudinit=True)
    return Drive(key, values, volume=volume, cloudinit=True)


def _volume(key: str, text: str) -> VolumeId:
    try:
        return VolumeId.parse(text)
    except ValueError as error:
        raise ParameterError({key: f"invalid format - {error}"}) from error


def drives(options: Mapping[str, str]) -> list[Drive]:
    """All drives among a machine's options, in the order of their names."""
    return [parse_drive(key, options[key]) for key in sorted(options) if is_drive(key)]


def check_drive(ctx: NodeContext, vmid: int, drive: Drive) -> None:
    """Raises what would keep the drive from being made or used; no side effect."""
    if drive.key.startswith(UNUSED) and drive.volume is None:
        raise ParameterError({drive.key: "an unused disk is an image that exists: STORAGE:VOLUME"})
    if drive.storage is not None:
        driver = ctx.storages.get(drive.storage)
        if "images" not in driver.contents:
            raise ParameterError({drive.key: f"storage '{drive.storage}' does not support content type 'images'"})
        if (wanted := drive.values.get("format")) and wanted not in driver.formats:
            raise ParameterError({drive.key: f"storage '{drive.storage}' has no images of format '{wanted}'"})
        if drive.source is not None:
            source, name = ctx.storages.volume(str(drive.source))
            if source.info(name).content not in ("images", "import"):
                raise ParameterError({drive.key: f"'{drive.source}' is not a disk image"})
    elif drive.cloudinit and drive.volume is not None:
        # It need not be there: the next start makes it.
        ctx.storages.get(drive.volume.storage)
        if str(drive.volume) not in owned_volumes(vmid, [str(drive.volume)]):
            raise ParameterError({drive.key: f"volume '{drive.volume}' does not belong to guest {vmid}"})
    elif drive.volume is not None:
        info = _existing(ctx, drive)
        if info.content == "images" and info.vmid != vmid:
            raise ParameterError({drive.key: f"volume '{drive.volume}' belongs to guest {info.vmid}, not to {vmid}"})
        if info.content == "iso" and not drive.is_cdrom:
            raise ParameterError({drive.key: f"'{drive.volume}' is an optical medium: add media=cdrom"})
        if info.content not in ("images", "iso"):
            raise ParameterError({drive.key: f"'{drive.volume}' is neither a disk image nor an optical medium"})


def _existing(ctx: NodeContext, drive: Drive) -> VolumeInfo:
    storage, name = ctx.storages.volume(str(drive.volume))
    try:
        return storage.info(name)
    except NotFound as error:
        raise ParameterError({drive.key: error.message}) from error


@contextlib.contextmanager
def undone_unless_taken(task: TaskHandle, undo: str, /, **arguments: object) -> Iterator[None]:
    """Journals how to undo what the block makes, and forgets it when the name turns out to be somebody else's."""
    record = task.before(undo, **arguments)
    try:
        yield
    except AlreadyExists:
        task.kept(record)
        raise


def make_drive(ctx: NodeContext, task: TaskHandle, vmid: int, drive: Drive) -> str:
    """Makes the volume of a new drive, undone if the task fails; the drive's final option text."""
    if drive.storage is None:
        return _final(drive, str(drive.values["file"]), _known_size(ctx, drive))
    storage = ctx.storages.get(drive.storage)
    if drive.cloudinit:
        return _make_cloudinit(task, vmid, drive, storage)
    name = storage.next_name(vmid, str(drive.values.get("format") or storage.formats[0]))
    volume = f"{drive.storage}:{name}"
    with undone_unless_taken(task, "guest.drop_volume", vmid=vmid, volume=volume):
        _fill(ctx, task, drive, storage, name)
    task.log(f"{drive.key}: made {volume}")
    return _final(drive, volume, storage.info(name).size)


def _make_cloudinit(task: TaskHandle, vmid: int, drive: Drive, storage: StorageDriver) -> str:
    """An empty medium, or the one that is there from before; what it says is written when all options are known."""
    name = image_name(vmid, f"vm-{vmid}-cloudinit.{drive.values.get('format') or storage.formats[0]}")
    volume = f"{storage.name}:{name}"
    with contextlib.suppress(AlreadyExists), undone_unless_taken(task, "guest.drop_volume", vmid=vmid, volume=volume):
        storage.allocate(name, CLOUDINIT_SIZE)
    return _final(drive, volume, CLOUDINIT_SIZE)


def _fill(ctx: NodeContext, task: TaskHandle, drive: Drive, storage: StorageDriver, name: str) -> None:
    """Makes the volume `name`: firmware variables, a copy of another volume, or an empty image."""
    size = drive.size or 0
    if drive.key == "efidisk0":
        kind, enrolled = str(drive.values.get("efitype", "2m")), bool(drive.values.get("pre-enrolled-keys"))
        storage.copy_in(variables_template(kind, pre_enrolled_keys=enrolled), "raw", name)
    elif drive.source is not None:
        source, source_name = ctx.storages.volume(str(drive.source))
        info = source.info(source_name)
        task.log(f"importing {drive.source} as {drive.storage}:{name}")
        storage.copy_in(
            source.path(source_name),
            info.format,
            name,
            lambda done, total: task.progress(done, total, "bytes", "import"),
        )
        if size > storage.info(name).size:
            storage.resize(name, size)
    else:
        storage.allocate(name, size)


def _known_size(ctx: NodeContext, drive: Drive) -> int | None:
    if drive.volume is None:
        return None
    return CLOUDINIT_SIZE if drive.cloudinit else int(_existing(ctx, drive).size)


def _final(drive: Drive, file: str, size: int | None) -> str:
    values = {key: value for key, value in drive.values.items() if key not in ("import-from", "format", "size")}
    values["file"] = "none" if file == "cdrom" else file
    if file in NO_MEDIUM or drive.cloudinit:
        values["media"] = "cdrom"
    if file not in NO_MEDIUM and size is not None:
        values["size"] = format_size(size)
    return drive_schema(drive.key).print(values)


def owned_volumes(vmid: int, options: Iterable[str]) -> list[str]:
    """Volume ids among option texts that are images of this very guest: what goes when the guest goes."""
    found: list[str] = []
    for text in options:
        file = text.split(",", 1)[0].removeprefix("file=").removeprefix("volume=")
        if file in found or file.startswith("/"):
            continue
        try:
            volume = VolumeId.parse(file)
            parsed = parse_volname(volume.name)
        except ValueError:
            continue
        if parsed.content == "images" and parsed.vmid == vmid:
            found.append(file)
    return found


def volume_file(ctx: NodeContext, drive: Drive) -> VolumeFile | None:
    """The file behind a drive, None for one without medium. Raises `NotFound`."""
    if drive.volume is None:
        return None
    storage, name = ctx.storages.volume(str(drive.volume))
    info = storage.info(name)
    format_ = "raw" if info.content == "iso" else info.format
    path = storage.path(name)
    return VolumeFile(path, format_, read_only=drive.is_cdrom, direct=takes_direct(path))


def texts(config: GuestConfig) -> list[str]:
    """Every option text in which a volume may be named: current, pending and of snapshots."""
    found = [*config.options.values(), *config.pending.values()]
    for snapshot in config.snapshots.values():
        found += snapshot.options.values()
    return found


@undo("guest.drop_volume")
def drop_volume(ctx: NodeContext, log: Log, *, vmid: int, volume: str) -> None:
    """Removes a volume of a guest, one that never came to be included, unless the guest's configuration names it."""
    found = find_guest(ctx.store, vmid)
    if found is not None and volume in owned_volumes(vmid, texts(found.record.config)):
        return
    storage, name = ctx.storages.volume(volume)
    storage.free(name)
    log(f"removed {volume}")


def next_unused(options: Mapping[str, str]) -> str:
    """The first free `unusedN`. Raises `Failure` when all are taken."""
    for index in range(256):
        if f"unused{index}" not in options:
            return f"unused{index}"
    raise Failure("too many unused volumes: remove some first")
