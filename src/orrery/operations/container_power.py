# SPDX-License-Identifier: AGPL-3.0-or-later
"""Power of a container: start, stop, shut down, reboot, suspend, resume."""

import time
from dataclasses import dataclass
from typing import ClassVar

from orrery.errors import Failure, OrreryError, ParameterError
from orrery.model.container import is_mount
from orrery.model.container_devices import nics
from orrery.model.guest import GuestConfig, GuestKind
from orrery.operations.container_mounts import check_mount, container_mounts
from orrery.operations.container_setup import prepare_inside
from orrery.operations.context import NodeContext
from orrery.operations.guest_kind import release
from orrery.operations.guest_pending import apply_all
from orrery.operations.guest_verb import SHUTDOWN_TIMEOUT, GuestVerb, ended
from orrery.operations.hookscript import finish_run, run_hook
from orrery.store.guests import read_guest
from orrery.system.process import ProcessId
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

START_SECONDS = 60.0
"""How long the first process of a container may take to run."""

ASK_SECONDS = 5.0
"""How long a container gets until it is asked to shut down again."""

STOP_SECONDS = 5.0
"""How long a container's processes get to end once they were told to, before they are killed."""


@dataclass(frozen=True)
class ContainerVerb(GuestVerb):
    """A verb about a container."""

    guest_kind: ClassVar[GuestKind] = "lxc"


@operation
@dataclass(frozen=True)
class StartContainer(ContainerVerb):
    """Starts the container; what was pending takes effect first. `debug` writes a detailed log of the start."""

    kind: ClassVar[str] = "vzstart"

    debug: bool = False

    def check(self, ctx: NodeContext) -> None:
        """Raises `Failure` for running containers and templates, or what keeps a volume from being used."""
        config = self.config(ctx)
        if config.is_template:
            raise Failure("you can't start a CT if it's a template")
        if ctx.containers.find(self.vmid) is not None:
            raise Failure(f"CT {self.vmid} already running")
        options = config.apply_pending().options
        for key in sorted(key for key in options if is_mount(key)):
            try:
                check_mount(ctx, self.vmid, key, options[key])
            except ParameterError as error:
                raise Failure(f"{key}: {error.errors.get(key, error.message)}") from error

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Starts it; whatever was begun is undone on failure."""
        self.check(ctx)
        self.start(ctx, task)
        task.commit()

    def start(self, ctx: NodeContext, task: TaskHandle, *, prepared: bool = False) -> None:
        """Starts it as a part of a larger task, which has checked and will commit.

        `prepared`: its inside was written just now.
        """
        stored = read_guest(ctx.store, self.vmid, kind="lxc", node=ctx.node)
        if stored.record.config.has_pending():
            stored = apply_all(ctx, task, stored)
        config = stored.record.config
        finish_run(ctx, task, self.vmid, "lxc", config)
        run_hook(ctx, task, self.vmid, config, "pre-start")
        if not prepared:
            prepare_inside(ctx, task, self.vmid, config)
        task.before("container.discard", vmid=self.vmid)
        mounts = container_mounts(ctx, config.options)
        cards = {nic.index: ctx.network.veth_create(self.vmid, nic.index, nic) for nic in nics(config.options)}
        plan = ctx.containers.plan(self.vmid, config, mounts, cards, debug=self.debug)
        found = ctx.containers.launch(plan, task.log, self.patience(START_SECONDS) or START_SECONDS)
        task.log(f"CT {self.vmid} runs as process {found.pid}")
        run_hook(ctx, task, self.vmid, config, "post-start")


@undo("container.discard")
def discard_container(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Ends a container that a failed start may have left, and what belongs to its run."""
    if ctx.containers.find(vmid) is not None:
        log(f"ending CT {vmid}, which had been started")
    ctx.containers.discard(vmid)
    ctx.network.tap_remove_all(vmid)


