# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cases of the golden command lines: configurations, and what storage and network would say about them."""

from pathlib import Path

from orrery.drivers.qemu.commandline import build
from orrery.drivers.qemu.facts import HostFacts
from orrery.drivers.qemu.plan import LaunchPlan, TapFds, VolumeFile
from orrery.model.devices import machine_devices
from orrery.model.guest import GuestConfig

CASES = sorted((Path(__file__).parent / "qemu").glob("*.conf"))
EMULATED = HostFacts(
    binary="/usr/bin/qemu-system-x86_64",
    version="7.2.22",
    no_kvm="the processor has neither vmx nor svm",
    nested=None,
    aio="io_uring",
)
KVM = HostFacts(binary="/usr/bin/qemu-system-x86_64", version="7.2.22", no_kvm=None, nested="svm", aio="io_uring")
WITH_KVM = ("cpu-", "windows", "defaults-linux", "kvm-off")
WITH_VHOST = ("net-options", "q35-ovmf")


def volumes_of(config: GuestConfig, folder: Path) -> dict[str, VolumeFile]:
    """What a storage would say about the volumes of a configuration."""
    view = machine_devices(config)
    found = {}
    given = {disk.key: disk.volume for disk in view.disks} | ({"efidisk0": view.efi.volume} if view.efi else {})
    for key, volume in given.items():
        if volume is not None:
            path = folder / volume.name
            kind = "raw" if path.suffix == ".iso" else path.suffix[1:]
            found[key] = VolumeFile(path, kind, read_only=path.suffix == ".iso")
    return found


def taps_of(config: GuestConfig, *, vhost: bool) -> dict[int, TapFds]:
    """What a network would open for the cards of a configuration."""
    found = {}
    for nic in machine_devices(config).nics:
        if nic.bridge is not None:
            first, count = 1000 + 100 * nic.index, nic.queues or 1
            fds = tuple(range(first, first + count))
            found[nic.index] = TapFds(fds, tuple(fd + 50 for fd in fds) if vhost else (), nic.mtu)
    return found


def plan_of(case: Path) -> LaunchPlan:
    config = GuestConfig.from_text(case.read_text())
    facts = KVM if case.stem.startswith(WITH_KVM) else EMULATED
    taps = taps_of(config, vhost=case.stem in WITH_VHOST)
    return build(100, config, facts, volumes_of(config, Path("/storage")), taps)
