# SPDX-License-Identifier: AGPL-3.0-or-later
"""The real QEMU accepts every golden command line, with all its descriptors, in its jail."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.golden.qemu_cases import CASES
from tests.lab import qemu_lab

from orrery.drivers.qemu.driver import QemuDriver
from orrery.model.guest import GuestConfig

HARMLESS = ("TCG doesn't support", "is not connected to host network")

pytestmark = [pytest.mark.root, pytest.mark.guest]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_qemu_builds_this_machine(case: Path, qemu: QemuDriver, tmp_path: Path) -> None:
    config = GuestConfig.from_text(case.read_text()).with_options({"memory": "128"}, ["balloon", "affinity", "numa"])
    if "balloon" in case.stem or "numa" in case.stem:
        config = GuestConfig.from_text(case.read_text())
    warnings: list[str] = []
    with qemu_lab.taps(config) as taps:
        plan = qemu.plan(100, config, qemu_lab.volumes(config, tmp_path / "volumes"), taps)
        qemu.launch(replace(plan, run=False), warnings.append)
    assert qemu.status(100).state == "prelaunch"
    said = [line for line in qemu.last_words(100).splitlines() if not any(known in line for known in HARMLESS)]
    assert said == []
    assert qemu.stop(100)
    qemu.forget(100)
    assert not qemu.folder(100).exists()
