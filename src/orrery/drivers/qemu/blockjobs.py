# SPDX-License-Identifier: AGPL-3.0-or-later
"""Long jobs on the disks of a running machine, over its monitor for jobs: moving a disk to another volume.

QEMU copies the disk while the guest goes on using it, then switches over in an instant. Until the switch the job can be
undone without a trace, by whoever comes later too: everything about it is found by the disk's name.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from orrery.drivers.qemu.commandline import live_context
from orrery.drivers.qemu.devices import disk
from orrery.drivers.qemu.facts import HostFacts
from orrery.drivers.qemu.live import LiveSources, drop_node, drop_nodes, free_name, node_of
from orrery.drivers.qemu.monitor import Event, Monitor, MonitorError
from orrery.drivers.qemu.plan import VolumeFile
from orrery.errors import Failure
from orrery.model.devices import MachineView
from orrery.model.disks import Disk

_POLL_SECONDS: Final = 0.25
_SWITCH_SECONDS: Final = 120.0
_CANCEL_SECONDS: Final = 30.0

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; may raise `Cancelled`."""


class BlockJobs:
    """A running machine and its monitor for jobs. `view` is the configuration that it runs with."""

    def __init__(self, monitor: Monitor, view: MachineView, facts: HostFacts) -> None:
        self._monitor = monitor
        self._view = view
        self._facts = facts

    def move_disk(
        self,
        drive: Disk,
        target: VolumeFile,
        progress: Progress,
        *,
        before_switch: Callable[[], None] = lambda: None,
        speed: int = 0,
    ) -> None:
        """Copy a disk to another volume of the same size and go on with that one; the old image is closed.

        `speed` in bytes a second, 0 for no limit. `before_switch` is called when all is copied, before the machine
        changes over; from then on the target is the machine's disk. Any failure before, cancelling included, leaves
        the machine as it was, with the target closed. Raises Failure.
        """
        before = node_of(self._monitor, drive.key)
        if before is None:
            raise Failure(f"disk '{drive.key}' is not attached")
        name = free_name(self._monitor, drive.key)
        job = job_name(drive.key)
        try:
            context = live_context(self._view, self._facts, LiveSources(self._monitor))
            self._monitor.execute("blockdev-add", disk.block_node(drive, target, context, name), timeout=30)
            self._monitor.execute(
                "blockdev-mirror",
                {
                    "job-id": job,
                    "device": before,
                    "target": name,
                    "sync": "full",
                    # Once both are equal, each write reaches both before the guest hears of it: whichever is used
                    # after a crash holds all that was acknowledged.
                    "copy-mode": "write-blocking",
                    "speed": speed,
                    "auto-dismiss": False,
                },
            )
            self._until_ready(job, progress)
            before_switch()
        except BaseException:
            self.abandon(drive.key)
            raise
        self._monitor.execute("job-complete", {"id": job})
        self._until_concluded(job)
        drop_node(self._monitor, before)

    def abandon(self, key: str) -> None:
        """Undo a move that was not finished, whoever began it: no job, no target. Idempotent.

        A job that has switched over already is left as it is; which volume is in use then, the machine tells.
        """
        job = job_name(key)
        state = self._state(job)
        if state is not None and state["status"] != "concluded":
            self._monitor.execute("block-job-cancel", {"device": job, "force": True})
        end = time.monotonic() + _CANCEL_SECONDS
        while (state := self._state(job)) is not None:
            if state["status"] == "concluded":
                self._monitor.execute("job-dismiss", {"id": job})
            elif time.monotonic() > end:
                raise Failure(f"the job that moves '{key}' cannot be cancelled; it is {state['status']}")
            else:
                self._wait_change(job, _POLL_SECONDS)
        drop_nodes(self._monitor, key)

    # --- waiting

    def _until_ready(self, job: str, progress: Progress) -> None:
        while True:
            state = self._state(job)
            if state is None:
                raise Failure(f"the job '{job}' has vanished")
            if state["status"] == "concluded":
                raise Failure(f"copying failed: {state.get('error', 'no reason given')}")
            progress(int(state["current-progress"]), int(state["total-progress"]))
            if state["status"] == "ready":
                return
            self._wait_change(job, _POLL_SECONDS)

    def _until_concluded(self, job: str) -> None:
        end = time.monotonic() + _SWITCH_SECONDS
        while (state := self._state(job)) is not None:
            if state["status"] == "concluded":
                self._monitor.execute("job-dismiss", {"id": job})
                if "error" in state:
                    raise Failure(f"switching to the new volume failed: {state['error']}")
                return
            if time.monotonic() > end:
                raise Failure(f"the job '{job}' does not finish; it is {state['status']}")
            self._wait_change(job, _POLL_SECONDS)

    def _wait_change(self, job: str, timeout: float) -> None:
        def changed(event: Event) -> bool:
            return bool(event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == job)

        self._monitor.wait_event(changed, timeout)

    def _state(self, job: str) -> dict[str, Any] | None:
        try:
            jobs = self._monitor.execute("query-jobs", timeout=30)
        except MonitorError as error:
            if error.kind == "closed":
                raise Failure(f"VM {self._monitor.vmid} ended while '{job}' was running") from error
            raise
        return next((each for each in jobs if each["id"] == job), None)


def job_name(key: str) -> str:
    """Name of the job that moves a disk."""
    return f"move-{key}"
