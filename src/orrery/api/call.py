# SPDX-License-Identifier: AGPL-3.0-or-later
"""One request as its handler sees it: who calls, from where, and what may be done on the caller's behalf."""

from dataclasses import dataclass, field

from starlette.requests import Request

from orrery.access.identity import Identity
from orrery.api.endpoint import Endpoint
from orrery.api.services import Services
from orrery.errors import Failure, Forbidden
from orrery.tasks.operation import Operation
from orrery.tasks.task import status_type


@dataclass
class Call:
    """A request that was authenticated, authorized and validated."""

    endpoint: Endpoint
    identity: Identity
    origin: str
    """Address of the client, or `local` for root on this host."""
    services: Services
    request: Request | None = None
    notes: list[str] = field(default_factory=list)

    def allowed(self, path: str, *privs: str, any: bool = False) -> bool:  # noqa: A002 - the rule's own word
        """Whether the caller has all of the privileges on the path (or any one of them)."""
        return self.services.permissions.allowed(self.identity, path, privs, any=any)

    def require(self, path: str, *privs: str, any: bool = False) -> None:  # noqa: A002
        """Raises `Forbidden` naming the first privilege that the caller lacks on the path."""
        self.services.permissions.require(self.identity, path, privs, any=any)

    def require_root(self, message: str) -> None:
        """Raises `Forbidden` unless the caller is root@pam itself."""
        if not self.identity.is_root:
            raise Forbidden(message)

    def start(self, operation: Operation, *, background_delay: float = 0) -> str | None:
        """Starts a task, after its check; its UPID.

        With `background_delay` it waits up to so many seconds: None when the task ended well meanwhile. Raises what
        the check finds, and `Failure` when the task failed within the delay.
        """
        operation.check(self.services.context)
        upid = self.services.runner.start(operation, self.identity)
        self.notes.append(str(upid))
        if background_delay <= 0:
            return str(upid)
        task = self.services.runner.wait(upid, background_delay)
        if task.status is None:
            return str(upid)
        if status_type(task.status) not in ("ok", "warning"):
            raise Failure(task.status)
        return None

    def audit(self, text: str) -> None:
        """Adds words to the audit line that this request will leave."""
        self.notes.append(text)