@operation
@dataclass(frozen=True)
class StopContainer(ContainerVerb):
    """Stops the container at once. One that does not run is no error, as clients expect."""

    kind: ClassVar[str] = "vzstop"

    def check(self, ctx: NodeContext) -> None:
        self.config(ctx)

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Kills everything in it."""
        config = self.config(ctx)
        if ctx.containers.find(self.vmid) is None:
            task.log(f"CT {self.vmid} not running")
            finish_run(ctx, task, self.vmid, "lxc", config)
            release(ctx, self.vmid, "lxc")
            return
        task.step("stop")
        task.commit()
        stop_at_once(ctx, task, self.vmid, config)


def stop_at_once(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig) -> None:
    """Stops a container that runs, as a part of a larger task."""
    run_hook(ctx, task, vmid, config, "pre-stop")
    ctx.containers.stop(vmid, STOP_SECONDS)
    release(ctx, vmid, "lxc")
    run_hook(ctx, task, vmid, config, "post-stop")


@operation
@dataclass(frozen=True)
class ShutdownContainer(ContainerVerb):
    """Asks the system inside to shut down; with `force` the container is stopped when it has not within the timeout."""

    kind: ClassVar[str] = "vzshutdown"

    force: bool = False

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Waits until it is down. Raises `Failure` when it is not in time."""
        self.check(ctx)
        shut_down(ctx, task, self.vmid, self.config(ctx), self.patience(SHUTDOWN_TIMEOUT), force=self.force)


def shut_down(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, limit: float, *, force: bool) -> None:
    """Shuts down by the signal that the container's init knows. A suspended container is woken first."""
    found = ctx.containers.find(vmid)
    if found is None:
        return
    run_hook(ctx, task, vmid, config, "pre-stop")
    task.step("shutdown")
    if not asked_and_ended(ctx, task, vmid, found, limit):
        if not force:
            raise Failure(f"container did not stop - got timeout: CT {vmid} still runs after {limit:g} seconds")
        task.log("the container has not shut down; stopping it")
        task.commit()
        ctx.containers.stop(vmid, STOP_SECONDS)
    release(ctx, vmid, "lxc")
    run_hook(ctx, task, vmid, config, "post-stop")


def asked_and_ended(ctx: NodeContext, task: TaskHandle, vmid: int, found: ProcessId, limit: float) -> bool:
    """Whether the container ends within `limit` seconds of being asked to.

    It is asked again now and then: a first process that has only just begun does not listen yet.
    """
    end = time.monotonic() + limit
    told = ""
    while True:
        try:
            if ctx.containers.state(vmid) == "frozen":
                ctx.containers.thaw(vmid)
            ctx.containers.ask_to_stop(vmid)
        except OrreryError as error:
            if error.message != told:
                told = error.message
                task.log(told)
        left = end - time.monotonic()
        if ended(task, found, min(ASK_SECONDS, max(left, 0))):
            return True
        if left <= ASK_SECONDS:
            return False


@operation
@dataclass(frozen=True)
class RebootContainer(ContainerVerb):
    """Shuts down and starts again, so that pending changes take effect."""

    kind: ClassVar[str] = "vzreboot"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Raises `Failure` when the container does not shut down; it then runs on."""
        self.check(ctx)
        shut_down(ctx, task, self.vmid, self.config(ctx), self.patience(SHUTDOWN_TIMEOUT), force=False)
        StartContainer(self.vmid, skiplock=self.skiplock).start(ctx, task)
        task.commit()


@operation
@dataclass(frozen=True)
class SuspendContainer(ContainerVerb):
    """Freezes all processes of the container; the memory stays."""

    kind: ClassVar[str] = "vzsuspend"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """A container that is frozen already stays so."""
        self.check(ctx)
        task.commit()
        ctx.containers.freeze(self.vmid)


@operation
@dataclass(frozen=True)
class ResumeContainer(ContainerVerb):
    """Lets the processes go on."""

    kind: ClassVar[str] = "vzresume"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """A container that runs already goes on running."""
        self.check(ctx)
        task.commit()
        ctx.containers.thaw(self.vmid)
