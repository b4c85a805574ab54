# SPDX-License-Identifier: AGPL-3.0-or-later
"""The two families of guests as the API treats them alike: a table of options, its rules, and who may set what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from orrery.errors import ParameterError
from orrery.model import container, machine
from orrery.model.container_devices import parse_mount, parse_nic
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.container_properties import UNUSED_VOLUME
from orrery.model.devices import parse_nic as parse_machine_nic
from orrery.model.guest import GuestKind
from orrery.model.guest_options import OptionTable, Requirement
from orrery.model.machine_options import MACHINE_OPTIONS
from orrery.model.options import ClusterOptions
from orrery.model.volume import VolumeId
from orrery.operations.drives import names_volume, parse_drive

Changes = Mapping[str, str | None]
"""Options with their new values; None deletes one."""


@dataclass(frozen=True)
class VolumeUse:
    """What an option asks of storages: a new volume on `storage`, one that exists, or one that is copied."""

    storage: str | None = None
    volume: VolumeId | None = None
    source: VolumeId | None = None


@dataclass(frozen=True)
class BridgeUse:
    """The bridge that a network card is connected to: untagged, as the VLAN `tag`, and with the VLANs `trunks`."""

    bridge: str
    tag: int | None = None
    trunks: tuple[tuple[int, int], ...] = ()


class GuestFamily(Protocol):
    """What is different between machines and containers."""

    kind: GuestKind
    table: OptionTable

    def validate(self, options: Mapping[str, str], style: ClusterOptions) -> dict[str, str]:
        """Options in canonical text. Raises `ParameterError`."""
        ...

    def unsupported(self, options: Mapping[str, str]) -> dict[str, str]:
        """What this version knows but does not act on, by parameter."""
        ...

    def faults(self, options: Mapping[str, str]) -> dict[str, str]:
        """Faults between the options of a whole guest, by parameter."""
        ...

    def fixed(self, changes: Changes, current: Mapping[str, str]) -> dict[str, str]:
        """Why changes of a guest that exists cannot be, by parameter."""
        ...

    def root_only(self, key: str, changes: Changes, current: Mapping[str, str]) -> str | None:
        """Why only root@pam may make one of these changes; None when privileges are enough."""
        ...

    def required(self, key: str, changes: Changes, current: Mapping[str, str]) -> tuple[Requirement, ...]:
        """What others need for it."""
        ...

    def volume_use(self, key: str, text: str) -> VolumeUse:
        """What an option asks of storages. Raises `ParameterError`."""
        ...

    def bridge(self, key: str, text: str) -> BridgeUse | None:
        """The bridge, and the VLANs on it, that a network card is connected to."""
        ...


class _Machines:
    kind: GuestKind = "qemu"
    table = MACHINE_OPTIONS

    def validate(self, options: Mapping[str, str], style: ClusterOptions) -> dict[str, str]:
        return machine.validate_options(
            options, sort_tags=style.sort_tags, case_sensitive_tags=style.case_sensitive_tags
        )

    def unsupported(self, options: Mapping[str, str]) -> dict[str, str]:
        return machine.unsupported(options)

    def faults(self, options: Mapping[str, str]) -> dict[str, str]:
        return machine.check_machine(options)

    def fixed(self, changes: Changes, current: Mapping[str, str]) -> dict[str, str]:
        return {}

    def root_only(self, key: str, changes: Changes, current: Mapping[str, str]) -> str | None:
        return machine.root_only(key, changes[key], current.get(key))

    def required(self, key: str, changes: Changes, current: Mapping[str, str]) -> tuple[Requirement, ...]:
        return machine.privileges_for(key, changes[key], current.get(key))

    def volume_use(self, key: str, text: str) -> VolumeUse:
        if not names_volume(key):
            return VolumeUse()
        drive = parse_drive(key, text)
        return VolumeUse(drive.storage, drive.volume, drive.source)

    def bridge(self, key: str, text: str) -> BridgeUse | None:
        if not key.startswith("net"):
            return None
        nic = parse_machine_nic(text)
        return None if nic.bridge is None else BridgeUse(nic.bridge, nic.tag, nic.trunks)


class _Containers:
    kind: GuestKind = "lxc"
    table = CONTAINER_OPTIONS

    def validate(self, options: Mapping[str, str], style: ClusterOptions) -> dict[str, str]:
        return container.validate_options(
            options, sort_tags=style.sort_tags, case_sensitive_tags=style.case_sensitive_tags
        )

    def unsupported(self, options: Mapping[str, str]) -> dict[str, str]:
        return container.unsupported(options)

    def faults(self, options: Mapping[str, str]) -> dict[str, str]:
        return container.check_container(options)

    def fixed(self, changes: Changes, current: Mapping[str, str]) -> dict[str, str]:
        return container.fixed_faults(changes, current)

    def root_only(self, key: str, changes: Changes, current: Mapping[str, str]) -> str | None:
        unprivileged = _unprivileged(changes, current)
        return container.root_only(key, changes[key], current.get(key), unprivileged=unprivileged)

    def required(self, key: str, changes: Changes, current: Mapping[str, str]) -> tuple[Requirement, ...]:
        return container.privileges_for(key, changes[key], current.get(key))

    def volume_use(self, key: str, text: str) -> VolumeUse:
        try:
            if key.startswith("unused"):
                return VolumeUse(volume=VolumeId.parse(str(UNUSED_VOLUME.parse(text, key)["volume"])))
            if not container.is_mount(key):
                return VolumeUse()
            mount = parse_mount(key, text)
        except ValueError as error:
            raise ParameterError({key: f"invalid format - {error}"}) from error
        return VolumeUse(storage=mount.storage) if mount.new is not None else VolumeUse(volume=mount.volume)

    def bridge(self, key: str, text: str) -> BridgeUse | None:
        indexed = CONTAINER_OPTIONS.expand(key)
        if indexed is None or indexed[0] != "net":
            return None
        nic = parse_nic(text, indexed[1])
        return None if nic.bridge is None else BridgeUse(nic.bridge, nic.tag, nic.trunks)


def _unprivileged(changes: Changes, current: Mapping[str, str]) -> bool:
    return (changes["unprivileged"] if "unprivileged" in changes else current.get("unprivileged")) == "1"


MACHINES: GuestFamily = _Machines()
CONTAINERS: GuestFamily = _Containers()
FAMILIES: Mapping[str, GuestFamily] = {family.kind: family for family in (MACHINES, CONTAINERS)}
