# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which guests may the caller see, and which options of a machine change? What reaches the host is root's."""

from collections.abc import Iterator, Mapping

from orrery.api.call import Call
from orrery.api.volumerights import require_read
from orrery.errors import Forbidden, ParameterError
from orrery.metrics.facts import GuestFacts
from orrery.model.machine import privileges_for, root_only
from orrery.model.machine_properties import NIC
from orrery.model.volume import ParsedVolume, VolumeId, parse_volname
from orrery.operations.drives import Drive, names_volume, parse_drive


def visible_guests(call: Call, *privileges: str) -> Iterator[GuestFacts]:
    """Guests on which the caller has one of the privileges."""
    visible = call.services.permissions.below(call.identity, "/vms", privileges, any=True)
    for guest in call.services.collector.facts:
        if visible(guest.vmid):
            yield guest


def check_options(
    call: Call, vmid: int, pool: str | None, changes: Mapping[str, str | None], current: Mapping[str, str]
) -> None:
    """Raises `Forbidden` for the first change that the caller may not make; a value of None deletes the option.

    A new guest may also be configured with what its creator may on the pool that it enters.
    """
    if call.identity.is_root:
        return
    for key, value in changes.items():
        old = current.get(key)
        if reason := root_only(key, value, old):
            raise Forbidden(reason)
        for requirement in privileges_for(key, value, old):
            path = requirement.path or f"/vms/{vmid}"
            by_pool = requirement.path is None and pool is not None
            if by_pool and call.allowed(f"/pool/{pool}", *requirement.privileges, any=requirement.any_of):
                continue
            call.require(path, *requirement.privileges, any=requirement.any_of)
        if value is not None and names_volume(key):
            check_drive_rights(call, vmid, parse_drive(key, value))
        if value is not None and key.startswith("net"):
            check_bridge(call, key, value)


def check_drive_rights(call: Call, vmid: int, drive: Drive) -> None:
    """Space where a volume is made; the right to read what is imported or used."""
    if drive.storage is not None:
        check_space(call, drive.storage, drive.key)
        if drive.source is not None:
            require_read(call, drive.source.storage, _parsed(drive.source, drive.key))
    elif drive.volume is not None:
        parsed = _parsed(drive.volume, drive.key)
        if parsed.content != "images" or parsed.vmid != vmid:
            require_read(call, drive.volume.storage, parsed)


def check_space(call: Call, storage: str, key: str) -> None:
    """The right to make volumes on a storage."""
    call.require(f"/storage/{storage}", "Datastore.AllocateSpace")


def check_bridge(call: Call, key: str, value: str) -> None:
    """The right to use a bridge, and the VLAN on it."""
    values = NIC.parse(value, key)
    bridge = values.get("bridge")
    if bridge is None:
        return
    path = f"/sdn/zones/localnetwork/{bridge}"
    if (tag := values.get("tag")) is not None:
        path += f"/{tag}"
    call.require(path, "SDN.Use")


def _parsed(volume: VolumeId, key: str) -> ParsedVolume:
    try:
        return parse_volname(volume.name)
    except ValueError as error:
        raise ParameterError({key: f"invalid format - {error}"}) from error
