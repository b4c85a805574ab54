# SPDX-License-Identifier: AGPL-3.0-or-later
"""Virtual machines: list, create, destroy, and what they are doing."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.cloudinitoptions import judged_secrets
from orrery.api.endpoint import endpoint
from orrery.api.guestconfig import checked_options, refuse_faults, stored_guest
from orrery.api.guestfamily import MACHINES
from orrery.api.guestparams import guest_params
from orrery.api.guestrights import check_options, refuse_skiplock, require_allocation, visible_guests
from orrery.api.guestrows import list_row
from orrery.api.manners import Format, Int, Text
from orrery.api.parameters import Boolean, GuestParams, NodeParams, StorageId
from orrery.errors import NotSupported, OrreryError
from orrery.metrics.facts import facts
from orrery.model.devices import parse_agent
from orrery.operations.guest_create import CreateMachine
from orrery.operations.guest_destroy import DestroyMachine

STATUS_SECONDS = 2.0

QEMU = "/nodes/{node}/qemu"
GUEST = QEMU + "/{vmid}"


class ListMachines(NodeParams):
    """How much to tell."""

    full: Boolean = Field(default=False, description="Also what has to be asked of each running machine.")


class CreateExtras(GuestParams):
    """What creating takes besides the machine's options."""

    archive: Annotated[str, Text(max_length=255, doc="Backup to restore.")] | None = None
    bwlimit: Annotated[int, Int(minimum=0, doc="Limit of restoring, in KiB/s.")] | None = None
    force: Boolean = Field(default=False, description="Restore over an existing machine.")
    ha_managed: Boolean = Field(default=False, description="Put it under high availability.")
    import_working_storage: StorageId | None = Field(default=None, description="Storage for extracted images.")
    live_restore: Boolean = Field(default=False, description="Start while it is being restored.")
    pool: Annotated[str, Format("pve-poolid", doc="Pool to enter it in.")] | None = None
    start: Boolean = Field(default=False, description="Start it when it has been created.")
    storage: StorageId | None = Field(default=None, description="Storage for restored volumes.")
    unique: Boolean = Field(default=False, description="Give restored cards new addresses.")


CREATE_EXTRAS_LATER = (
    *("archive", "bwlimit", "force", "ha_managed", "import_working_storage", "live_restore", "storage", "unique"),
)
CreateMachineParams = guest_params("CreateMachineParams", CreateExtras, MACHINES.table)


class Destroy(GuestParams):
    """What goes besides the machine."""

    skiplock: Boolean = Field(default=False, description="Ignore the configuration's lock; root@pam only.")
    purge: Boolean = Field(
        default=False,
        description="Also drop it from backup, replication and other jobs, of which this version has none.",
    )
    destroy_unreferenced_disks: Boolean = Field(
        default=False, description="Also remove images of its number that its configuration does not name."
    )


@endpoint("GET", QEMU, params=ListMachines, permission=Everyone(), returns=list[dict[str, Any]], proxy="node")
def list_machines(call: Call, p: ListMachines) -> list[dict[str, Any]]:
    """Machines of the node that the caller may see."""
    samples = call.services.collector.samples()
    return [
        list_row(guest, samples.get(guest.vmid), full=p.full)
        for guest in visible_guests(call, "VM.Audit")
        if guest.kind == "qemu" and guest.node == call.services.node
    ]


@endpoint("POST", QEMU, params=CreateMachineParams, permission=Everyone(), returns=str, task=True, proxy="node")
def create_machine(call: Call, p: Any) -> Any:
    """Create a machine, with new volumes, imported ones, or such that exist."""
    for name in CREATE_EXTRAS_LATER:
        if getattr(p, name):
            raise NotSupported(f"parameter '{name.replace('_', '-')}' is not supported yet")
    require_allocation(call, p.vmid, p.pool)
    options = checked_options(call, MACHINES, p.options())
    check_options(call, MACHINES, p.vmid, p.pool, options, {})
    refuse_faults(MACHINES.faults(options))
    plain, secrets = judged_secrets(call, options, options)
    return call.start(CreateMachine(p.vmid, plain, pool=p.pool, start=p.start, secrets=secrets))


@endpoint(
    "DELETE",
    GUEST,
    params=Destroy,
    permission=Perm("/vms/{vmid}", ("VM.Allocate",)),
    returns=str,
    task=True,
    proxy="node",
)
def destroy_machine(call: Call, p: Destroy) -> Any:
    """Destroy the machine and its volumes."""
    refuse_skiplock(call, p.skiplock)
    operation = DestroyMachine(p.vmid, unreferenced=p.destroy_unreferenced_disks, skiplock=p.skiplock)
    return call.start(operation)


@endpoint(
    "GET",
    GUEST + "/status/current",
    params=GuestParams,
    permission=Perm("/vms/{vmid}", ("VM.Audit",)),
    returns=dict[str, Any],
    proxy="node",
    waits=True,
)
def read_status(call: Call, p: GuestParams) -> dict[str, Any]:
    """What the machine is doing."""
    services = call.services
    stored = stored_guest(call, MACHINES, p.vmid)
    config = stored.record.config
    sample = services.collector.sample(p.vmid)
    row = list_row(facts(p.vmid, "qemu", services.node, stored.revision, config), sample) | {"ha": {"managed": 0}}
    if sample:
        row["qmpstatus"] = _state(call, p.vmid)
    if "agent" in config.options:
        row["agent"] = int(parse_agent(config.options["agent"]).enabled)
    if any(key.startswith("serial") for key in config.options):
        row["serial"] = 1
    return row


def _state(call: Call, vmid: int) -> str:
    """What the machine says it does; `unknown` when it does not answer in time, so that a hung one can be looked at."""
    try:
        return call.services.context.machines.status(vmid, timeout=STATUS_SECONDS).state
    except OrreryError:
        return "unknown"
