# SPDX-License-Identifier: AGPL-3.0-or-later
"""A node's parts, wired: opened in the order in which they need each other, closed in reverse."""

import contextlib
import ipaddress

import structlog

from orrery.access.audit import AuditLog
from orrery.access.directory import built_in_realms, open_directory
from orrery.access.login import Login
from orrery.access.permissions import Permissions
from orrery.access.tickets import Tickets
from orrery.api.services import Services
from orrery.drivers.lxc.driver import LxcDriver
from orrery.drivers.lxc.lxcfs import LxcfsService
from orrery.drivers.network.network import Network
from orrery.drivers.qemu.driver import QemuDriver
from orrery.drivers.storage.registry import StorageRegistry
from orrery.drivers.storage.usage import StorageUsageCache
from orrery.errors import OrreryError
from orrery.front.certificate import fingerprint
from orrery.front.nginx import Address
from orrery.metrics.ballooning import Ballooning
from orrery.metrics.collect import INTERVAL, Collector
from orrery.metrics.machines import MachineReports
from orrery.model.identity import ROOT, Identity
from orrery.operations.boot import first_start_since_boot
from orrery.operations.context import NodeContext
from orrery.operations.guest_bulk import StartGuests
from orrery.operations.guest_reap import reap
from orrery.store.local import SqliteStore
from orrery.store.mirror import Mirror
from orrery.system.paths import Paths
from orrery.tasks.history import retain
from orrery.tasks.journal import Journal
from orrery.tasks.runner import Runner
from orrery.tasks.schedule import Schedule
from orrery.tasks.zygote import Zygote

PRELOAD = ("orrery.operations.registered",)
CONTEXT = "orrery.operations.context:open_context"
REAP_SECONDS = 2.0
RETENTION_SECONDS = 3600.0
NETWORK_SECONDS = 60.0
LXCFS_SECONDS = 5.0

log = structlog.get_logger()


class Node:
    """Everything of a running node but its servers."""

    services: Services
    _ballooning: Ballooning
    _lxcfs: LxcfsService

    def __init__(self, paths: Paths, name: str, listen: Address) -> None:
        self.paths = paths
        self.name = name
        self._listen = listen
        self._lxcfs_problem = ""
        self._exit = contextlib.ExitStack()

    def open(self) -> None:
        """Opens the parts, the zygote first: it warms up while the rest is opened. Raises what is wrong."""
        paths = self.paths
        store = SqliteStore(paths.store_db)
        self._exit.callback(store.close)
        journal = Journal(paths.tasks_db, paths.task_logs)
        zygote = Zygote(paths, self.name, preload=PRELOAD, context=CONTEXT)
        runner = Runner(paths, self.name, journal, zygote)
        zygote.launch()
        network = Network(paths, self.name)
        self._prepare_network(network)
        mirror = Mirror(store)
        mirror.start()
        self._exit.callback(mirror.stop)
        storages = StorageRegistry(mirror, paths, self.name)
        machines = QemuDriver(paths)
        containers = LxcDriver(paths)
        self._lxcfs = LxcfsService(paths)
        self._keep_lxcfs(containers)
        context = NodeContext(paths, self.name, mirror, storages, machines, containers, network)
        reports = MachineReports(paths, machines)
        reports.start()
        self._exit.callback(reports.stop)
        self._ballooning = Ballooning(mirror, reports)
        usage = StorageUsageCache(storages)
        collector = Collector(mirror, machines, containers, network, reports, usage)
        collector.start()
        self._exit.callback(collector.stop)
        realms = built_in_realms(mirror)
        permissions = Permissions(mirror)
        login = Login(mirror, realms, Tickets(paths.keys), permissions)
        self.services = Services(
            node=self.name,
            paths=paths,
            store=mirror,
            permissions=permissions,
            login=login,
            directory=open_directory(mirror, permissions, realms, login),
            audit=AuditLog(paths.audit_log),
            runner=runner,
            journal=journal,
            context=context,
            collector=collector,
            address=self._address(network),
            fingerprint=lambda: fingerprint(paths.tls_cert),
        )
        runner.open()
        self._exit.callback(runner.close)

    def _address(self, network: Network) -> str:
        """What views of the cluster say: where the node listens, and if that is everywhere, an address of the host."""
        if not ipaddress.ip_address(self._listen.host).is_unspecified:
            return self._listen.host
        return network.host_address() or "127.0.0.1"

    def _prepare_network(self, network: Network) -> None:
        """A node without its bridge still serves: guests without a card run, and the administrator can look."""
        try:
            network.prepare()
        except OrreryError as error:
            log.error("the network could not be prepared", reason=error.message)
            return
        for note in network.status().notes:
            log.warning("network", note=note)

    def _keep_lxcfs(self, containers: LxcDriver) -> None:
        """Containers run without it too, but see the host's memory and processors as their own."""
        try:
            first = (containers.init_pid(vmid) for vmid in containers.running())
            notes = self._lxcfs.maintain(pid for pid in first if pid is not None)
        except OrreryError as error:
            if error.message != self._lxcfs_problem:  # tried again in a moment, but told once
                log.error("lxcfs does not run", reason=error.message)
            self._lxcfs_problem = error.message
            return
        self._lxcfs_problem = ""
        for note in notes:
            log.warning("lxcfs", note=note)

    def close(self) -> None:
        """Closes what was opened; guests, tasks and the DHCP service go on."""
        self._exit.close()

    def schedule(self) -> Schedule:
        """The node's periodic jobs."""
        services = self.services
        schedule = Schedule()
        schedule.every(REAP_SECONDS, "reap guests", lambda: reap(services.context, services.journal, services.runner))
        schedule.every(NETWORK_SECONDS, "repair the network", services.context.network.maintain)
        schedule.every(LXCFS_SECONDS, "keep lxcfs", lambda: self._keep_lxcfs(services.context.containers))
        schedule.every(INTERVAL, "spread memory", self._ballooning.step)
        schedule.every(RETENTION_SECONDS, "forget old tasks", lambda: retain(services.journal), first=60)
        return schedule

    def boot(self) -> None:
        """Starts the guests that are to start with the host, once per boot of the host, in the background."""
        if first_start_since_boot(self.paths):
            self.services.runner.start(StartGuests(), Identity(ROOT))
