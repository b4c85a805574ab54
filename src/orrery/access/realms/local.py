# SPDX-License-Identifier: AGPL-3.0-or-later
"""The realm `pve`: passwords as argon2id hashes in the store, under /secrets/shadow/USER."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from orrery.access.realms.base import acceptable
from orrery.errors import Corrupt, Failure
from orrery.model.identity import UserId
from orrery.store.base import Condition, Put, Store
from orrery.store.documents import encode_document, read_document

SHADOW = "/secrets/shadow/"
WAIT_SECONDS = 30.0

_slots = threading.BoundedSemaphore(2)
"""Each hash takes 64 MiB and its time; more than two at once would let logins starve the machine."""


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(timeout=WAIT_SECONDS):
        raise Failure("too many logins at once; try again")
    try:
        yield
    finally:
        _slots.release()


class LocalRealm:
    """Passwords that Orrery itself keeps."""

    def __init__(self, store: Store, *, hasher: PasswordHasher | None = None) -> None:
        self._store = store
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)

    def authenticate(self, user: UserId, password: str) -> bool:
        if not acceptable(password):
            return False
        key = shadow_key(user)
        entry = self._store.get(key)
        document = read_document(self._store, key)
        if entry is None or document is None:
            with _slot():
                self._matches(self._nobody, password)
            return False
        with _slot():
            if not self._matches(document["hash"], password, key):
                return False
            if self._hasher.check_needs_rehash(document["hash"]):
                # Lost against a change of the password meanwhile, which is right.
                fresh = encode_document({"hash": self._hasher.hash(password)})
                self._store.transact([Condition(key, entry.revision)], [Put(key, fresh)])
        return True

    def set_password(self, user: UserId, password: str) -> None:
        """Sets the password of a user of this realm, whether or not the user exists."""
        self._store.put(shadow_key(user), encode_document(self.hashed(password)))

    def hashed(self, password: str) -> dict[str, str]:
        """The document that stands for a password, for who writes it together with other things."""
        if not acceptable(password):
            raise Failure("the password is empty, too long, or contains a NUL character")
        with _slot():
            return {"hash": self._hasher.hash(password)}

    @cached_property
    def _nobody(self) -> str:
        """What the passwords of unknown users are compared with, so that they take as long."""
        return self._hasher.hash("nobody has this password")

    def _matches(self, known: str, password: str, key: str = "") -> bool:
        try:
            return self._hasher.verify(known, password)
        except InvalidHashError as error:
            raise Corrupt(f"the stored password hash '{key}' is damaged; set the password again") from error
        except VerificationError:
            return False


def shadow_key(user: UserId) -> str:
    """Where the hash of a user's password is stored."""
    return SHADOW + str(user)
