# SPDX-License-Identifier: AGPL-3.0-or-later
"""OCI images become templates: from a registry, or from an archive that lies on a storage."""

import time
from dataclasses import dataclass
from typing import ClassVar, Final

from orrery.drivers.images import oci
from orrery.drivers.images.base import Fetched
from orrery.drivers.images.registry import Registry
from orrery.drivers.storage.base import StorageDriver
from orrery.errors import AlreadyExists, Failure
from orrery.model.images import ImageRecord, Reference
from orrery.operations.context import NodeContext
from orrery.operations.image_pull import file_size, publish
from orrery.operations.image_records import parsed_reference, read_record
from orrery.operations.image_workshop import workshop
from orrery.operations.volume import exists, volume_lock
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation

SOURCE: Final = "oci"


@operation
@dataclass(frozen=True)
class OciPull:
    """Fetches an image from a registry into the template `volume`; one of the same repository is replaced."""

    kind: ClassVar[str] = "ocipull"

    storage: str
    reference: str
    volume: str

    def subject(self) -> str:
        return self.volume.rpartition("/")[2]

    def locks(self) -> tuple[str, ...]:
        return (volume_lock(self.storage, self.volume),)

    def check(self, ctx: NodeContext) -> None:
        """Raises AlreadyExists for a file of that name that is something else."""
        driver = ctx.storages.content_allowed(self.storage, "vztmpl")
        _record_there(ctx, driver, self.volume, parsed_reference(self.reference))

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Fetches, verifies and flattens; a failure leaves nothing."""
        pull_oci(ctx, task, self.storage, self.reference, self.volume)


def pull_oci(ctx: NodeContext, task: TaskHandle, storage: str, reference: str, volume: str) -> str:
    """The volume id of the template. Raises AlreadyExists for a file that is something else, and as `oci.fetch`."""
    driver = ctx.storages.content_allowed(storage, "vztmpl")
    parsed = parsed_reference(reference)
    volid = f"{storage}:{volume}"
    record = _record_there(ctx, driver, volume, parsed)
    with workshop(ctx, task, driver, volume) as shop:
        registry = Registry(shop, parsed, shop.sources.insecure)
        image = oci.resolve(registry, parsed.tag)
        if record is not None and (record.mark, record.origin) == (image.digest, str(parsed)):
            task.log(f"'{volid}' is there already and the newest")
            return volid
        task.log(f"{parsed} is {image.digest}, {len(image.layers)} layers")
        fetched = oci.fetch(shop, registry, image, str(parsed))
        publish(ctx, task, driver, volume, fetched, _record(reference, fetched))
    return volid


def _record_there(ctx: NodeContext, driver: StorageDriver, volume: str, wanted: Reference) -> ImageRecord | None:
    """What is known of the file that has the name already; None without one.

    Raises AlreadyExists for one that is something else: the names of files do not tell registries apart.
    """
    if not exists(driver, volume):
        return None
    volid = f"{driver.name}:{volume}"
    record = read_record(ctx.store, volid, file_size(driver, volume))
    if record is None:
        raise AlreadyExists(f"refusing to override existing file '{volume.rpartition('/')[2]}'")
    if record.origin.rpartition(":")[0] != str(wanted).rpartition(":")[0]:
        raise AlreadyExists(f"'{volid}' is '{record.origin}': choose another file name for '{wanted}', or remove it")
    return record


@operation
@dataclass(frozen=True)
class OciImport:
    """Makes a template of an OCI archive that was uploaded as one. `source` is a volume id, `volume` the new name."""

    kind: ClassVar[str] = "ociimport"

    storage: str
    source: str
    volume: str

    def subject(self) -> str:
        return self.volume.rpartition("/")[2]

    def locks(self) -> tuple[str, ...]:
        return (volume_lock(self.storage, self.volume),)

    def check(self, ctx: NodeContext) -> None:
        """Raises NotFound for the source, AlreadyExists for the template."""
        source, name = ctx.storages.volume(self.source)
        source.info(name)
        if exists(ctx.storages.content_allowed(self.storage, "vztmpl"), self.volume):
            raise AlreadyExists(f"refusing to override existing file '{self.subject()}'")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Verifies and flattens; a failure leaves nothing."""
        source, name = ctx.storages.volume(self.source)
        driver = ctx.storages.get(self.storage)
        with workshop(ctx, task, driver, self.volume) as shop:
            archive = oci.Archive.open(shop, source.path(name))
            if archive is None:
                raise Failure(f"'{self.source}' is no OCI archive (a tar file with oci-layout and index.json)")
            image = oci.resolve(archive, "index.json")
            fetched = oci.fetch(shop, archive, image, self.source)
            publish(ctx, task, driver, self.volume, fetched, _record(self.source, fetched))


def _record(alias: str, fetched: Fetched) -> ImageRecord:
    return ImageRecord(
        alias=alias,
        kind="container",
        source=SOURCE,
        origin=fetched.origin,
        fetched=int(time.time()),
        size=fetched.file.stat().st_size,
        mark=fetched.mark,
        oci=fetched.oci,
    )
