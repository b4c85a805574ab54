# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processor models and topology."""

import pytest

from orrery.model.cpu import CpuModel, Topology, is_known_model


def test_models() -> None:
    assert CpuModel.parse(None).qemu_model == "kvm64"
    model = CpuModel.parse("x86-64-v2-AES,flags=+pcid;-ssbd")
    assert (model.qemu_model, model.flags) == ("qemu64", {"pcid": True, "ssbd": False})
    assert "aes" in model.level_flags
    assert CpuModel.parse("host").level_flags == ()


@pytest.mark.parametrize("name", ["Skylake", "hos", "", "EPYC-", "EPYC-v0", "x86-64-v5", "host;x"])
def test_unknown_models(name: str) -> None:
    assert not is_known_model(name)


def test_topology() -> None:
    assert Topology.of({}) == Topology(1, 1, None, 0.0, None, False)
    topology = Topology.of(
        {"sockets": "2", "cores": "4", "vcpus": "3", "cpulimit": "1.5", "cpuunits": "50", "numa": "1"}
    )
    assert (topology.total, topology.online, topology.limit, topology.units, topology.numa) == (8, 3, 1.5, 50, True)
