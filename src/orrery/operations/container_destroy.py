# SPDX-License-Identifier: AGPL-3.0-or-later
"""Destroying a container. When the first volume has gone there is no way back: a broken one is finished, not undone."""

from dataclasses import dataclass
from typing import ClassVar

from orrery.errors import Failure
from orrery.operations.container_power import ContainerVerb, stop_at_once
from orrery.operations.context import NodeContext
from orrery.operations.guest_destroy import check_unprotected, destroy
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation


@operation
@dataclass(frozen=True)
class DestroyContainer(ContainerVerb):
    """Removes container `vmid` and its volumes; with `force` also one that runs.

    `unreferenced` also removes volumes of its number that no option names. `purge` takes it out of jobs, of which this
    version has none; its place in a pool and the rights on it always go.
    """

    kind: ClassVar[str] = "vzdestroy"

    force: bool = False
    purge: bool = False
    unreferenced: bool = False

    def check(self, ctx: NodeContext) -> None:
        """Raises `NotFound`, `Locked`, or `Failure` for protected and running containers."""
        check_unprotected(self.config(ctx), self.vmid, "lxc")
        if ctx.containers.find(self.vmid) is not None and not self.force:
            raise Failure(f"CT {self.vmid} is running - destroy failed (use --force to stop and destroy it)")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Removes volumes, then the configuration. A kill in between is finished by the record's own action."""
        self.check(ctx)
        if ctx.containers.find(self.vmid) is not None:
            task.step("stop")
            stop_at_once(ctx, task, self.vmid, self.config(ctx))
        destroy(ctx, task, self.vmid, "lxc", unreferenced_too=self.unreferenced)
        task.commit()
