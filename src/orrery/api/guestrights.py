# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which guests may the caller see, make, and change in which of their options? What reaches the host is root's."""

from collections.abc import Iterator, Mapping

from orrery.api.call import Call
from orrery.api.guestfamily import BridgeUse, Changes, GuestFamily, VolumeUse
from orrery.api.volumerights import require_read
from orrery.errors import Forbidden, ParameterError
from orrery.metrics.facts import GuestFacts
from orrery.model.volume import ParsedVolume, VolumeId, parse_volname

LAST_VLAN = 4094


def visible_guests(call: Call, *privileges: str) -> Iterator[GuestFacts]:
    """Guests on which the caller has one of the privileges."""
    visible = call.services.permissions.below(call.identity, "/vms", privileges, any=True)
    for guest in call.services.collector.facts:
        if visible(guest.vmid):
            yield guest


def require_allocation(call: Call, vmid: int, pool: str | None) -> None:
    """The right to make a guest of this number: on the number itself, or on the pool that it enters."""
    if pool is not None:
        call.require(f"/pool/{pool}", "VM.Allocate")
        return
    if not call.allowed(f"/vms/{vmid}", "VM.Allocate"):
        raise Forbidden(f"Permission check failed (/vms/{vmid}, VM.Allocate)")


def refuse_skiplock(call: Call, skiplock: bool) -> None:
    """Raises `Forbidden` when somebody else than root asks to ignore a lock."""
    if skiplock:
        call.require_root("Only root may use this option.")


def check_options(
    call: Call, family: GuestFamily, vmid: int, pool: str | None, changes: Changes, current: Mapping[str, str]
) -> None:
    """Raises `Forbidden` for the first change that the caller may not make; a value of None deletes the option.

    A new guest may also be configured with what its creator may on the pool that it enters.
    """
    if call.identity.is_root:
        return
    for key, value in changes.items():
        if reason := family.root_only(key, changes, current):
            raise Forbidden(reason)
        for requirement in family.required(key, changes, current):
            path = requirement.path or f"/vms/{vmid}"
            by_pool = requirement.path is None and pool is not None
            if by_pool and call.allowed(f"/pool/{pool}", *requirement.privileges, any=requirement.any_of):
                continue
            call.require(path, *requirement.privileges, any=requirement.any_of)
        if value is not None:
            check_volume_rights(call, vmid, key, family.volume_use(key, value))
            check_bridge(call, family.bridge(key, value))


def check_volume_rights(call: Call, vmid: int, key: str, use: VolumeUse) -> None:
    """Space where a volume is made; the right to read what is imported or used."""
    if use.storage is not None:
        check_space(call, use.storage)
        if use.source is not None:
            require_read(call, use.source.storage, parsed_volume(key, use.source))
    elif use.volume is not None:
        parsed = parsed_volume(key, use.volume)
        if parsed.content not in ("images", "rootdir") or parsed.vmid != vmid:
            require_read(call, use.volume.storage, parsed)


def check_space(call: Call, storage: str) -> None:
    """The right to make volumes on a storage."""
    call.require(f"/storage/{storage}", "Datastore.AllocateSpace")


def check_bridge(call: Call, use: BridgeUse | None) -> None:
    """The right to use a bridge, or the VLAN on it, and every VLAN that the card is trunked with."""
    if use is None:
        return
    path = f"/sdn/zones/localnetwork/{use.bridge}"
    call.require(path if use.tag is None else f"{path}/{use.tag}", "SDN.Use")
    vlans = {vlan for first, last in use.trunks for vlan in range(first, min(last, LAST_VLAN) + 1)}
    for vlan in sorted(vlans - {use.tag}):
        call.require(f"{path}/{vlan}", "SDN.Use")


def parsed_volume(key: str, volume: VolumeId) -> ParsedVolume:
    """What a volume's name says. Raises `ParameterError` for the parameter that names it."""
    try:
        return parse_volname(volume.name)
    except ValueError as error:
        raise ParameterError({key: f"invalid format - {error}"}) from error
