# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a container's options to LXC's configuration: `lxc/NAME.conf` must give exactly `lxc/NAME.txt`.

After an intended change, write the texts anew with `ORRERY_GOLDEN=write pytest tests/golden` and read the difference.
"""

import os
from pathlib import Path

import pytest
from tests.golden.lxc_cases import CASES, plan_of

from orrery.drivers.lxc import seccomp
from orrery.drivers.lxc.config import render
from orrery.drivers.lxc.plan import ContainerPlan


def as_text(plan: ContainerPlan) -> str:
    """The configuration, and what is beside it."""
    features = plan.features
    lines = [
        render(plan),
        "# plan",
        f"#   {plan.limits}",
        f"#   init {plan.init}",
        *(f"#   {mount.at(plan.place(mount.key))}" for mount in plan.mounts),
        *(f"#   {device.node.rule} {device}" for device in plan.devices),
        *(f"#   note: {note}" for note in plan.notes),
        "# seccomp",
        *(f"#   {line}" for line in _profile(plan.privileged, features.nesting, features.keyctl).splitlines()),
    ]
    return "\n".join(lines) + "\n"


def _profile(privileged: bool, nesting: bool, keyctl: bool) -> str:
    return seccomp.profile(privileged=privileged, nesting=nesting, keyctl=keyctl)


def test_there_are_cases() -> None:
    assert len(CASES) > 15


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_options_give_this_configuration(case: Path) -> None:
    text = as_text(plan_of(case))
    expected = case.with_suffix(".txt")
    if os.environ.get("ORRERY_GOLDEN") == "write":
        expected.write_text(text)
    assert text == expected.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_every_line_is_a_setting(case: Path) -> None:
    for line in filter(None, render(plan_of(case)).split("\n")):
        key, separator, value = line.partition(" = ")
        assert key.startswith("lxc.")
        assert separator
        assert value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_devices_are_denied_before_any_is_allowed(case: Path) -> None:
    lines = [line for line in render(plan_of(case)).split("\n") if ".devices." in line]
    assert lines[0].endswith(".devices.deny = a")
    assert all(".devices.allow = " in line for line in lines[1:])
