# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an operation may touch. Opened anew in every task process, never carried across a fork."""

from dataclasses import dataclass

from orrery.drivers.lxc.driver import LxcDriver
from orrery.drivers.network.network import Network
from orrery.drivers.qemu.driver import QemuDriver
from orrery.drivers.storage.registry import StorageRegistry
from orrery.store.base import Store
from orrery.store.local import SqliteStore
from orrery.system.paths import Paths


@dataclass(frozen=True)
class NodeContext:
    """The node as operations see it."""

    paths: Paths
    node: str
    store: Store
    storages: StorageRegistry
    machines: QemuDriver
    containers: LxcDriver
    network: Network


def open_context(paths: Paths, node: str) -> NodeContext:
    """Opens everything that an operation of this node may need; cheap, since drivers connect when asked."""
    store = SqliteStore(paths.store_db)
    storages = StorageRegistry(store, paths, node)
    return NodeContext(paths, node, store, storages, QemuDriver(paths), LxcDriver(paths), Network(paths, node))
