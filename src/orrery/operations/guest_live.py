# SPDX-License-Identifier: AGPL-3.0-or-later
"""What of a change takes effect on a running machine."""

from orrery.model.guest import GuestConfig
from orrery.model.machine_changes import change_of, hotplug_features
from orrery.operations.context import NodeContext
from orrery.system.process import ProcessId
from orrery.tasks.operation import TaskHandle


def apply_live(
    ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, key: str, running: ProcessId
) -> bool:
    """Whether what is pending for `key` has taken effect."""
    change = change_of(key, config.options.get(key), config.pending.get(key), hotplug_features(config.options))
    return change in ("none", "stored")
