# SPDX-License-Identifier: AGPL-3.0-or-later
"""What handlers reach: wired once when the node starts, the same for every request."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orrery.access.audit import AuditLog
    from orrery.access.directory import Directory
    from orrery.access.login import Login
    from orrery.access.permissions import Permissions
    from orrery.metrics.collect import Collector
    from orrery.operations.context import NodeContext
    from orrery.store.mirror import Mirror
    from orrery.system.paths import Paths
    from orrery.tasks.journal import Journal
    from orrery.tasks.runner import Runner


@dataclass(frozen=True)
class Services:
    """The node as the API sees it. `extra` carries what a family of routes brings along, by its own name."""

    node: str
    paths: "Paths"
    store: "Mirror"
    permissions: "Permissions"
    login: "Login"
    directory: "Directory"
    audit: "AuditLog"
    runner: "Runner"
    journal: "Journal"
    context: "NodeContext"
    collector: "Collector"
    extra: dict[str, Any] = field(default_factory=dict)
