# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a machine's configuration to QEMU's command line: `qemu/NAME.conf` must give exactly `qemu/NAME.txt`.

After an intended change, write the texts anew with `ORRERY_GOLDEN=write pytest tests/golden` and read the difference.
"""

import json
import os
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from tests.golden.qemu_cases import CASES, plan_of

from orrery.drivers.qemu.plan import FIRST_DESCRIPTOR, LaunchPlan


def as_text(plan: LaunchPlan) -> str:
    """A plan for people: an option and its value on one line."""
    words = list(plan.argv[1:])
    lines = [plan.argv[0]]
    while words:
        word = words.pop(0)
        lines.append(f"  {word} {words.pop(0)}" if words and not words[0].startswith("-") else f"  {word}")
    lines.append("descriptors")
    lines += [f"  {number}: {descriptor}" for number, descriptor in plan.numbers.items()]
    lines.append("commands")
    lines += [f"  {command.name} {dict(command.arguments)}" for command in plan.commands]
    lines.append("plan")
    lines.append(f"  machine {plan.machine}, {plan.accelerator}, {'runs' if plan.run else 'waits'}, {plan.resources}")
    lines += [f"  note: {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def test_there_are_cases() -> None:
    assert len(CASES) > 25


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_configuration_gives_this_command_line(case: Path) -> None:
    text = as_text(plan_of(case))
    expected = case.with_suffix(".txt")
    if os.environ.get("ORRERY_GOLDEN") == "write":
        expected.write_text(text)
    assert text == expected.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_no_two_devices_share_a_name_or_a_place(case: Path) -> None:
    devices = [json.loads(value) for option, value in pairwise(plan_of(case).argv) if option == "-device"]
    names = Counter(device["id"] for device in devices)
    places = Counter((device["bus"], device["addr"]) for device in devices if "addr" in device)
    assert [each for each, count in (names + places).items() if count > 1] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_every_bus_exists_before_what_sits_on_it(case: Path) -> None:
    devices = [json.loads(value) for option, value in pairwise(plan_of(case).argv) if option == "-device"]
    built_in = {"pci.0", "pcie.0", *(f"ide.{n}" for n in range(6))}
    known = set(built_in)
    for device in devices:
        assert device.get("bus", "pci.0") in known or device["bus"].rpartition(".")[0] in known
        known.add(device["id"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_every_descriptor_is_used_by_its_number(case: Path) -> None:
    plan = plan_of(case)
    text = "\n".join(plan.argv)
    used = re.findall(r"fd=(\d+)", text)
    used += [number for group in re.findall(r'"(?:vhost)?fds?":"([\d:]+)"', text) for number in group.split(":")]
    assert sorted(map(int, used)) == [*range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + len(plan.descriptors))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_qemu_gets_no_path_of_ours(case: Path) -> None:
    assert not any("/storage" in word or "/usr/share" in word for word in plan_of(case).argv)
