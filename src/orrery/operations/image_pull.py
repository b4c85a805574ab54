# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images of the catalogue fetched or built, kept up to date, and removed.

An image is a volume as any other. Its record is written before the file gets its name, with the file's size: whatever
happens between the two, a record never speaks for another file.
"""

import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from orrery.drivers.images import aptsources, cloud, debian_machine, debootstrap, minirootfs, simplestreams
from orrery.drivers.images.base import Fetched, Workshop
from orrery.drivers.storage.base import StorageDriver
from orrery.errors import AlreadyExists, Failure, NotSupported
from orrery.model.images import (
    CONTENT,
    Cloud,
    Debootstrap,
    ImageEntry,
    ImageRecord,
    Kind,
    MiniRoot,
    Source,
    Stream,
)
from orrery.model.volume import VolumeId
from orrery.operations.context import NodeContext
from orrery.operations.image_records import forget_record, image_volume, read_record, required_entry, write_record
from orrery.operations.image_workshop import ImageWorkshop, workshop
from orrery.operations.volume import check_content, exists, parse_name, user_of, volume_lock
from orrery.system.paths import Paths
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

_BUILD = re.compile(r"[0-9a-f]{16}")
_APT: Final = Path("/etc/apt")
_GUEST: Final[dict[str, Kind]] = {"container": "container", "machine": "machine"}


@operation
@dataclass(frozen=True)
class PullImage:
    """Fetches an image of the catalogue, or builds it; one that is there already is replaced by a newer one only.

    `volume` is the name that the entry's image has on the storage. With `force` it is fetched in any case. `ssh` puts a
    server for SSH into an image that is built.
    """

    kind: ClassVar[str] = "imagepull"

    storage: str
    image: str
    guest: str
    volume: str
    force: bool = False
    ssh: bool = False

    def subject(self) -> str:
        return self.image

    def locks(self) -> tuple[str, ...]:
        return (volume_lock(self.storage, self.volume),)

    def check(self, ctx: NodeContext) -> None:
        """Raises Failure for a storage that may not have images of this kind, and for programs that are missing."""
        ctx.storages.content_allowed(self.storage, CONTENT[_GUEST[self.guest]])

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """A failure leaves what was there before."""
        entry = required_entry(ctx, self.image, _GUEST[self.guest])
        obtain(ctx, task, self.storage, entry, force=self.force, ssh=self.ssh)


@operation
@dataclass(frozen=True)
class DownloadTemplate(PullImage):
    """The same by the word that clients of the compatible API know for the fetching of templates."""

    kind: ClassVar[str] = "download"
    registered_as: ClassVar[str] = "template"

    def subject(self) -> str:
        return self.volume.rpartition("/")[2]


@operation
@dataclass(frozen=True)
class RemoveImage:
    """Removes an image and what is known of it. Guests that were made from it have copies."""

    kind: ClassVar[str] = "imagedel"

    volume: str
    """Volume id."""

    def subject(self) -> str:
        return VolumeId.parse(self.volume).storage

    def locks(self) -> tuple[str, ...]:
        parsed = VolumeId.parse(self.volume)
        return (volume_lock(parsed.storage, parsed.name),)

    def check(self, ctx: NodeContext) -> None:
        """Raises NotFound, or Failure for a volume that is no image."""
        image_volume(self.volume)
        driver, name = ctx.storages.volume(self.volume)
        driver.info(name)
        if user_of(ctx, self.volume) is not None:
            raise Failure(f"volume '{self.volume}' is in use")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        driver, name = ctx.storages.volume(self.volume)
        task.commit()
        driver.free(name)
        forget_record(ctx.store, self.volume)
        task.log(f"removed image '{self.volume}'")


def obtain(
    ctx: NodeContext, task: TaskHandle, storage: str, entry: ImageEntry, *, force: bool = False, ssh: bool = False
) -> str:
    """The volume id of an image that is there and up to date, fetched or built if need be.

    Raises AlreadyExists for a file of its name that came from elsewhere, and what fetching raises.
    """
    driver = ctx.storages.content_allowed(storage, CONTENT[entry.kind])
    volid = f"{storage}:{entry.volume}"
    there = exists(driver, entry.volume)
    record = read_record(ctx.store, volid, file_size(driver, entry.volume)) if there else None
    if there and record is None and not force:
        raise AlreadyExists(
            f"'{volid}' exists, but did not come from the catalogue: remove it, or ask for it to be replaced (force)"
        )
    with workshop(ctx, task, driver, entry.volume) as shop:
        mark, make = plan(ctx, shop, entry.source, entry.kind, ssh=ssh)
        if record is not None and not force and mark in ("", record.mark):
            task.log(f"'{volid}' is there already" + (" and the newest" if mark else ""))
            return volid
        fetched = make()
        if not entry.volume.endswith(f".{fetched.ending}"):
            raise NotSupported(f"the image has the format {fetched.ending}, and not that of '{entry.filename}'")
        publish(ctx, task, driver, entry.volume, fetched, _record(entry, fetched))
    return volid


def _record(entry: ImageEntry, fetched: Fetched) -> ImageRecord:
    return ImageRecord(
        alias=entry.alias,
        kind=entry.kind,
        source=entry.source.name,
        origin=fetched.origin,
        fetched=int(time.time()),
        size=fetched.file.stat().st_size,
        mark=fetched.mark,
        default_user=entry.default_user,
        oci=fetched.oci,
    )


def publish(
    ctx: NodeContext, task: TaskHandle, driver: StorageDriver, volume: str, fetched: Fetched, record: ImageRecord
) -> None:
    """Examines an image, and gives it its name. Raises Failure for one that is not what its name says."""
    check_content(fetched.file, parse_name(volume))
    task.step("publish")
    write_record(ctx.store, f"{driver.name}:{volume}", record)
    driver.publish(fetched.file, volume, replace=True)
    task.log(f"'{driver.name}:{volume}' is ready: {record.size} bytes")


def file_size(driver: StorageDriver, volume: str) -> int:
    """Bytes of an image's file; a disk image's own size is another. Raises Failure."""
    try:
        return os.lstat(driver.path(volume)).st_size
    except OSError as error:
        raise Failure(f"unable to look at '{driver.name}:{volume}': {error.strerror}") from error


def plan(
    ctx: NodeContext, shop: ImageWorkshop, source: Source, kind: Kind, *, ssh: bool = False
) -> tuple[str, Callable[[], Fetched]]:
    """The mark of the newest image of a source ("" where nothing tells), and how to make it. Raises Failure."""
    match source:
        case Cloud(url, checksums, algorithm):
            digest = cloud.published(shop, url, checksums, algorithm)
            return str(digest), lambda: cloud.fetch(shop, url, digest)
        case MiniRoot(index):
            release = minirootfs.latest(shop, index)
            return str(release.digest), lambda: minirootfs.fetch(shop, release)
        case Stream():
            item = simplestreams.find(shop, source, kind)
            return item.version, lambda: simplestreams.fetch(shop, item)
        case Debootstrap():
            return "", lambda: _build(ctx, shop, source, kind, ssh=ssh)


def newest_mark(shop: Workshop, source: Source, kind: Kind) -> str:
    """The mark of the newest image of a source, "" for one that is built here. Raises Failure."""
    match source:
        case Cloud(url, checksums, algorithm):
            return str(cloud.published(shop, url, checksums, algorithm))
        case MiniRoot(index):
            return str(minirootfs.latest(shop, index).digest)
        case Stream():
            return simplestreams.find(shop, source, kind).version
        case Debootstrap():
            return ""


# --- building


def _build(ctx: NodeContext, shop: ImageWorkshop, source: Debootstrap, kind: Kind, *, ssh: bool) -> Fetched:
    if kind == "machine":
        debian_machine.require_programs(source)
    else:
        debootstrap.require_programs(source)
    system = "ubuntu" if "ubuntu" in source.keyring else "debian"
    mirrored = Debootstrap(source.suite, shop.sources.mirrored(source.mirror), source.keyring, source.components)
    # A mirror that the installation names comes before the one that the host happens to use.
    host = [] if mirrored.mirror != source.mirror else _host_sources()
    lines = aptsources.lines_for(mirrored, system, host)
    shop.room(1 << 30)
    name = secrets.token_hex(8)
    shop.task.before("image.clear_build", name=name)
    folder = _builds(ctx.paths) / name
    folder.mkdir(mode=0o700, parents=True)
    target = shop.blank()
    shop.log(f"building {source.suite} from " + ", ".join(line.split()[2] for line in lines[:1]))
    started = time.monotonic()

    def tick() -> None:
        shop.progress(int(time.monotonic() - started), 0, "build")

    try:
        make = debian_machine.build if kind == "machine" else debootstrap.build
        make(debootstrap.Build(mirrored, lines, ssh), folder, target, shop.log, tick)
    finally:
        debootstrap.clear(folder)
    shop.log(f"built in {time.monotonic() - started:.0f} s")
    ending = debian_machine.ENDING if kind == "machine" else debootstrap.ENDING
    return Fetched(target, ending, time.strftime("%Y%m%d-%H%M%S", time.gmtime()), lines[0].split()[2])


def _host_sources() -> list[aptsources.Repository]:
    files = [_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*"))]
    return [each for file in files if file.is_file() for each in aptsources.parse(file.read_text(errors="replace"))]


def _builds(paths: Paths) -> Path:
    return paths.lib / "build"


@undo("image.clear_build")
def clear_build(ctx: NodeContext, log: Log, *, name: str) -> None:
    """Removes the working folder of a build that did not end."""
    if not _BUILD.fullmatch(name):
        raise Failure(f"'{name}' is not the name of a build")
    debootstrap.clear(_builds(ctx.paths) / name)
