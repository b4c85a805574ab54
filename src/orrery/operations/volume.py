# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes that come, go and are copied, other than a guest's own disks."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from orrery.drivers.storage import image, signature
from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.registry import require_content
from orrery.drivers.storage.usage import require_room
from orrery.errors import AlreadyExists, Failure, NotFound, NotSupported
from orrery.model.volume import ParsedVolume, VolumeId, parse_volname
from orrery.operations.context import NodeContext
from orrery.operations.drives import owned_volumes, texts, undone_unless_taken
from orrery.store.guests import find_guest
from orrery.system import files
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

_CHUNK: Final = 4 << 20


def parse_name(name: str) -> ParsedVolume:
    """What a volume's name says. Raises Failure."""
    try:
        return parse_volname(name)
    except ValueError as error:
        raise Failure(f"unable to parse volume name '{name}': {error}") from error


def volume_lock(storage: str, name: str) -> str:
    """Name of the lock on one volume."""
    return f"storage/{storage}/{name}"


def exists(driver: StorageDriver, name: str) -> bool:
    """Whether there is such a volume."""
    try:
        driver.info(name)
    except NotFound:
        return False
    return True


def check_checksum(expected: str | None, algorithm: str | None, computed: str | None, log: Log) -> None:
    """Raises Failure when a file is not the one that was meant."""
    if expected is None:
        return
    if computed is None or computed.lower() != expected.strip().lower():
        raise Failure(f"checksum mismatch: got '{computed}' != expect '{expected}' ({algorithm})")
    log(f"{algorithm} checksum is as expected")


def check_content(staged: Path, parsed: ParsedVolume) -> None:
    """Raises Failure when a file from outside is not what its name says, or could reach for other files."""
    try:
        signature.require_kind(staged, parsed.content, parsed.format)
    except OSError as error:
        raise files.failure(error, "unable to read the new file") from error
    if parsed.content == "import" and parsed.format in ("qcow2", "vmdk", "raw"):
        image.refuse_untrusted(staged, parsed.format)


@operation
@dataclass(frozen=True)
class PublishUpload:
    """Gives an upload, which lies whole in the staged file `staged`, its name on the storage.

    `computed` is the checksum by `algorithm` that was taken while the upload streamed. An upload replaces a file of the
    same name.
    """

    kind: ClassVar[str] = "imgcopy"

    storage: str
    volume: str
    staged: str
    size: int
    checksum: str | None = None
    algorithm: str | None = None
    computed: str | None = None

    def subject(self) -> str:
        return ""

    def locks(self) -> tuple[str, ...]:
        return (volume_lock(self.storage, self.volume),)

    def check(self, ctx: NodeContext) -> None:
        require_content(ctx.storages.get(self.storage), parse_name(self.volume).content)

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Verifies the upload and publishes it; a failure removes it. Cancelling works until it gets its name."""
        driver = ctx.storages.get(self.storage)
        parsed = parse_name(self.volume)
        task.before("volume.unstage", storage=self.storage, staged=self.staged)
        staged = driver.adopt(Path(self.staged))
        task.log(f"received {self.size} bytes for {self.storage}:{self.volume}")
        check_checksum(self.checksum, self.algorithm, self.computed, task.log)
        check_content(staged, parsed)
        task.step("publish")
        task.commit()
        task.before("volume.unstage", storage=self.storage, staged=self.staged)
        driver.publish(staged, self.volume, replace=True)
        task.log(f"published {self.storage}:{self.volume}")


@operation
@dataclass(frozen=True)
class DeleteVolume:
    """Removes a volume that no guest's configuration names."""

    kind: ClassVar[str] = "imgdel"

    volume: str
    """Volume id."""

    def subject(self) -> str:
        parsed = VolumeId.parse(self.volume)
        owner = parse_name(parsed.name).vmid
        return parsed.storage if owner is None else f"{owner}@{parsed.storage}"

    def locks(self) -> tuple[str, ...]:
        parsed = VolumeId.parse(self.volume)
        volume = parse_name(parsed.name)
        own = volume_lock(parsed.storage, parsed.name)
        return (own,) if volume.content != "images" else (own, f"guest/{volume.vmid}")

    def check(self, ctx: NodeContext) -> None:
        """Raises NotFound, or Failure for volumes that are protected or in use."""
        driver, name = ctx.storages.volume(self.volume)
        info = driver.info(name)
        if info.protected:
            raise Failure(f"volume '{self.volume}' is protected; remove its protection first")
        guest = user_of(ctx, self.volume)
        if guest is not None:
            raise Failure(f"volume '{self.volume}' is in use by guest {guest}; detach and remove it there")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """There is no way back from the first byte, so nothing is undone."""
        driver, name = ctx.storages.volume(self.volume)
        task.commit()
        driver.free(name)
        task.log(f"removed volume '{self.volume}'")


