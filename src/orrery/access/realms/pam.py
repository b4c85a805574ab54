# SPDX-License-Identifier: AGPL-3.0-or-later
"""The realm `pam`: the accounts of the host's operating system.

The PAM service is `orrery`; where the host has no /etc/pam.d/orrery, PAM itself takes its service `other`.
"""

import importlib
from typing import Any

import structlog

from orrery.access.realms.base import acceptable
from orrery.errors import Failure
from orrery.model.identity import UserId

SERVICE = "orrery"
DISALLOW_EMPTY = 0x1
SILENT = 0x8000
"""Flags of libpam, by its header pam_appl.h."""

log = structlog.get_logger()


class PamRealm:
    """Accounts of the host. PAM's modules decide how long a failure takes (commonly two seconds)."""

    def __init__(self, service: str = SERVICE) -> None:
        self._service = service

    def authenticate(self, user: UserId, password: str) -> bool:
        """Whether PAM accepts the password and the account is allowed in (not expired, not locked).

        An account with an empty password is refused, though the host's own consoles may let it in: here it would be
        open to the whole network, with any password.
        """
        if not acceptable(password):
            return False
        pam = _library()
        answer = pam.new_simple_password_conv((password,), "utf-8")
        try:
            handle = pam.pam_start(self._service, user.name, conv_func=answer)
            status = pam.PAM_AUTHENTICATE(handle, DISALLOW_EMPTY | SILENT)
            if status == 0:
                status = pam.PAM_ACCT_MGMT(handle, DISALLOW_EMPTY | SILENT)
            pam.pam_end(handle, status)
        except pam.PAMError as error:
            log.info("PAM refused a login", user=str(user), reason=error.message)
            return False
        return True

    def set_password(self, user: UserId, password: str) -> None:
        """Changes the password of the host's account."""
        if not acceptable(password):
            raise Failure("the password is empty, too long, or contains a NUL character")
        pam = _library()
        try:
            pam.change_password(user.name, password, service=self._service)
        except pam.PAMError as error:
            raise Failure(f"the host refused the new password of '{user}': {error.message}") from error


def _library() -> Any:
    """libpam, looked up when it is first needed: finding it takes a while, and few nodes need it at start."""
    try:
        return importlib.import_module("pamela")
    except (ImportError, OSError, AttributeError) as error:
        raise Failure("logins of the realm 'pam' need the system library libpam (Debian package libpam0g)") from error
