# SPDX-License-Identifier: AGPL-3.0-or-later
"""One machine's trouble, or one failed look, keeps nobody else from being watched."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orrery.drivers.qemu.watcher import ENDED, MachineEvent, MachineWatcher
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

GONE = ProcessId(1 << 30, 1)


class Records:
    """Records that cannot be read at first, then show a machine, then none."""

    def __init__(self) -> None:
        self.looks = 0

    def running(self) -> dict[int, Any]:
        self.looks += 1
        if self.looks == 1:
            raise PermissionError("no")
        return {100: SimpleNamespace(process=GONE)} if self.looks < 4 else {}


def test_it_goes_on_whatever_happens(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[MachineEvent] = []
    watcher = MachineWatcher(Paths.of(tmp_path), seen.append, rescan=0.01)
    records: Any = Records()
    heard: list[int] = []

    async def listen(vmid: int, machine: ProcessId) -> None:
        heard.append(vmid)
        raise KeyError("an answer that nobody expected")

    monkeypatch.setattr(watcher, "_records", records)
    monkeypatch.setattr(watcher, "_listen", listen)

    async def main() -> None:
        watching = asyncio.create_task(watcher.run())
        async with asyncio.timeout(20):
            while not any(event.name == ENDED for event in seen):
                assert not watching.done(), watching.exception()
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(main())
    assert len(heard) >= 1
