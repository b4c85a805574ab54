# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one tree of errors.

Every error that reaches a user is an `OrreryError`: it has a stable `code`, the HTTP `status` with which the API
answers, the `exit_code` of the command line, and a message that says what to do. Foreign exceptions are wrapped where
they arise. Messages that existing clients match on are spelled where they are raised.
"""

from collections.abc import Mapping
from typing import ClassVar


class OrreryError(Exception):
    """Base of all errors; `errors` maps parameter names to texts when single parameters are at fault."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, errors: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.errors: dict[str, str] = dict(errors or {})


class ParameterError(OrreryError):
    """One or more parameters are wrong; the whole request is refused before anything happened."""

    code = "parameter"
    status = 400
    exit_code = 2

    def __init__(self, errors: Mapping[str, str], message: str = "Parameter verification failed.") -> None:
        super().__init__(message, errors=errors)


class Unauthenticated(OrreryError):
    """No credentials, or bad ones."""

    code = "unauthenticated"
    status = 401
    exit_code = 3


class Forbidden(OrreryError):
    """The credentials are good, the privilege is missing."""

    code = "forbidden"
    status = 403
    exit_code = 4


class Failure(OrreryError):
    """A plain failure; the message is the whole story and becomes the reason phrase."""

    code = "failure"


class NotFound(OrreryError):
    """The thing named does not exist. The wire has no 404: it is a 500 with a known text."""

    code = "not-found"
    exit_code = 5


class AlreadyExists(OrreryError):
    """The name or id is taken."""

    code = "exists"
    exit_code = 6


class Locked(OrreryError):
    """Somebody else works on the thing; the message names whom or what."""

    code = "locked"
    exit_code = 7


class Conflict(OrreryError):
    """The configuration changed since it was read (digest or revision mismatch)."""

    code = "conflict"
    exit_code = 8

    def __init__(
        self, message: str = "detected modified configuration - file changed by other user? Try again."
    ) -> None:
        super().__init__(message)


class NotSupported(OrreryError):
    """Known to the API, but not done by this version."""

    code = "not-supported"
    status = 501
    exit_code = 9


class NodeUnreachable(OrreryError):
    """The node that owns the thing cannot be reached."""

    code = "unreachable"
    status = 595
    exit_code = 10


class NodeTimeout(OrreryError):
    """The node that owns the thing did not answer in time."""

    code = "timeout"
    status = 596
    exit_code = 11


class Cancelled(OrreryError):
    """The task was asked to stop."""

    code = "cancelled"
    exit_code = 12

    def __init__(self, message: str = "received interrupt") -> None:
        super().__init__(message)


class Corrupt(OrreryError):
    """A state file cannot be trusted. It is never reset; the message says what to do."""

    code = "corrupt"
    exit_code = 13


class NoSpace(OrreryError):
    """A storage is full."""

    code = "no-space"
    exit_code = 14
