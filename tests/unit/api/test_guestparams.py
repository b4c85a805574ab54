# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's options as parameters follow the table of options."""

from typing import Any

import pytest

from orrery.api.guestparams import guest_params
from orrery.api.parameters import Boolean, GuestParams
from orrery.errors import ParameterError
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.machine_options import MACHINE_OPTIONS


class Extras(GuestParams):
    start: Boolean = False


Create: Any = guest_params("Create", Extras, MACHINE_OPTIONS)


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


def test_lists_may_be_repeated_parameters() -> None:
    p = Create.from_wire({"node": "n", "vmid": "100", "tags": ["b", "a"]})
    assert p.options() == {"tags": "b;a"}
    with pytest.raises(ParameterError):
        Create.from_wire({"node": "n", "vmid": "100", "name": ["b", "a"]})


def test_a_container_has_its_own_options() -> None:
    create: Any = guest_params("CreateContainer", Extras, CONTAINER_OPTIONS)
    assert set(CONTAINER_OPTIONS) | {"node", "vmid", "start"} == set(create.declared())
    p = create.from_wire({"node": "n", "vmid": "100", "env": "A=1\0B=2", "mp255": "local:1,mp=/a", "idmap": "own"})
    assert p.options() == {"env": "A=1\0B=2", "mp255": "local:1,mp=/a", "idmap": "own"}
    with pytest.raises(ParameterError) as refused:
        create.from_wire({"node": "n", "vmid": "100", "entrypoint": "a\0b", "env": "A=1\n", "hostname": "a\0"})
    assert set(refused.value.errors) == {"entrypoint", "env", "hostname"}
