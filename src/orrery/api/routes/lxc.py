# SPDX-License-Identifier: AGPL-3.0-or-later
"""Containers: list, create, destroy, and what they are doing."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.access.shadow import hash_password
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.guestconfig import AUDIT, checked_options, config_of, refuse_faults, stored_guest
from orrery.api.guestfamily import CONTAINERS
from orrery.api.guestparams import guest_params
from orrery.api.guestrights import check_options, parsed_volume, require_allocation, visible_guests
from orrery.api.guestrows import container_row
from orrery.api.manners import Enum, Flag, Format, Real, Text
from orrery.api.parameters import Boolean, GuestParams, NodeParams, StorageId
from orrery.api.volumerights import require_read
from orrery.errors import NotFound, NotSupported, ParameterError
from orrery.metrics.facts import facts
from orrery.model.cloudinit import is_public_key
from orrery.model.volume import VolumeId
from orrery.operations.container_create import CreateContainer
from orrery.operations.container_destroy import DestroyContainer
from orrery.operations.container_mounts import ROOT_SIZE
from orrery.system.netlink import Link

LXC = "/nodes/{node}/lxc"
GUEST = LXC + "/{vmid}"
LONGEST_KEYS = 64 << 10


class CreateExtras(GuestParams):
    """What creating takes besides the container's options."""

    ostemplate: Annotated[str, Text(max_length=255, doc="Volume of the template that it is made from.")]
    bwlimit: Annotated[float, Real(minimum=0, doc="Limit of unpacking, in KiB/s; 0 for none.")] | None = None
    force: Boolean = Field(default=False, description="Restore over an existing container.")
    ha_managed: Boolean = Field(default=False, description="Put it under high availability.")
    ignore_unpack_errors: Boolean = Field(default=False, description="Go on when a file cannot be unpacked.")
    password: Annotated[str, Text(min_length=5, max_length=1024, doc="Password of root inside.")] | None = None
    pool: Annotated[str, Format("pve-poolid", doc="Pool to enter it in.")] | None = None
    restore: Boolean = Field(default=False, description="The template is a backup to restore.")
    ssh_public_keys: (
        Annotated[str, Text(max_length=LONGEST_KEYS, doc="Public keys for root inside, one to a line.")] | None
    ) = None
    start: Boolean = Field(default=False, description="Start it when it has been created.")
    storage: StorageId = Field(default="local", description="Where its root file system lies unless `rootfs` says.")
    unique: Annotated[bool, Flag(requires="restore")] = Field(
        default=False, description="Give restored cards new addresses."
    )


CREATE_EXTRAS_LATER = ("force", "ha_managed", "restore", "unique")
CreateContainerParams = guest_params("CreateContainerParams", CreateExtras, CONTAINERS.table)


class Destroy(GuestParams):
    """What goes besides the container."""

    force: Boolean = Field(default=False, description="Also when it runs.")
    purge: Boolean = Field(
        default=False,
        description="Also drop it from backup, replication and other jobs, of which this version has none.",
    )
    destroy_unreferenced_disks: Boolean = Field(
        default=False, description="Also remove volumes of its number that its configuration does not name."
    )


class AskFeature(GuestParams):
    """Which feature."""

    feature: Annotated[str, Enum("snapshot", "clone", "copy", doc="What may be possible.")]
    snapname: Annotated[str, Format("pve-configid", max_length=40, doc="Of this snapshot.")] | None = None


@endpoint("GET", LXC, params=NodeParams, permission=Everyone(), returns=list[dict[str, Any]], proxy="node")
def list_containers(call: Call, p: NodeParams) -> list[dict[str, Any]]:
    """Containers of the node that the caller may see."""
    samples = call.services.collector.samples()
    return [
        container_row(guest, samples.get(guest.vmid))
        for guest in visible_guests(call, "VM.Audit")
        if guest.kind == "lxc" and guest.node == call.services.node
    ]


