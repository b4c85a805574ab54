# SPDX-License-Identifier: AGPL-3.0-or-later
"""The volumes of a container: what its mount options ask for, how new ones are made, and its tree put together.

`local:8` asks for a new volume of 8 GiB, `local:0` for a plain folder without a limit; a path is a folder or a device
of the host; everything else names a volume that exists.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from orrery.drivers.storage import filesystem
from orrery.drivers.storage.base import StorageDriver, VolumeInfo
from orrery.errors import Failure, NotFound, ParameterError
from orrery.model.container import is_mount
from orrery.model.container_devices import MountPoint
from orrery.model.container_devices import mounts as parse_mounts
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.disksize import format_size
from orrery.model.volume import SUBVOL
from orrery.operations.context import NodeContext
from orrery.operations.drives import UNUSED, undone_unless_taken
from orrery.system import livemounts, mounts
from orrery.system.mounts import BlockDevice, ContainerMount, Folder, LoopImage, Source
from orrery.tasks.operation import TaskHandle

ROOT_SIZE = 4
"""GiB of a root file system when nobody says."""

SETUP_PLACES = ("/etc", "/root")
"""Where the set-up before a start writes; what is mounted elsewhere is not needed for it."""


def names_volume(key: str) -> bool:
    """Whether an option names a volume: the root, a mount point, or a volume that is unused."""
    return is_mount(key) or key.startswith(UNUSED)


def read_mount(key: str, text: str) -> MountPoint:
    """One mount option, or an unused volume. Raises `ParameterError` naming the option."""
    if key.startswith(UNUSED):
        found = next(parse_mounts({"rootfs": text}))
        return MountPoint(key=key, source=found.source, mp="", volume=found.volume, new=found.new)
    return next(parse_mounts({key: text}))


def check_mount(ctx: NodeContext, vmid: int, key: str, text: str) -> None:
    """Raises what would keep the volume, folder or device from being made or used; no side effect."""
    mount = read_mount(key, text)
    if mount.path is not None:
        check_host_path(mount)
    elif mount.volume is not None and mount.new is not None:
        if key.startswith(UNUSED):
            raise ParameterError({key: "an unused volume is one that exists: STORAGE:VOLUME"})
        storage = ctx.storages.get(mount.volume.storage)
        if "rootdir" not in storage.contents:
            raise ParameterError({key: f"storage '{storage.name}' does not support content type 'rootdir'"})
        volume_format(storage, key, mount.new)
    elif mount.volume is not None:
        info = existing(ctx, key, str(mount.volume))
        if info.content not in ("images", "rootdir") or info.format not in ("raw", SUBVOL):
            raise ParameterError({key: f"'{mount.volume}' is no volume that a container can use"})
        if info.vmid != vmid:
            raise ParameterError({key: f"volume '{mount.volume}' belongs to guest {info.vmid}, not to {vmid}"})


def check_host_path(mount: MountPoint) -> None:
    """Raises `ParameterError` when what is to be shown from the host is not there."""
    path = Path(str(mount.path))
    if mount.source == "device" and not path.is_block_device():
        raise ParameterError({mount.key: f"'{path}' is no block device of this host"})
    if not path.exists():
        raise ParameterError({mount.key: f"'{path}' does not exist on this host"})


def existing(ctx: NodeContext, key: str, volume: str) -> VolumeInfo:
    """A volume that an option names. Raises `ParameterError` naming the option."""
    storage, name = ctx.storages.volume(volume)
    try:
        return storage.info(name)
    except NotFound as error:
        raise ParameterError({key: error.message}) from error


def volume_format(storage: StorageDriver, key: str, size: int) -> str:
    """The format that a new volume of `size` bytes gets on a storage: a folder when it has no size.

    Raises `ParameterError` when the storage has none that would hold the size.
    """
    for candidate in storage.container_formats:
        if candidate == SUBVOL and (size == 0 or storage.sized_folders):
            return candidate
        if candidate != SUBVOL and size > 0:
            if size < filesystem.MIN_SIZE:
                raise ParameterError({key: f"a volume needs at least {filesystem.MIN_SIZE >> 20} MiB"})
            return candidate
    what = "plain folders (size 0)" if size == 0 else "volumes with a size"
    raise ParameterError({key: f"storage '{storage.name}' has no {what} for containers"})


def make_mount(ctx: NodeContext, task: TaskHandle, vmid: int, key: str, text: str) -> str:
    """Makes the volume of a new mount point, undone if the task fails; the option's final text."""
    mount = read_mount(key, text)
    if mount.volume is None:
        return text
    if mount.new is None:
        info = existing(ctx, key, str(mount.volume))
        return final_text(key, text, str(mount.volume), info.size)
    storage = ctx.storages.get(mount.volume.storage)
    storage.activate()
    name = storage.next_name(vmid, volume_format(storage, key, mount.new))
    volume = f"{storage.name}:{name}"
    with undone_unless_taken(task, "guest.drop_volume", vmid=vmid, volume=volume):
        filesystem.make_volume(storage, name, mount.new)
    task.log(f"{key}: made {volume}")
    return final_text(key, text, volume, storage.info(name).size)


