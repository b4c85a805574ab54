# SPDX-License-Identifier: AGPL-3.0-or-later
"""What handlers reach: wired once when the node starts, the same for every request."""

from collections.abc import Callable
from dataclasses import dataclass, field

from orrery.access.audit import AuditLog
from orrery.access.directory import Directory
from orrery.access.login import Login
from orrery.access.permissions import Permissions
from orrery.api.guestrows import RestingRows
from orrery.metrics.collect import Collector
from orrery.operations.context import NodeContext
from orrery.store.mirror import Mirror
from orrery.system.paths import Paths
from orrery.tasks.journal import Journal
from orrery.tasks.runner import Runner


@dataclass(frozen=True)
class Services:
    """The node as the API sees it: `address` is where it listens, `fingerprint` that of the certificate in use."""

    node: str
    paths: Paths
    store: Mirror
    permissions: Permissions
    login: Login
    directory: Directory
    audit: AuditLog
    runner: Runner
    journal: Journal
    context: NodeContext
    collector: Collector
    address: str = "127.0.0.1"
    fingerprint: Callable[[], str] = lambda: ""
    resting: RestingRows = field(default_factory=RestingRows)
