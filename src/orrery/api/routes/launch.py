# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest from an image in one step, and the addresses that guests were given."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote

from pydantic import Field

from orrery.access.rules import Everyone
from orrery.access.shadow import hash_password
from orrery.api.call import Call
from orrery.api.cloudinitoptions import judged_secrets
from orrery.api.endpoint import endpoint
from orrery.api.guestconfig import checked_options, refuse_faults
from orrery.api.guestfamily import CONTAINERS, MACHINES
from orrery.api.guestrights import check_options, require_allocation, visible_guests
from orrery.api.manners import Enum, Format, Int, Text
from orrery.api.parameters import Boolean, NodeParams, StorageId, Vmid
from orrery.api.routes.cluster import NextId, next_id
from orrery.api.routes.images import ImageName, fetching
from orrery.api.routes.lxc import LONGEST_KEYS, public_keys
from orrery.api.volumerights import require_read
from orrery.errors import NotFound
from orrery.model.images import ImageEntry, Kind, find_entry, looks_like_reference
from orrery.model.volume import VolumeId, parse_volname
from orrery.operations.image_launch import LaunchGuest
from orrery.operations.image_oci import OciImport, OciPull
from orrery.operations.image_pull import PullImage
from orrery.operations.image_records import entry_named, image_volume, present
from orrery.store.guests import find_guest

_NAME_UNFIT = re.compile(r"[^a-z0-9]+")
_OCI_MEMORY: Final = 512
_OCI_DISK: Final = 4


class Launch(NodeParams):
    """What guest to make, and from what."""

    image: ImageName
    type: (
        Annotated[str, Enum("container", "machine", doc="What to make; without it what there is an image for.")] | None
    ) = None
    vmid: Vmid | None = Field(default=None, description="Number of the guest; the next free one without it.")
    name: (
        Annotated[str, Format("dns-name", doc="Its name; made of the image's name and the number without it.")] | None
    ) = None
    storage: StorageId = Field(default="local", description="Where its disk lies.")
    image_storage: StorageId = Field(default="local", description="Where the image lies or is put.")
    memory: Annotated[int, Int(minimum=16, doc="Memory in MiB.")] | None = None
    cores: Annotated[int, Int(minimum=1, doc="Processors.")] | None = None
    disk: Annotated[int, Int(minimum=0, doc="Size of its disk in GiB.")] | None = None
    bridge: Annotated[str, Text(max_length=32, doc="Bridge of its network card.")] = "vmbr0"
    ip: Annotated[str, Text(max_length=64, doc="IPv4 address as ADDRESS/PREFIX, or dhcp.")] = "dhcp"
    gateway: Annotated[str, Text(max_length=64, doc="Gateway of a fixed address.")] | None = None
    user: Annotated[str, Text(max_length=64, doc="Account that a machine gets.")] | None = None
    password: Annotated[str, Text(min_length=5, max_length=1024, doc="Password of the account, or of root.")] | None = (
        None
    )
    ssh_public_keys: Annotated[str, Text(max_length=LONGEST_KEYS, doc="Public keys that may log in.")] | None = None
    pool: Annotated[str, Format("pve-poolid", doc="Pool to enter it in.")] | None = None
    start: Boolean = Field(default=True, description="Start it.")


class ListAddresses(NodeParams):
    """Whose addresses."""

    vmid: Vmid | None = Field(default=None, description="Only those of this guest.")


@dataclass(frozen=True)
class _Image:
    """The image that was meant. `fetch`: it is not there yet."""

    name: str
    kind: Kind
    storage: str
    volume: str
    fetch: bool
    memory: int
    disk: int
    user: str = ""
    reference: str | None = None

    @property
    def volid(self) -> str:
        return f"{self.storage}:{self.volume}"


@endpoint(
    "POST",
    "/nodes/{node}/launch",
    params=Launch,
    permission=Everyone(),
    returns=str,
    task=True,
    proxy="node",
    waits=True,
)
def launch(call: Call, p: Launch) -> Any:
    """Create a guest from an image, fetched if need be, and start it."""
    vmid = p.vmid or int(next_id(call, NextId()))
    require_allocation(call, vmid, p.pool)  # before other servers are asked for the image
    image = _find(call, p)
    require_read(call, image.storage, parse_volname(image.volume))
    operation = _machine(call, p, image, vmid) if image.kind == "machine" else _container(call, p, image, vmid)
    return call.start(operation)


def _find(call: Call, p: Launch) -> _Image:
    """What the name stands for: a volume, an entry of the catalogue, or an image in a registry."""
    if ":vztmpl/" in p.image or ":import/" in p.image:
        volume, kind = image_volume(p.image)
        return _of_volume(call, volume, kind)
    entry = _entry(call, p)
    if entry is None and not (p.type != "machine" and looks_like_reference(p.image)):
        raise NotFound(f"there is no image '{p.image}'; `orrery image list` shows what there is")
    kind = entry.kind if entry is not None else "container"
    operation = fetching(call, p.image, kind, p.image_storage, force=False)
    assert isinstance(operation, PullImage | OciPull | OciImport)  # noqa: S101  (all that `fetching` makes)
    reference = operation.reference if isinstance(operation, OciPull) else None
    there = {found.volid: found.record for found in present(call.services.context, (kind,))}
    record = there.get(f"{p.image_storage}:{operation.volume}")
    # Images of different registries may have the same file name.
    fetch = record is None or reference not in (None, record.origin)
    if fetch:
        call.require(f"/storage/{p.image_storage}", "Datastore.AllocateTemplate")
    memory, disk = (entry.memory, entry.disk) if entry is not None else (_OCI_MEMORY, _OCI_DISK)
    user = entry.default_user if entry is not None else ""
    name = entry.alias if entry is not None else p.image
    return _Image(name, kind, p.image_storage, operation.volume, fetch, memory, disk, user, reference)


