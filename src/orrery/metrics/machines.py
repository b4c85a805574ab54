# SPDX-License-Identifier: AGPL-3.0-or-later
"""What running machines tell of themselves, as the collector wants it, and what of it belongs into the node's log."""

from collections.abc import Mapping

import structlog

from orrery.drivers.qemu.driver import QemuDriver
from orrery.drivers.qemu.watcher import ENDED, MachineEvent, MachineWatcher, Sample
from orrery.metrics.collect import INTERVAL, MachineState
from orrery.system.paths import Paths

NOTABLE = (ENDED, "SHUTDOWN", "GUEST_PANICKED")
"""Events that happen once in a machine's life; a guest could fill the log with the others."""

log = structlog.get_logger()


class MachineReports:
    """Follows all machines of a node between `start` and `stop`."""

    def __init__(self, paths: Paths, machines: QemuDriver) -> None:
        self._machines = machines
        self._watcher = MachineWatcher(paths, _hear, interval=INTERVAL)

    def start(self) -> None:
        """Begins to listen."""
        self._watcher.start()

    def stop(self) -> None:
        """Ends listening; machines are not touched."""
        self._watcher.stop()

    def state(self, vmid: int) -> MachineState | None:
        """The machine's last sample; None before there is one."""
        found = self._watcher.samples.get(vmid)
        record = self._machines.record(vmid)
        if found is None or record is None:
            return None
        used = None
        if found.guest_total is not None and found.guest_free is not None:
            used = max(0, found.guest_total - found.guest_free)
        return MachineState(
            status=found.state,
            mem=used,
            diskread=found.disk_read,
            diskwrite=found.disk_written,
            version={"running-qemu": record.version, "running-machine": record.machine},
        )

    def samples(self) -> Mapping[int, Sample]:
        """The last sample of every machine that runs."""
        return dict(self._watcher.samples)

    def set_balloon(self, vmid: int, size: int) -> None:
        """Ask a guest to make do with `size` bytes. Raises Failure."""
        self._watcher.set_balloon(vmid, size)


def _hear(event: MachineEvent) -> None:
    write = log.info if event.name in NOTABLE else log.debug
    write("machine event", vmid=event.vmid, name=event.name, data=dict(event.data))
