# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the power verbs of machines and of containers have in common over the API."""

from typing import Annotated

from pydantic import Field

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.manners import Int
from orrery.errors import Forbidden

POWER = Perm("/vms/{vmid}", ("VM.PowerMgmt",))
Timeout = Annotated[int, Int(minimum=0, doc="Seconds to wait.")]
SkipLock = Field(default=False, description="Ignore the configuration's lock; root@pam only.")


def overrule_shutdown(call: Call, vmid: int, kind: str) -> None:
    """Cancels the caller's running shutdown tasks of the guest (everybody's with Sys.Modify on the node)."""
    everybody = call.allowed(f"/nodes/{call.services.node}", "Sys.Modify")
    for record in call.services.journal.open_tasks():
        if record.running and record.upid.kind == kind and record.upid.id == str(vmid):
            if not (everybody or record.upid.belongs_to(call.identity)):
                raise Forbidden(f"Permission check failed (/nodes/{call.services.node}, Sys.Modify)")
            call.services.runner.cancel(record.upid)
