# SPDX-License-Identifier: AGPL-3.0-or-later
"""The QEMU driver: from a guest's configuration to a running machine, and everything one does to a running machine.

Volumes and taps come in as plain arguments; the driver knows neither storages nor networks. Machines outlive whoever
started them: every method finds them anew by their record.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from orrery.drivers.qemu import commandline, facts, launching
from orrery.drivers.qemu.agent import Agent
from orrery.drivers.qemu.blockjobs import BlockJobs
from orrery.drivers.qemu.facts import HostFacts
from orrery.drivers.qemu.launching import READY_SECONDS
from orrery.drivers.qemu.live import LiveMachine
from orrery.drivers.qemu.monitor import DEFAULT_TIMEOUT, Event, Monitor, MonitorError
from orrery.drivers.qemu.plan import LaunchPlan, Resources, TapFds, VolumeFile
from orrery.drivers.qemu.records import MachineRecord, Records, guest_uid, strays
from orrery.errors import Failure
from orrery.model.devices import machine_devices
from orrery.model.guest import GuestConfig
from orrery.system import cgroup, process
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

MonitorName = Literal["events", "control", "jobs"]

_QUIT_SECONDS: Final = 5.0
_TERM_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """How a running machine does. `state` is QEMU's word: running, paused, prelaunch, suspended, io-error, …"""

    state: str
    running: bool


