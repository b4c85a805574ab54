# SPDX-License-Identifier: AGPL-3.0-or-later
"""/nodes/{node}/qemu/{vmid}/cloudinit: what a machine is told, and the medium that tells it."""

from typing import Annotated, Any

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.cloudinitoptions import require_snippets
from orrery.api.endpoint import endpoint
from orrery.api.guestconfig import AUDIT, config_of, finish
from orrery.api.guestfamily import MACHINES
from orrery.api.manners import Enum
from orrery.api.parameters import GuestParams
from orrery.api.routes.qemu import GUEST
from orrery.model import cloudinit
from orrery.model.cloudinit import Section
from orrery.operations.cloudinit import RegenerateCloudinit, noted, part, telling

CLOUDINIT = GUEST + "/cloudinit"


class Dump(GuestParams):
    """Which part."""

    type: Annotated[Section, Enum("user", "network", "meta", doc="Which part of it.")]


@endpoint("GET", CLOUDINIT, params=GuestParams, permission=AUDIT, returns=list[dict[str, Any]], proxy="node")
def read_cloudinit(call: Call, p: GuestParams) -> list[dict[str, Any]]:
    """What the machine is told, with its value on the medium and the one that is not there yet."""
    options = config_of(call, MACHINES, p.vmid).options
    now = telling(options)
    there = now if cloudinit.drive_of(options) is None else noted(call.services.store, p.vmid) or {}
    rows = []
    for key in sorted({*now, *there}):
        row: dict[str, Any] = {"key": key}
        if key in there:
            row["value"] = _shown(key, there[key])
        if key not in now:
            row["delete"] = 1
        elif now[key] != there.get(key):
            row["pending"] = _shown(key, now[key])
        rows.append(row)
    return rows


def _shown(key: str, text: str) -> str:
    return cloudinit.shown({key: text})[key]


@endpoint(
    "PUT",
    CLOUDINIT,
    params=GuestParams,
    permission=Perm("/vms/{vmid}", ("VM.Config.Cloudinit",)),
    returns=None,
    proxy="node",
    waits=True,
)
def regenerate(call: Call, p: GuestParams) -> None:
    """Make the medium anew, and change it in a machine that runs."""
    finish(call, RegenerateCloudinit(p.vmid))


@endpoint("GET", CLOUDINIT + "/dump", params=Dump, permission=AUDIT, returns=str, proxy="node", waits=True)
def dump(call: Call, p: Dump) -> str:
    """A part of what the machine would be told now; the password is masked."""
    options = config_of(call, MACHINES, p.vmid).options
    single = cloudinit.kind_of(options) == "opennebula"  # one file holds it all
    require_snippets(call, options.get("cicustom", ""), None if single else (p.type,))
    return part(call.services.context, p.vmid, options, p.type)
