# SPDX-License-Identifier: AGPL-3.0-or-later
"""A change leaves a configuration that the next start can build."""

from types import SimpleNamespace
from typing import Any

import pytest

from orrery.model.guest import GuestConfig, GuestRecord
from orrery.operations.guest_change import ChangeMachine
from orrery.store.guests import add_guest, read_guest
from orrery.store.memory import MemoryStore

NET = "virtio=BC:24:11:00:00:01,bridge=vmbr0"


class Task:
    """A task that forgets what it is told."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **more: 0


@pytest.mark.parametrize(
    ("boot", "deleted", "expected"),
    [
        ("order=scsi0;net0", ("scsi0",), "order=net0"),
        ("order=net0", ("net0",), None),
        ("order=scsi0", ("net0",), "order=scsi0"),
        ("cdn", ("scsi0",), "cdn"),
    ],
)
def test_a_device_that_goes_leaves_the_boot_order_too(
    boot: str, deleted: tuple[str, ...], expected: str | None
) -> None:
    store = MemoryStore()
    options = {"boot": boot, "scsi0": "local:100/vm-100-disk-0.raw,size=1G", "net0": NET}
    add_guest(store, GuestRecord(100, "qemu", "n1", GuestConfig(options=options)))
    ctx: Any = SimpleNamespace(store=store, node="n1", machines=SimpleNamespace(find=lambda vmid: None))
    task: Any = Task()
    ChangeMachine(100, {}, deleted).run(ctx, task)
    config = read_guest(store, 100, kind="qemu", node="n1").record.config
    assert config.options.get("boot") == expected
    assert not config.has_pending()
