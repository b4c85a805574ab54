# SPDX-License-Identifier: AGPL-3.0-or-later
"""A machine's options as parameters follow the table of options."""

from typing import Any

import pytest

from orrery.api.machineparams import machine_params
from orrery.api.parameters import Boolean, GuestParams
from orrery.errors import ParameterError
from orrery.model.machine_options import MACHINE_OPTIONS


class Extras(GuestParams):
    start: Boolean = False


Create: Any = machine_params("Create", Extras)


def test_every_option_is_a_parameter() -> None:
    assert set(MACHINE_OPTIONS) | {"node", "vmid", "start"} == set(Create.declared())
    assert Create.declared()["net[n]"].indices == 32
    assert Create.declared()["cores"].schema() == {"type": "integer", "minimum": 1, "default": 1}
    assert Create.declared()["numa"].schema()["type"] == "boolean"
    assert Create.declared()["numa[n]"].schema()["x-supported"] is False


def test_options_come_back_as_canonical_text() -> None:
    p = Create.from_wire(
        {
            "node": "n",
            "vmid": "100",
            "start": "1",
            "cores": 2,
            "onboot": True,
            "net0": "bridge=vmbr0,model=virtio",
            "numa": 0,
        }
    )
    assert p.start
    assert p.options() == {"cores": "2", "onboot": "1", "net0": "virtio,bridge=vmbr0", "numa": "0"}
    assert Create.from_wire({"node": "n", "vmid": 100}).options() == {}


def test_faults_name_the_option() -> None:
    with pytest.raises(ParameterError) as refused:
        Create.from_wire(
            {"node": "n", "vmid": "100", "cores": "x", "net0": "virtio,bogus=1", "net32": "virtio", "name": "-"}
        )
    assert set(refused.value.errors) == {"cores", "net0", "net32", "name"}
    assert refused.value.errors["cores"] == "type check ('integer') failed - got 'x'"
    assert refused.value.errors["net0"].startswith("invalid format - ")
