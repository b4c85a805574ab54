# SPDX-License-Identifier: AGPL-3.0-or-later
"""The keys that tickets are signed with: one file, replaced as a whole, shared by every process of the node.

A new key pair comes every 24 hours. The one before it goes on verifying what it signed while it was in use, so nobody
is thrown out by a rotation; a ticket that claims to be younger than the rotation is refused, so the old key is worth
nothing to whoever finds it later.
"""

import base64
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from orrery.errors import Corrupt, Failure
from orrery.system.files import FileLock, read_json, write_json

ROTATION_SECONDS = 24 * 3600
CLOCK_GRACE = 300
KEY_BITS = 2048
FILE = "tickets.json"


@dataclass(frozen=True)
class KeyPair:
    """A key, and until when (Unix seconds) it signed; None for the one in use."""

    private: rsa.RSAPrivateKey
    created: float
    retired: float | None = None

    def sign(self, text: bytes) -> bytes:
        return self.private.sign(text, padding.PKCS1v15(), hashes.SHA256())

    def verifies(self, text: bytes, signature: bytes) -> bool:
        try:
            self.private.public_key().verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Keys:
    """What the file holds."""

    current: KeyPair
    previous: KeyPair | None
    csrf: bytes


class KeyRing:
    """The keys in `folder`/tickets.json (0600, folder 0700), made when missing. Safe for threads and processes.

    Raises `Corrupt` for a damaged file: it is never replaced by itself, since that would end every session silently.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._file = folder / FILE
        self._lock_file = folder / (FILE + ".lock")
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Failure(f"cannot make the key folder '{folder}': {error.strerror}") from error
        self._keys = self._load_or_make()

    def keys(self) -> Keys:
        """The keys as they are now; takes over what another process rotated."""
        with self._lock:
            if self._stat() != self._stamp:
                self._keys = self._load_or_make()
            return self._keys

    def signing_key(self) -> KeyPair:
        """The key to sign with: rotates when its day is over, or when the clock was set back before its birth."""
        keys = self.keys()
        if self._fresh(keys.current):
            return keys.current
        with self._lock, FileLock(self._lock_file):
            keys = self._load()
            if not self._fresh(keys.current):
                retired = KeyPair(keys.current.private, keys.current.created, self._clock())
                keys = Keys(_generate(self._clock()), retired, keys.csrf)
                self._save(keys)
            self._keys = keys
            return keys.current

    def _fresh(self, key: KeyPair) -> bool:
        return -CLOCK_GRACE <= self._clock() - key.created < ROTATION_SECONDS

    def _load_or_make(self) -> Keys:
        with FileLock(self._lock_file):
            try:
                return self._load()
            except FileNotFoundError:
                keys = Keys(_generate(self._clock()), None, secrets.token_bytes(32))
                self._save(keys)
                return keys

    def _load(self) -> Keys:
        stamp = self._stat()
        data = read_json(self._file)
        try:
            keys = Keys(
                _from_json(data["current"]),
                _from_json(data["previous"]) if data["previous"] else None,
                base64.b64decode(data["csrf"], validate=True),
            )
            if len(keys.csrf) < 32:
                raise ValueError("the CSRF key is too short")
        except (KeyError, TypeError, ValueError) as error:
            raise Corrupt(
                f"the key file '{self._file}' is damaged ({error}); put back a backup, or remove it to have new keys "
                "made, which ends every session"
            ) from error
        self._stamp = stamp
        return keys

    def _save(self, keys: Keys) -> None:
        write_json(
            self._file,
            {
                "current": _to_json(keys.current),
                "previous": _to_json(keys.previous) if keys.previous else None,
                "csrf": base64.b64encode(keys.csrf).decode(),
            },
        )
        self._stamp = self._stat()

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._file)  # noqa: PTH116 - on the path of every request
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _generate(now: float) -> KeyPair:
    return KeyPair(rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS), now)


def _to_json(key: KeyPair) -> dict[str, Any]:
    pem = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"key": pem.decode(), "created": key.created, "retired": key.retired}


def _from_json(data: dict[str, Any]) -> KeyPair:
    private = serialization.load_pem_private_key(data["key"].encode(), None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise TypeError("not an RSA key")
    retired = data["retired"]
    return KeyPair(private, float(data["created"]), None if retired is None else float(retired))
