# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the machine is: parsed texts, and the real thing."""

import os

from orrery.system import host

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 3 GHz
cpu MHz\t\t: 2300.5
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu vmx nx

processor\t: 1
model name\t: Some CPU @ 3 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu vmx nx

processor\t: 2
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu vmx nx

processor\t: 3
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu vmx nx
"""


def test_cpuinfo_with_threads_and_sockets() -> None:
    cpu = host.parse_cpuinfo(CPUINFO)
    assert (cpu.model, cpu.count, cpu.cores, cpu.sockets, cpu.mhz) == ("Some CPU @ 3 GHz", 4, 1, 2, 2300.5)
    assert cpu.hardware_virtualization == "vmx"
    assert host.parse_cpuinfo(CPUINFO.replace("vmx", "sse")).hardware_virtualization is None
    assert host.parse_cpuinfo(CPUINFO.replace("vmx", "svm")).hardware_virtualization == "svm"


def test_cpuinfo_of_another_architecture() -> None:
    cpu = host.parse_cpuinfo("processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: fp\n\nRevision : 1\n")
    assert (cpu.count, cpu.cores, cpu.sockets) == (2, 2, 1)
    assert "asimd" in cpu.flags


def test_meminfo() -> None:
    memory = host.parse_meminfo(
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n"
    )
    assert memory == host.Memory(1_024_000, 102_400, 409_600, 51_200, 20_480)
    assert (memory.used, memory.swap_used) == (614_400, 30_720)


def test_cpu_shares_between_two_looks() -> None:
    first = host.parse_stat("cpu  100 0 100 800 0 0 0 0 0 0")
    second = host.parse_stat("cpu  150 0 125 850 75 0 0 0 0 0")
    assert second.used_since(first) == (75 / 200, 75 / 200)
    assert first.used_since(first) == (0.0, 0.0)
    assert host.parse_stat("cpu 1 2 3 4").total > 0


def test_pressure() -> None:
    text = "some avg10=1.50 avg60=0 avg300=0 total=1\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=0\n"
    assert host.parse_pressure(text) == host.Pressure(1.5, 0.25)
    assert host.parse_pressure(text.splitlines()[0]) == host.Pressure(1.5, 0.0)


def test_the_real_machine_makes_sense() -> None:
    cpu, memory = host.cpu(), host.memory()
    assert cpu.count == os.cpu_count()
    assert cpu.flags == host.cpu_flags()
    assert 0 < memory.available <= memory.total
    assert host.cpu_times().total > 0
    assert host.uptime() > 0
    assert len(host.load()) == 3
    assert host.root_space().total > 0
    assert len(host.boot_id()) == 36
    assert host.kernel().system == "Linux"
    assert host.network_namespace() > 0
    assert host.same_page_sharing() >= 0
    assert isinstance(host.efi(), bool)
    assert host.pressure("no-such-resource") is None