def _entry(call: Call, p: Launch) -> ImageEntry | None:
    """The entry, of the kind that is asked for; containers first when none is."""
    if p.type is not None:
        return entry_named(call.services.context, p.image, "machine" if p.type == "machine" else "container")
    return (
        find_entry(p.image, "container")
        or find_entry(p.image, "machine")
        or entry_named(call.services.context, p.image, "container")
        or entry_named(call.services.context, p.image, "machine")
    )


def _of_volume(call: Call, volume: VolumeId, kind: Kind) -> _Image:
    volid = str(volume)
    record = next((each.record for each in present(call.services.context, (kind,)) if each.volid == volid), None)
    memory, disk = (512, 4) if kind == "container" else (1024, 10)
    user = record.default_user if record is not None else ""
    return _Image(volume.name, kind, volume.storage, volume.name, False, memory, disk, user)


def _name(p: Launch, image: _Image, vmid: int) -> str:
    stem = _NAME_UNFIT.sub("-", image.name.rpartition("/")[2].lower()).strip("-")[:40]
    return p.name or f"{stem}-{vmid}".strip("-")


def _container(call: Call, p: Launch, image: _Image, vmid: int) -> LaunchGuest:
    gateway = f",gw={p.gateway}" if p.gateway else ""
    disk = image.disk if p.disk is None else p.disk
    given = {
        "hostname": _name(p, image, vmid),
        "memory": str(p.memory or image.memory),
        "rootfs": f"{p.storage}:{disk}",
        "net0": f"name=eth0,bridge={p.bridge},ip={p.ip}{gateway}",
        "unprivileged": "1",
        **({"cores": str(p.cores)} if p.cores else {}),
    }
    options = checked_options(call, CONTAINERS, given)
    # How an OCI image wants to be started is an option of the container, which its maker must be allowed to set.
    judged = {**options, **({"entrypoint": "/sbin/init"} if image.reference else {})}
    check_options(call, CONTAINERS, vmid, p.pool, judged, {})
    refuse_faults(CONTAINERS.faults(options))
    return LaunchGuest(
        vmid,
        image.kind,
        image.name,
        image.storage,
        image.volume,
        options,
        storage=p.storage,
        fetch=image.fetch,
        reference=image.reference,
        pool=p.pool,
        start=p.start,
        password_hash=None if p.password is None else hash_password(p.password),
        ssh_keys=public_keys(p.ssh_public_keys),
    )


def _machine(call: Call, p: Launch, image: _Image, vmid: int) -> LaunchGuest:
    gateway = f",gw={p.gateway}" if p.gateway else ""
    disk = image.disk if p.disk is None else p.disk
    keys = public_keys(p.ssh_public_keys)
    given = {
        "name": _name(p, image, vmid),
        "memory": str(p.memory or image.memory),
        "cores": str(p.cores or 1),
        "scsihw": "virtio-scsi-single",
        "scsi0": f"{p.storage}:{disk},import-from={image.volid}",
        "ide2": f"{p.storage}:cloudinit",
        "boot": "order=scsi0",
        "net0": f"virtio,bridge={p.bridge}",
        "ipconfig0": f"ip={p.ip}{gateway}",
        "serial0": "socket",
        "ostype": "l26",
        **({"ciuser": p.user or image.user} if p.user or image.user else {}),
        **({"cipassword": p.password} if p.password is not None else {}),
        **({"sshkeys": quote(keys.strip(), safe="")} if keys else {}),
    }
    options = checked_options(call, MACHINES, given)
    check_options(call, MACHINES, vmid, p.pool, options, {})
    refuse_faults(MACHINES.faults(options))
    plain, secrets = judged_secrets(call, options, options)
    return LaunchGuest(
        vmid,
        image.kind,
        image.name,
        image.storage,
        image.volume,
        plain,
        fetch=image.fetch,
        pool=p.pool,
        start=p.start,
        secrets=secrets,
    )


@endpoint(
    "GET",
    "/nodes/{node}/addresses",
    params=ListAddresses,
    permission=Everyone(),
    returns=list[dict[str, Any]],
    proxy="node",
    waits=True,
)
def list_addresses(call: Call, p: ListAddresses) -> list[dict[str, Any]]:
    """Addresses that this node's own DHCP gave to guests that the caller may see."""
    services = call.services
    leases = {lease.mac.upper(): lease for lease in services.context.network.leases()}
    rows = []
    for guest in visible_guests(call, "VM.Audit"):
        if guest.node != services.node or (p.vmid is not None and guest.vmid != p.vmid):
            continue
        found = find_guest(services.store, guest.vmid)
        for key, text in sorted(found.record.config.options.items()) if found is not None else ():
            mac = _mac(key, text)
            if mac in leases:
                lease = leases[mac]
                rows.append({"vmid": guest.vmid, "card": key, "mac": mac, "address": str(lease.address)})
    return rows


def _mac(key: str, text: str) -> str:
    if not re.fullmatch(r"net\d+", key):
        return ""
    match = re.search(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", text)
    return match[0].upper() if match else ""