def user_of(ctx: NodeContext, volume: str) -> int | None:
    """The guest that owns an image and whose configuration names it, in whatever state; None for other volumes."""
    parsed = parse_name(VolumeId.parse(volume).name)
    if parsed.content != "images" or parsed.vmid is None:
        return None
    found = find_guest(ctx.store, parsed.vmid)
    if found is None or volume not in owned_volumes(parsed.vmid, texts(found.record.config)):
        return None
    return parsed.vmid


@operation
@dataclass(frozen=True)
class CopyVolume:
    """Copies a volume to a new name, on this storage or on another; images may change their format."""

    kind: ClassVar[str] = "volcopy"

    source: str
    target: str
    """Volume ids."""

    def subject(self) -> str:
        return VolumeId.parse(self.source).storage

    def locks(self) -> tuple[str, ...]:
        target = VolumeId.parse(self.target)
        return (volume_lock(target.storage, target.name),)

    def check(self, ctx: NodeContext) -> None:
        """Raises NotFound for the source, AlreadyExists for the target, or what keeps them apart."""
        source, name = ctx.storages.volume(self.source)
        target, new = ctx.storages.volume(self.target)
        before, after = source.info(name), parse_name(new)
        if before.content != after.content:
            raise Failure(f"a volume of type '{before.content}' cannot become one of type '{after.content}'")
        if before.content != "images" and before.format != after.format:
            raise NotSupported("only disk images can change their format")
        require_content(target, after.content)
        if exists(target, new):
            raise AlreadyExists(f"volume '{self.target}' already exists")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Copies with progress; a failure leaves no target."""
        source, name = ctx.storages.volume(self.source)
        target, new = ctx.storages.volume(self.target)
        target.activate()
        info = source.info(name)
        with undone_unless_taken(task, "volume.free", volume=self.target):
            if info.content == "images":
                target.copy_in(source.path(name), info.format, new, _meter(task), trusted=True)
            else:
                require_room(target, info.size)
                _copy_file(source.path(name), target, new, _meter(task))
        task.log(f"copied '{self.source}' to '{self.target}'")


def _meter(task: TaskHandle) -> Callable[[int, int], None]:
    return lambda done, total: task.progress(done, total, "bytes", "copy")


def _copy_file(source: Path, driver: StorageDriver, name: str, progress: Callable[[int, int], None]) -> None:
    staged = driver.staging(name)
    try:
        reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(reading, "rb", buffering=0) as old, staged.open("wb", buffering=0) as fresh:
            total = os.fstat(reading).st_size
            done = 0
            while sent := os.sendfile(fresh.fileno(), old.fileno(), None, _CHUNK):
                done += sent
                progress(done, total)
        driver.publish(staged, name)
    except BaseException as error:
        driver.discard(staged)
        if isinstance(error, OSError):
            raise files.failure(error, f"unable to copy to storage '{driver.name}'") from error
        raise


@undo("volume.free")
def free_volume(ctx: NodeContext, log: Log, *, volume: str) -> None:
    """Removes a volume that was being made, unless a guest has come to use it."""
    if user_of(ctx, volume) is not None:
        return
    driver, name = ctx.storages.volume(volume)
    there = exists(driver, name)
    driver.free(name)
    if there:
        log(f"removed volume '{volume}'")


@undo("volume.unstage")
def unstage(ctx: NodeContext, log: Log, *, storage: str, staged: str) -> None:
    """Removes a staged file that got no name."""
    ctx.storages.get(storage).discard(Path(staged))
    log("removed the unfinished file")


@undo("volume.sweep")
def sweep(ctx: NodeContext, log: Log, *, storage: str) -> None:
    """Removes the staged files of tasks that are dead."""
    ctx.storages.get(storage).activate()