@endpoint("POST", LXC, params=CreateContainerParams, permission=Everyone(), returns=str, task=True, proxy="node")
def create_container(call: Call, p: Any) -> Any:
    """Create a container from a template, unprivileged unless said otherwise."""
    for name in CREATE_EXTRAS_LATER:
        if getattr(p, name):
            raise NotSupported(f"parameter '{name.replace('_', '-')}' is not supported yet")
    require_allocation(call, p.vmid, p.pool)
    given = checked_options(call, CONTAINERS, p.options())
    # What is judged is what will be: the defaults too need rights.
    options = {"rootfs": f"{p.storage}:{ROOT_SIZE}", "unprivileged": "1", **given}
    check_options(call, CONTAINERS, p.vmid, p.pool, options, {})
    refuse_faults(CONTAINERS.faults(options))
    operation = CreateContainer(
        p.vmid,
        options,
        template=template_of(call, p.ostemplate),
        storage=p.storage,
        password_hash=None if p.password is None else hash_password(p.password),
        ssh_keys=public_keys(p.ssh_public_keys),
        pool=p.pool,
        start=p.start,
        ignore_unpack_errors=p.ignore_unpack_errors,
        bwlimit=None if p.bwlimit is None else round(p.bwlimit),
    )
    return call.start(operation)


def template_of(call: Call, text: str) -> str:
    """The template's volume, which the caller may use. Raises `ParameterError`, `Forbidden`."""
    try:
        volume = VolumeId.parse(text)
    except ValueError as error:
        raise ParameterError({"ostemplate": f"invalid format - {error}"}) from error
    parsed = parsed_volume("ostemplate", volume)
    if parsed.content != "vztmpl":
        raise ParameterError({"ostemplate": f"'{text}' is no template of containers (STORAGE:vztmpl/NAME)"})
    require_read(call, volume.storage, parsed)
    return str(volume)


def public_keys(text: str | None) -> str | None:
    """Lines for authorized_keys; None without any. Raises `ParameterError` for what is no key."""
    lines = [line.strip() for line in (text or "").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for number, key in enumerate(keys, 1):
        if not is_public_key(key):
            fault = f"SSH public key validation error: key {number} is no public key (TYPE BASE64 COMMENT)"
            raise ParameterError({"ssh-public-keys": fault})
    return "".join(f"{key}\n" for key in keys) or None


@endpoint(
    "DELETE",
    GUEST,
    params=Destroy,
    permission=Perm("/vms/{vmid}", ("VM.Allocate",)),
    returns=str,
    task=True,
    proxy="node",
)
def destroy_container(call: Call, p: Destroy) -> Any:
    """Destroy the container and its volumes."""
    unreferenced = p.destroy_unreferenced_disks
    return call.start(DestroyContainer(p.vmid, force=p.force, purge=p.purge, unreferenced=unreferenced))


@endpoint("GET", GUEST + "/status/current", params=GuestParams, permission=AUDIT, returns=dict[str, Any], proxy="node")
def read_container_status(call: Call, p: GuestParams) -> dict[str, Any]:
    """What the container is doing."""
    services = call.services
    stored = stored_guest(call, CONTAINERS, p.vmid)
    guest = facts(p.vmid, "lxc", services.node, stored.revision, stored.record.config)
    return container_row(guest, services.collector.sample(p.vmid)) | {"ha": {"managed": 0}}


@endpoint(
    "GET",
    GUEST + "/interfaces",
    params=GuestParams,
    permission=AUDIT,
    returns=list[dict[str, Any]],
    proxy="node",
    waits=True,
)
def list_interfaces(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """The network cards inside with their addresses; none while the container does not run."""
    stored_guest(call, CONTAINERS, p.vmid)
    containers = call.services.context.containers
    if containers.find(p.vmid) is None:
        return []
    return [interface_row(link) for link in containers.interfaces(p.vmid)]


def interface_row(link: Link) -> dict[str, Any]:
    """A network card as clients know it: one address of each family beside the list of all."""
    row: dict[str, Any] = {"name": link.name, "hwaddr": link.mac, "hardware-address": link.mac}
    for family, key in ((4, "inet"), (6, "inet6")):
        found = [address for address in link.addresses if address.version == family]
        if found:
            # The first that others can reach, if there is one.
            row[key] = str(min(found, key=lambda address: address.is_link_local))
    row["ip-addresses"] = [
        {
            "ip-address": str(address.ip),
            "ip-address-type": "inet" if address.version == 4 else "inet6",
            "prefix": address.network.prefixlen,
        }
        for address in link.addresses
    ]
    return row


@endpoint("GET", GUEST + "/feature", params=AskFeature, permission=AUDIT, returns=dict[str, Any], proxy="node")
def has_feature(call: Call, p: AskFeature) -> dict[str, Any]:
    """Whether the container can be copied or have snapshots: this version can do neither."""
    config = config_of(call, CONTAINERS, p.vmid)
    if p.snapname is not None and p.snapname not in config.snapshots:
        raise NotFound(f"snapshot '{p.snapname}' does not exist")
    return {"hasFeature": 0}
