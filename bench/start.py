# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a node adds to the start of a machine: POST status/start until QEMU runs, against the same plan by hand.

Both times end when the machine's third monitor answers that it runs. By hand means within this process, warm, with the
volume and the tap at hand; the node also judges, journals, forks a task, reads the configuration and makes the tap.
The rounds of both alternate, so that whatever else the machine does falls upon both.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.figures import Figure, percentile
from bench.node import NAME, Node, fresh_node
from orrery.drivers.network.network import Network
from orrery.drivers.qemu.driver import QemuDriver
from orrery.drivers.qemu.monitor import Monitor
from orrery.drivers.qemu.plan import LaunchPlan, TapFds, VolumeFile
from orrery.errors import Failure
from orrery.model.devices import parse_nic
from orrery.store.guests import read_guest
from orrery.store.local import SqliteStore
from orrery.system.paths import Paths

VMID = 100
ROUNDS = 25
OPTIONS = {
    "vmid": VMID,
    "name": "measured",
    "memory": 64,
    "cores": 1,
    "agent": 1,
    "serial0": "socket",
    "scsihw": "virtio-scsi-single",
    "scsi0": "local:1,iothread=1",
    "net0": "virtio,bridge=vmbr0",
    "ostype": "l26",
}
TAP_VMID = 101
"""The tap of the machine by hand goes by another number: the node removes its own machine's taps at every stop."""


def measure() -> list[Figure]:
    """Medians of both, and of the differences of neighbouring rounds."""
    with fresh_node() as node, node.serving(), by_hand(node) as hand:
        through, alone = [], []
        for number in range(ROUNDS + 2):
            pair = start_by_node(node), hand()
            if number >= 2:
                through.append(pair[0])
                alone.append(pair[1])
    added = [one - other for one, other in zip(through, alone, strict=True)]
    return [
        Figure("added by the node: median", percentile(added, 50) * 1000, "ms", goal=100),
        Figure("  the same: smallest", min(added) * 1000, "ms"),
        Figure("  the same: p90", percentile(added, 90) * 1000, "ms"),
        Figure("POST status/start until QEMU runs: median", percentile(through, 50) * 1000, "ms"),
        Figure("the same plan by hand: median", percentile(alone, 50) * 1000, "ms"),
    ]


def until_it_runs(folder: Path, begun: float) -> float:
    """Seconds from `begun` until the machine of that run folder answers that it runs."""
    while True:
        with contextlib.suppress(Failure, OSError), Monitor(folder / "jobs", VMID, 30) as monitor:
            while monitor.execute("query-status")["status"] != "running":
                time.sleep(0.001)
            return time.perf_counter() - begun
        time.sleep(0.001)


def start_by_node(node: Node) -> float:
    """Starts the machine, which is made the first time, by a request; stops it again."""
    client = node.local()
    guests = f"/nodes/{NAME}/qemu"
    if not client.call("GET", guests):
        client.wait(client.call("POST", guests, OPTIONS))
    client.call("GET", "/version")
    begun = time.perf_counter()
    upid = client.call("POST", f"{guests}/{VMID}/status/start")
    taken = until_it_runs(node.paths.guest_run(VMID), begun)
    client.wait(upid)
    client.wait(client.call("POST", f"{guests}/{VMID}/status/stop"))
    return taken


@contextlib.contextmanager
def by_hand(node: Node) -> Iterator[Callable[[], float]]:
    """A function that launches the plan that the node would, in a root of its own, and ends the machine again."""
    with tempfile.TemporaryDirectory(prefix="orrery-bench-") as folder:
        paths = Paths.of(Path(folder))
        paths.create()
        driver = QemuDriver(paths)
        plan: LaunchPlan | None = None

        def run() -> float:
            nonlocal plan
            plan = plan or planned(node, driver)
            begun = time.perf_counter()
            driver.launch(plan, lambda text: None)
            taken = until_it_runs(paths.guest_run(VMID), begun)
            driver.discard(VMID)
            return taken

        yield run


def planned(node: Node, driver: QemuDriver) -> LaunchPlan:
    """The plan of the node's own machine, with its volume and a tap on its bridge."""
    store = SqliteStore(node.paths.store_db)
    config = read_guest(store, VMID, kind="qemu", node=NAME).record.config
    store.close()
    image = node.paths.local_storage / "images" / str(VMID) / f"vm-{VMID}-disk-0.raw"
    tap = Network(node.paths, NAME).tap_create(TAP_VMID, 0, parse_nic(config.options["net0"]))
    volume = VolumeFile(image, "raw")
    return driver.plan(VMID, config, {"scsi0": volume}, {0: TapFds(tap.fds, tap.vhost, tap.mtu)})
