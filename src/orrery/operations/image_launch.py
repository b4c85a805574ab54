# SPDX-License-Identifier: AGPL-3.0-or-later
"""From the name of an image to a guest that runs, in one task: fetched if it is not there, created, started."""

from dataclasses import dataclass, field
from typing import ClassVar

from orrery.errors import NotFound
from orrery.model.images import Kind
from orrery.operations.container_create import CreateContainer
from orrery.operations.context import NodeContext
from orrery.operations.guest_create import CreateMachine
from orrery.operations.guest_lock import guest_lock
from orrery.operations.guest_number import check_new
from orrery.operations.image_oci import pull_oci
from orrery.operations.image_pull import obtain
from orrery.operations.image_records import required_entry
from orrery.operations.volume import exists, volume_lock
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation

_KINDS: dict[str, Kind] = {"container": "container", "machine": "machine"}


@operation
@dataclass(frozen=True)
class LaunchGuest:
    """Makes guest `vmid` from an image, and starts it.

    The image lies, or will lie, on `image_storage` as `volume`; it is fetched when `fetch` is set, from a registry when
    `reference` is. `options` are validated and canonical; a machine's `scsi0` imports that volume.
    """

    kind: ClassVar[str] = "launch"

    vmid: int
    guest: str
    image: str
    image_storage: str
    volume: str
    options: dict[str, str] = field(default_factory=dict)
    storage: str | None = None
    fetch: bool = False
    reference: str | None = None
    pool: str | None = None
    start: bool = True
    password_hash: str | None = field(default=None, metadata={"secret": True})
    ssh_keys: str | None = None
    secrets: dict[str, str] = field(default_factory=dict, metadata={"secret": True})

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        own = guest_lock(self.vmid)
        return (own, volume_lock(self.image_storage, self.volume)) if self.fetch else (own,)

    def check(self, ctx: NodeContext) -> None:
        """Raises `AlreadyExists` for a number that is taken, `NotFound` for the pool, or what keeps the image away."""
        check_new(ctx, self.vmid, self.pool)
        driver = ctx.storages.content_allowed(self.image_storage, self.volume.partition("/")[0])
        if not self.fetch and not exists(driver, self.volume):
            raise NotFound(f"image '{self.image}' is not on storage '{self.image_storage}' any more")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """An image that was fetched stays when the guest cannot be made: the next attempt is quicker."""
        volid = f"{self.image_storage}:{self.volume}"
        if self.fetch and self.reference is not None:
            pull_oci(ctx, task, self.image_storage, self.reference, self.volume)
        elif self.fetch:
            entry = required_entry(ctx, self.image, _KINDS[self.guest])
            obtain(ctx, task, self.image_storage, entry)
        task.log(f"creating {self.guest} {self.vmid} from {volid}")
        if self.guest == "machine":
            CreateMachine(self.vmid, self.options, pool=self.pool, start=self.start, secrets=self.secrets).run(
                ctx, task
            )
            return
        CreateContainer(
            self.vmid,
            self.options,
            template=volid,
            storage=self.storage,
            password_hash=self.password_hash,
            ssh_keys=self.ssh_keys,
            pool=self.pool,
            start=self.start,
        ).run(ctx, task)