class QemuDriver:
    """All machines of one root. Cheap to make; nothing is opened before it is asked for."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._records = Records(paths)
        self._facts: HostFacts | None = None

    # --- before it runs

    def facts(self) -> HostFacts:
        """What this host offers. Raises Failure when QEMU is not installed."""
        if self._facts is None:
            self._facts = facts.detect(self.paths)
        return self._facts

    def creation_meta(self) -> str:
        """The option `meta` of a guest created now: it pins the version of its machine type."""
        return f"creation-qemu={self.facts().version},ctime={int(time.time())}"

    def plan(
        self,
        vmid: int,
        config: GuestConfig,
        volumes: Mapping[str, VolumeFile] | None = None,
        taps: Mapping[int, TapFds] | None = None,
    ) -> LaunchPlan:
        """What starting this configuration would do; nothing is touched.

        `volumes` by option (`scsi0`, `ide2`, `efidisk0`), `taps` by the card's number; a card without one is connected
        to nothing. Raises ParameterError or Failure with the reason why it cannot be built.
        """
        return commandline.build(vmid, config, self.facts(), volumes, taps)

    def launch(self, plan: LaunchPlan, log: Callable[[str], None], patience: float = READY_SECONDS) -> ProcessId:
        """Start a machine; returns when it runs. `log` takes notes and warnings for the task's log.

        `patience` is how many seconds QEMU may take for each answer until then.

        Raises Failure, with QEMU's own words when it ended at once. What has to be undone then is `discard`.
        """
        if self.find(plan.vmid) is not None:
            raise Failure(f"VM {plan.vmid} already running")
        if strays(guest_uid(self.paths, plan.vmid)):
            raise Failure(f"an unrecorded process of VM {plan.vmid} still runs; stop the machine first")
        return launching.launch(self.paths, self._records, plan, log, patience)

    # --- finding

    def find(self, vmid: int) -> ProcessId | None:
        """The machine's process, verified by its start time; None when it does not run."""
        record = self._records.read(vmid)
        return record.process if record else None

    def record(self, vmid: int) -> MachineRecord | None:
        """What was noted about the running machine: process, machine type, accelerator, when it was started."""
        return self._records.read(vmid)

    def running(self) -> dict[int, ProcessId]:
        """All machines that run."""
        return {vmid: record.process for vmid, record in self._records.running().items()}

    def leftovers(self) -> list[int]:
        """Machines that have ended and still have a run folder."""
        return self._records.ended()

    def folder(self, vmid: int) -> Path:
        """The machine's run folder: monitor, serial and agent sockets."""
        return self.paths.guest_run(vmid)

    def forget(self, vmid: int) -> None:
        """Remove what a machine that has ended left behind. Raises Failure while it runs."""
        self._records.forget(vmid)

    def last_words(self, vmid: int) -> str:
        """The last lines that QEMU wrote to its standard error."""
        return launching.said(self.folder(vmid))

    # --- power

    def powerdown(self, vmid: int) -> None:
        """Press the power button (ACPI); what the guest makes of it is its affair."""
        self._tell(vmid, "system_powerdown")

    def reset(self, vmid: int) -> None:
        """Press the reset button."""
        self._tell(vmid, "system_reset")

    def pause(self, vmid: int) -> None:
        """Stop the processors; memory and devices stay."""
        self._tell(vmid, "stop")

    def resume(self, vmid: int) -> None:
        """Let the processors go on; also wakes a guest that suspended itself to memory."""
        with self.monitor(vmid) as monitor:
            if monitor.execute("query-status")["status"] == "suspended":
                monitor.execute("system_wakeup")
            else:
                monitor.execute("cont")

    def status(self, vmid: int, timeout: float = DEFAULT_TIMEOUT) -> MachineStatus:
        """Ask the machine how it does."""
        with self.monitor(vmid, timeout=timeout) as monitor:
            found = monitor.execute("query-status")
        return MachineStatus(str(found["status"]), bool(found["running"]))

    def wait_end(self, vmid: int, timeout: float) -> bool:
        """Wait until the machine has ended; False after `timeout` seconds."""
        machine = self.find(vmid)
        return machine is None or process.wait(machine, timeout)

    def stop(self, vmid: int, patience: float = _QUIT_SECONDS) -> bool:
        """End the machine without asking its guest; whether it ran. Works on a machine that answers nobody any more.

        First `quit`, which closes images in order, then after `patience` seconds SIGTERM, then SIGKILL. The run folder
        stays for `forget`.
        """
        machine = self.find(vmid)
        if machine is None:
            return False
        with contextlib.suppress(Failure):
            with self.monitor(vmid, timeout=2.0) as monitor:
                monitor.execute("quit")
            process.wait(machine, patience)
        self.kill(vmid)
        process.reap(machine)
        return True

    def kill(self, vmid: int, grace: float = _TERM_SECONDS) -> None:
        """End all processes of a machine, recorded or not, by signals alone; `grace` seconds lie between them."""
        machine = self.find(vmid)
        if machine is not None:
            launching.end(machine, grace)
        for each in strays(guest_uid(self.paths, vmid)):
            launching.end(each, 0)

    def discard(self, vmid: int) -> None:
        """Undo a start, however far it came: no process, no run folder, no control group. Idempotent."""
        self.kill(vmid, 0)
        self.forget(vmid)

    # --- while it runs

    @contextlib.contextmanager
    def monitor(
        self, vmid: int, name: MonitorName = "control", *, timeout: float = DEFAULT_TIMEOUT
    ) -> Iterator[Monitor]:
        """A connection to one of the machine's monitors. Raises Failure `VM 100 not running`, MonitorError."""
        if self.find(vmid) is None:
            raise Failure(f"VM {vmid} not running")
        with Monitor(self.folder(vmid) / name, vmid, timeout) as monitor:
            yield monitor

    @contextlib.contextmanager
    def live(self, vmid: int, config: GuestConfig) -> Iterator[LiveMachine]:
        """The running machine, to change it; `config` is what it runs with. Others wait meanwhile: be short."""
        with self.monitor(vmid) as monitor:
            yield LiveMachine(monitor, machine_devices(config), self.facts())

    @contextlib.contextmanager
    def jobs(self, vmid: int, config: GuestConfig) -> Iterator[BlockJobs]:
        """The running machine's long jobs; one task at a time."""
        with self.monitor(vmid, "jobs") as monitor:
            yield BlockJobs(monitor, machine_devices(config), self.facts())

    def agent(self, vmid: int, config: GuestConfig) -> Agent:
        """The agent in the guest. Raises Failure when none is configured or the machine does not run."""
        if not machine_devices(config).agent.enabled:
            raise Failure("No QEMU guest agent configured")
        if self.find(vmid) is None:
            raise Failure(f"VM {vmid} is not running")
        return Agent(self.folder(vmid), vmid)

    def limit(self, vmid: int, resources: Resources) -> list[str]:
        """Put new limits of processor time in force; gives warnings about what this host cannot do."""
        return list(launching.limit(cgroup.guest_group(self.paths.root_hash, vmid), resources))

    def _tell(self, vmid: int, command: str, arguments: Mapping[str, Any] | None = None) -> None:
        with self.monitor(vmid) as monitor:
            monitor.execute(command, arguments)


__all__ = ["Event", "MachineStatus", "MonitorError", "QemuDriver"]
