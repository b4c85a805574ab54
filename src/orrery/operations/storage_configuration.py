# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storages configured, changed and forgotten. Only the configuration is touched: volumes stay where they are."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from orrery.access.pools import forget_storage
from orrery.drivers.storage.options import flag
from orrery.drivers.storage.registry import BUILT_IN, PREFIX, StorageRegistry, build, node_names
from orrery.errors import AlreadyExists, Conflict, Failure, NotSupported, OrreryError, ParameterError
from orrery.model.storage import unsupported_storage, validate_change, validate_storage
from orrery.store.base import Store
from orrery.store.documents import Transaction, atomically, read_documents
from orrery.system.paths import Paths

DEFAULT_CONTENT: Final = "images,rootdir"
_SYSTEM: Final = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")
"""Folders in which no storage can be."""
_SHARED: Final = ("/home", "/media", "/mnt", "/opt", "/root", "/tmp", "/var", "/var/lib", "/var/log")  # noqa: S108
"""Folders that a storage can be in, but not take for itself."""
_IN_MEMORY: Final = "/dev/shm"  # noqa: S108  (a storage there is somebody's choice, and no device)
_GUARD: Final = "/storage-paths"
"""A key that every new storage changes, so that of two that are entered at once each sees the other's folder."""
_REPLY_NUMBERS: Final = frozenset(
    ("disable", "shared", "mkdir", "create-base-path", "create-subdirs", "max-protected-backups")
)


class StorageConfiguration:
    """Changes to what is stored under /storage; `registry` reads it."""

    def __init__(self, store: Store, registry: StorageRegistry, paths: Paths, node: str) -> None:
        self._store = store
        self._registry = registry
        self._paths = paths
        self._node = node

    def digest(self) -> str:
        """SHA-1 of the configuration of all storages: changes with any of them."""
        return _digest(self._registry.definitions())

    def describe(self, name: str) -> dict[str, Any]:
        """One storage as the wire shows it. Raises NotFound."""
        return {**_shown(name, self._registry.definition(name)), "digest": self.digest()}

    def describe_all(self, kind: str | None = None) -> list[dict[str, Any]]:
        """All storages, or those of one type, as the wire shows them."""
        found = self._registry.definitions()
        digest = _digest(found)
        return [
            {**_shown(name, options), "digest": digest}
            for name, options in found.items()
            if kind is None or options.get("type") == kind
        ]

    def create(self, name: str, options: Mapping[str, str]) -> dict[str, str]:
        """Enters a new storage, after it was made usable on this node; its options as stored.

        Raises ParameterError, AlreadyExists, NotSupported, or Failure when it cannot be used.
        """
        if refused := unsupported_storage(options):
            raise NotSupported("; ".join(refused.values()))
        canonical = {"content": DEFAULT_CONTENT, **validate_storage(options)}
        self._check_paths(name, canonical, read_documents(self._store, PREFIX))
        self._try(name, canonical)

        def enter(transaction: Transaction) -> dict[str, str]:
            if name == BUILT_IN or transaction.read(PREFIX + name) is not None:
                raise AlreadyExists(f"storage ID '{name}' already defined")
            guard = transaction.read(_GUARD) or {"changes": 0}
            transaction.write(_GUARD, {"changes": guard["changes"] + 1})
            self._check_paths(name, canonical, transaction.read_range(PREFIX))
            transaction.write(PREFIX + name, canonical)
            return canonical

        return atomically(self._store, enter)

    def update(
        self, name: str, changes: Mapping[str, str], delete: Collection[str] = (), digest: str | None = None
    ) -> dict[str, str]:
        """Changes a storage; its options as stored. Raises as `create`, NotFound, and Conflict for another digest."""

        def change(transaction: Transaction) -> dict[str, str]:
            stored = transaction.read(PREFIX + name)
            current = self._registry.definition(name) if stored is None else self._registry.complete(name, stored)
            if digest is not None and digest != _digest(self._registry.complete_all(transaction.read_range(PREFIX))):
                raise Conflict
            fresh = validate_change(current, changes, delete)
            if refused := unsupported_storage(fresh):
                raise NotSupported("; ".join(refused.values()))
            self._try(name, fresh)
            if name == BUILT_IN and "path" not in (stored or {}):
                transaction.write(PREFIX + name, {key: value for key, value in fresh.items() if key != "path"})
            else:
                transaction.write(PREFIX + name, fresh)
            return fresh

        return atomically(self._store, change)

    def remove(self, name: str) -> None:
        """Forgets a storage, with the permissions on it and its place in pools. Its volumes stay.

        The built-in storage cannot go; removing its configuration gives it its first one back. Raises NotFound.
        """

        def forget(transaction: Transaction) -> None:
            self._registry.definition(name)
            if transaction.read(PREFIX + name) is None:
                raise Failure(f"storage '{name}' is built in and cannot be removed; disable it instead")
            transaction.remove(PREFIX + name)
            if name != BUILT_IN:
                forget_storage(transaction, name)

        atomically(self._store, forget)

    def _try(self, name: str, options: Mapping[str, Any]) -> None:
        """Builds and activates the storage where it is to be used. Raises what is wrong with it."""
        driver = build(name, options, self._node)
        nodes = node_names(options)
        if flag(options.get("disable"), False) or (nodes and self._node not in nodes):
            return
        try:
            driver.activate()
        except OrreryError as error:
            raise Failure(f"storage '{name}' cannot be used: {error.message}") from error

    def _check_paths(self, name: str, options: Mapping[str, str], stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps storages off each other, off the system's folders, and off this node's own state and keys."""
        text = options.get("path")
        if text is None:
            return
        path = Path(text).resolve()
        system = any(path.is_relative_to(folder) for folder in _SYSTEM) and not path.is_relative_to(_IN_MEMORY)
        if len(path.parts) < 2 or system or str(path) in _SHARED:
            advice = f"a folder of its own, such as '{path}/orrery'" if str(path) in _SHARED else "another folder"
            raise ParameterError({"path": f"'{text}' belongs to the operating system; choose {advice}"})
        for own in (self._paths.etc, self._paths.lib, self._paths.log, self._paths.run):
            if path.is_relative_to(own.resolve()) or own.resolve().is_relative_to(path):
                raise ParameterError({"path": f"'{text}' holds this node's own state; choose another folder"})
        for other, known in self._registry.complete_all(stored).items():
            nodes, others = node_names(options), node_names(known)
            apart = nodes and others and not set(nodes) & set(others)
            if other == name or apart or not known.get("path"):
                continue
            taken = Path(known["path"]).resolve()
            if taken == path:
                raise ParameterError({"path": f"'{text}' is the folder of storage '{other}' already"})
            if path.is_relative_to(taken):
                raise ParameterError({"path": f"'{text}' lies within the folder of storage '{other}', '{taken}'"})
            if taken.is_relative_to(path):
                raise ParameterError({"path": f"'{text}' holds the folder of storage '{other}', '{taken}'"})


def _digest(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha1(orjson.dumps(definitions, option=orjson.OPT_SORT_KEYS), usedforsecurity=False).hexdigest()


def _shown(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as replies carry them: numbers as numbers."""
    numbers = {
        key: int(value) for key, value in options.items() if key in _REPLY_NUMBERS and str(value).lstrip("-").isdigit()
    }
    return {"storage": name, **options, **numbers}