def final_text(key: str, text: str, volume: str, size: int) -> str:
    """A mount option with its volume and, where it has one, its size."""
    option = CONTAINER_OPTIONS.find(key)
    if option is None or option.properties is None or not is_mount(key):
        return volume
    values = {name: value for name, value in option.properties.parse(text, key).items() if name != "size"}
    values["volume"] = volume
    if size:
        values["size"] = format_size(size)
    return option.properties.print(values)


# --- the tree


def container_mount(ctx: NodeContext, mount: MountPoint) -> ContainerMount:
    """A mount point as the driver mounts it. Raises `NotFound`, `Failure`."""
    options = mount.mountoptions
    if mount.acl is not None:
        options = (*options, "acl" if mount.acl else "noacl")
    source: Source
    if mount.volume is not None:
        storage, name = ctx.storages.volume(str(mount.volume))
        info = storage.info(name)
        path = storage.path(name)
        if info.format == SUBVOL:
            source = Folder(path, recursive=False)
            options = mount.mountoptions  # lists of access rights are the storage's affair
        else:
            source = LoopImage(path)
    elif mount.source == "device":
        source = BlockDevice(Path(str(mount.path)))
    else:
        source = Folder(Path(str(mount.path)))
    return ContainerMount(mount.key, source, mount.mp, mount.ro, options, mapped=mount.source == "volume")


def container_mounts(ctx: NodeContext, options: Mapping[str, str]) -> dict[str, ContainerMount]:
    """All mounts of a container, in the order in which they are mounted."""
    return {mount.key: container_mount(ctx, mount) for mount in parse_mounts(options)}


def own_mounts(
    ctx: NodeContext, options: Mapping[str, str], places: Iterable[str] | None = None
) -> dict[str, ContainerMount]:
    """The mounts of a container's own volumes, writable for us; with `places` only those that these lie upon."""
    found = {}
    for mount in parse_mounts(options):
        if mount.source == "volume" and (places is None or any(is_upon(place, mount.mp) for place in places)):
            whole = container_mount(ctx, mount)
            found[mount.key] = ContainerMount(whole.key, whole.source, whole.target)
    return found


def is_upon(place: str, mp: str) -> bool:
    """Whether a path lies on what is mounted at `mp`, or something is mounted within it."""
    return mp == "/" or f"{place}/".startswith(f"{mp.rstrip('/')}/") or mp.startswith(f"{place}/")


def place_of(ctx: NodeContext, name: str) -> Path:
    """An empty folder, upon which something may be mounted within `mounts.aside`."""
    place = ctx.paths.tree_run / name
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


@contextlib.contextmanager
def mounted(ctx: NodeContext, wanted: Mapping[str, ContainerMount]) -> Iterator[Path]:
    """The tree of a container that does not run, seen by this task and the programs that it starts in the block.

    Raises `Failure`, also when an image is in use.
    """
    images = [mount.source.path for mount in wanted.values() if isinstance(mount.source, LoopImage)]
    for image in images:
        if not livemounts.wait_unused(image):
            raise Failure(f"'{image.name}' is in use")
    try:
        with mounts.aside():
            yield mounts.assemble(wanted, place_of(ctx, "root"))
    finally:
        for image in images:
            livemounts.wait_unused(image)
