# SPDX-License-Identifier: AGPL-3.0-or-later
"""Upgrades of stored configuration: pure functions, one per version, applied in order.

The store carries the version of its contents. When a new version of Orrery changes the shape of something stored, it
adds a function here that turns all documents of the version before into the new ones; the caller applies the chain in
one transaction and writes the new version with it. Functions are never changed after a release.
"""

from collections.abc import Callable, Mapping, Sequence

from orrery.errors import Corrupt

Documents = Mapping[str, bytes]
"""Everything that is stored, by key."""

Upgrade = Callable[[Documents], Documents]

CHAIN: tuple[Upgrade, ...] = ()
"""`CHAIN[n]` leads from version n + 1 to version n + 2."""

VERSION = len(CHAIN) + 1
"""The version that this program reads and writes."""


def upgrade(documents: Documents, version: int, chain: Sequence[Upgrade] = CHAIN) -> dict[str, bytes]:
    """Documents of a version as the newest version has them; the documents given are left alone.

    Corrupt when the version is newer than this program, or is none.
    """
    newest = len(chain) + 1
    if version < 1:
        raise Corrupt(f"the stored configuration says it is of version {version}; restore it from a backup.")
    if version > newest:
        raise Corrupt(
            f"the stored configuration is of version {version}, this program knows {newest} at most. "
            "Nothing was changed; install the version of Orrery that wrote it, or a newer one."
        )
    current: Documents = dict(documents)
    for step in chain[version - 1 :]:
        current = step(current)
    return dict(current)


def changes(before: Documents, after: Documents) -> tuple[dict[str, bytes], set[str]]:
    """What an upgrade means for the store: documents to write, and keys to remove."""
    written = {key: value for key, value in after.items() if before.get(key) != value}
    return written, set(before) - set(after)
