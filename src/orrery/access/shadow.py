# SPDX-License-Identifier: AGPL-3.0-or-later
"""Passwords for the systems inside guests, as /etc/shadow holds them.

Python has no `crypt` any more from 3.13 on, so libcrypt is asked directly. Orrery's own users have argon2 hashes
(`orrery.access.passwords`); these here must be understood by whatever runs in a guest, hence SHA-512.
"""

import ctypes
import functools
import re
import secrets
from typing import Any, Final

from orrery.errors import Failure

ROUNDS: Final = 100_000
_ALPHABET: Final = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SALT_LENGTH: Final = 16
_WORK_AREA: Final = 32_768
"""Bytes of libxcrypt's `struct crypt_data`, the size of which is part of its interface."""
_HASHED: Final = re.compile(r"\$(?:1|5|6|y|gy|7|2[abxy])\$[!-~]+\$[!-~]+|\$2[abxy]\$\d\d\$[!-~]{53}")


def is_hash(text: str) -> bool:
    """Whether a text is a hash of one of the kinds that systems know, rather than a password."""
    return _HASHED.fullmatch(text) is not None


def hash_password(password: str) -> str:
    """The SHA-512 hash of a password, `$6$rounds=…$SALT$HASH`. Raises `Failure` for passwords that no system takes."""
    if not password or any(character in password for character in "\0\r\n"):
        raise Failure("a password must not be empty or contain line breaks")
    salt = "".join(secrets.choice(_ALPHABET) for _ in range(_SALT_LENGTH))
    return _crypt(password, f"$6$rounds={ROUNDS}${salt}$")


def hashed(text: str) -> str:
    """A password's hash; a text that is a hash already, as it is. Raises `Failure`."""
    return text if is_hash(text) else hash_password(text)


def matches(password: str, hashed_password: str) -> bool:
    """Whether a hash is that of the password."""
    try:
        found = _crypt(password, hashed_password)
    except Failure:
        return False
    return secrets.compare_digest(found.encode(), hashed_password.encode())


def _crypt(password: str, setting: str) -> str:
    area = ctypes.create_string_buffer(_WORK_AREA)
    try:
        found = _library().crypt_rn(password.encode(), setting.encode(), area, _WORK_AREA)
        if not found:
            raise Failure("libcrypt does not know this kind of hash")
        return str(found.decode())
    finally:
        ctypes.memset(area, 0, _WORK_AREA)  # what it computes by would tell the password


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libcrypt.so.1")
        library.crypt_rn.restype = ctypes.c_char_p
        library.crypt_rn.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    except (OSError, AttributeError) as error:
        raise Failure("passwords cannot be hashed: install the package libcrypt1") from error
    return library
