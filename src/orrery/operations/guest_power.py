# SPDX-License-Identifier: AGPL-3.0-or-later
"""Power of a machine: start, stop, shut down, reboot, reset, suspend, resume."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from orrery.drivers.qemu.launching import READY_SECONDS
from orrery.drivers.qemu.plan import TapFds
from orrery.errors import Failure, OrreryError, ParameterError
from orrery.model.devices import parse_agent, parse_nic
from orrery.model.guest import GuestConfig, GuestKind
from orrery.model.machine import expand_indexed
from orrery.operations.cloudinit import refresh
from orrery.operations.context import NodeContext
from orrery.operations.drives import check_drive, drives, volume_file
from orrery.operations.guest_kind import release
from orrery.operations.guest_pending import apply_all
from orrery.operations.guest_verb import SHUTDOWN_TIMEOUT, GuestVerb, ended
from orrery.operations.hookscript import finish_run, run_hook
from orrery.store.guests import read_guest
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

STOP_TIMEOUT = 10
"""Seconds that QEMU gets to close its images before it is killed."""


@dataclass(frozen=True)
class PowerVerb(GuestVerb):
    """A verb about a machine."""

    guest_kind: ClassVar[GuestKind] = "qemu"


@operation
@dataclass(frozen=True)
class StartMachine(PowerVerb):
    """Starts the machine; what was pending takes effect first. `timeout`: seconds for QEMU to answer."""

    kind: ClassVar[str] = "qmstart"

    def check(self, ctx: NodeContext) -> None:
        """Raises `Failure` for running machines and templates, or what keeps a drive from being used."""
        config = self.config(ctx)
        if config.is_template:
            raise Failure("you can't start a vm if it's a template")
        if ctx.machines.find(self.vmid) is not None:
            raise Failure(f"VM {self.vmid} already running")
        for drive in drives(config.apply_pending().options):
            try:
                check_drive(ctx, self.vmid, drive)
            except ParameterError as error:
                raise Failure(f"{drive.key}: {error.errors.get(drive.key, error.message)}") from error

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Starts it; whatever was begun is undone on failure."""
        self.check(ctx)
        self.start(ctx, task)
        task.commit()

    def start(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Starts it as a part of a larger task, which has checked and will commit."""
        stored = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node)
        if stored.record.config.has_pending():
            stored = apply_all(ctx, task, stored)
        config = stored.record.config
        finish_run(ctx, task, self.vmid, "qemu", config)
        run_hook(ctx, task, self.vmid, config, "pre-start")
        refresh(ctx, task, self.vmid, config, always=True)
        task.before("machine.discard", vmid=self.vmid)
        with ExitStack() as stack:
            taps = {}
            for key, text in sorted(config.options.items()):
                expanded = expand_indexed(key)
                if expanded is not None and expanded[0] == "net":
                    tap = ctx.network.tap_create(self.vmid, expanded[1], parse_nic(text))
                    stack.callback(tap.close)
                    taps[expanded[1]] = TapFds(tap.fds, tap.vhost, tap.mtu)
            files = {drive.key: volume_file(ctx, drive) for drive in drives(config.options)}
            volumes = {key: file for key, file in files.items() if file is not None}
            plan = ctx.machines.plan(self.vmid, config, volumes, taps)
            found = ctx.machines.launch(plan, task.log, self.patience(READY_SECONDS) or READY_SECONDS)
        task.log(f"VM {self.vmid} runs as process {found.pid}")
        run_hook(ctx, task, self.vmid, config, "post-start")


@undo("machine.discard")
def discard_machine(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Ends a machine that a failed start may have left, and what belongs to its run."""
    if ctx.machines.find(vmid) is not None:
        log(f"ending VM {vmid}, which had been started")
    ctx.machines.discard(vmid)
    ctx.network.tap_remove_all(vmid)


@operation
@dataclass(frozen=True)
class StopMachine(PowerVerb):
    """Stops the machine at once. One that does not run is no error, as clients expect."""

    kind: ClassVar[str] = "qmstop"

    def check(self, ctx: NodeContext) -> None:
        self.config(ctx)

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Asks QEMU to end; kills it when it does not within the timeout (10 s unless given)."""
        config = self.config(ctx)
        if ctx.machines.find(self.vmid) is None:
            task.log(f"VM {self.vmid} not running")
            finish_run(ctx, task, self.vmid, "qemu", config)
            release(ctx, self.vmid, "qemu")
            return
        task.step("stop")
        task.commit()
        run_hook(ctx, task, self.vmid, config, "pre-stop")
        end_machine(ctx, self.vmid, self.patience(STOP_TIMEOUT))
        run_hook(ctx, task, self.vmid, config, "post-stop")


def end_machine(ctx: NodeContext, vmid: int, timeout: float = STOP_TIMEOUT) -> None:
    """Ends QEMU: it is asked to, and killed when it has not within `timeout` seconds."""
    ctx.machines.stop(vmid, timeout)
    release(ctx, vmid, "qemu")


@operation
@dataclass(frozen=True)
class ShutdownMachine(PowerVerb):
    """Asks the system inside to shut down; with `force` the machine is stopped when it has not within the timeout."""

    kind: ClassVar[str] = "qmshutdown"

    force: bool = False

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Waits until it is down. Raises `Failure` when it is not in time."""
        self.check(ctx)
        shut_down(ctx, task, self.vmid, self.config(ctx), self.patience(SHUTDOWN_TIMEOUT), force=self.force)


def shut_down(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, limit: float, *, force: bool) -> None:
    """Shuts down by the agent where there is one that answers, else by the power button. Paused machines are woken."""
    found = ctx.machines.find(vmid)
    if found is None:
        return
    run_hook(ctx, task, vmid, config, "pre-stop")
    task.step("shutdown")
    ask_to_shut_down(ctx, task, vmid, config)
    if not ended(task, found, limit):
        if not force:
            raise Failure(f"VM quit/powerdown failed - got timeout: VM {vmid} still runs after {limit:g} seconds")
        task.log("the guest has not shut down; stopping it")
        task.commit()
        end_machine(ctx, vmid)
    release(ctx, vmid, "qemu")
    run_hook(ctx, task, vmid, config, "post-stop")


def ask_to_shut_down(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig) -> None:
    """Tells the guest, once. A machine whose monitor does not answer is treated like a guest that does not."""
    try:
        if ctx.machines.status(vmid).state == "paused":
            ctx.machines.resume(vmid)
        if parse_agent(config.options.get("agent", "0")).enabled:
            try:
                ctx.machines.agent(vmid, config).command("shutdown")
            except OrreryError as error:
                task.log(f"{error.message}; pressing the power button instead")
            else:
                return
        ctx.machines.powerdown(vmid)
    except OrreryError as error:
        task.log(error.message)


@operation
@dataclass(frozen=True)
class RebootMachine(PowerVerb):
    """Shuts down and starts again, so that pending changes take effect."""

    kind: ClassVar[str] = "qmreboot"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Raises `Failure` when the guest does not shut down; it then runs on."""
        self.check(ctx)
        shut_down(ctx, task, self.vmid, self.config(ctx), self.patience(SHUTDOWN_TIMEOUT), force=False)
        StartMachine(self.vmid, skiplock=self.skiplock).start(ctx, task)
        task.commit()


@operation
@dataclass(frozen=True)
class ResetMachine(PowerVerb):
    """Resets the machine."""

    kind: ClassVar[str] = "qmreset"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Takes effect at once."""
        self.check(ctx)
        task.commit()
        ctx.machines.reset(self.vmid)


@operation
@dataclass(frozen=True)
class SuspendMachine(PowerVerb):
    """Halts the processors; the memory stays."""

    kind: ClassVar[str] = "qmsuspend"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """A machine that is paused already stays so."""
        self.check(ctx)
        task.commit()
        ctx.machines.pause(self.vmid)


@operation
@dataclass(frozen=True)
class ResumeMachine(PowerVerb):
    """Lets the processors go on."""

    kind: ClassVar[str] = "qmresume"

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """A machine that runs already goes on running."""
        self.check(ctx)
        task.commit()
        ctx.machines.resume(self.vmid)
