# SPDX-License-Identifier: AGPL-3.0-or-later
"""How full the storages are, kept in memory: a list never waits for a storage that hangs.

Each storage is asked in a thread of its own. One that has not answered in time counts as inactive until it does, and
is not asked again meanwhile, so that a dead file server costs one sleeping thread and nothing else.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from orrery.drivers.storage.base import StorageDriver, Usage
from orrery.errors import NoSpace, OrreryError

PATIENCE: Final = 2.0
"""Seconds that one refresh waits for all storages together."""

_log = structlog.get_logger("orrery.storage")


class Storages(Protocol):
    """The registry as the cache needs it."""

    def configured(self) -> Mapping[str, Mapping[str, Any]]: ...

    def get(self, name: str) -> StorageDriver: ...


@dataclass(frozen=True, slots=True)
class StorageState:
    """What is known of one storage. `trouble`: why it is not active. `at`: when, in seconds of the monotonic clock."""

    active: bool
    usage: Usage | None = None
    trouble: str | None = None
    at: float = 0.0


class StorageUsageCache:
    """Thread safe. `refresh` is called at an interval by whoever samples; everything else reads."""

    def __init__(self, storages: Storages, patience: float = PATIENCE) -> None:
        self._storages = storages
        self._patience = patience
        self._lock = threading.Lock()
        self._states: dict[str, StorageState] = {}
        self._asking: dict[str, tuple[threading.Thread, float]] = {}

    def get(self, name: str) -> StorageState | None:
        """The last state of a storage, None when it was never asked."""
        with self._lock:
            return self._states.get(name)

    def refresh(self, name: str | None = None) -> None:
        """Asks all storages of the node (or one), and waits a little for the answers."""
        names = list(self._storages.configured()) if name is None else [name]
        if name is None:
            with self._lock:
                self._states = {known: state for known, state in self._states.items() if known in names}
        deadline = time.monotonic() + self._patience
        threads = [self._ask(one) for one in names]
        for one, thread in zip(names, threads, strict=True):
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                self._overdue(one)

    def _ask(self, name: str) -> threading.Thread:
        with self._lock:
            asking = self._asking.get(name)
            if asking is not None and asking[0].is_alive():
                return asking[0]
            thread = threading.Thread(target=self._answer, args=(name,), name=f"storage-{name}", daemon=True)
            self._asking[name] = (thread, time.monotonic())
        thread.start()
        return thread

    def _answer(self, name: str) -> None:
        before = self.get(name)
        try:
            driver = self._storages.get(name)
            if before is None or not before.active:
                driver.activate()
            state = StorageState(True, driver.usage(), None, time.monotonic())
        except (OrreryError, OSError) as error:
            state = StorageState(False, None, str(error), time.monotonic())
        self._enter(name, state, before)

    def _overdue(self, name: str) -> None:
        """Somebody still waits for it: what was known is not true any more."""
        before = self.get(name)
        with self._lock:
            since = time.monotonic() - self._asking[name][1]
        if since >= self._patience:
            self._enter(name, StorageState(False, None, f"no answer for {since:.0f} seconds", time.monotonic()), before)

    def _enter(self, name: str, state: StorageState, before: StorageState | None) -> None:
        if not state.active and (before is None or before.active):
            _log.warning("storage is not available", storage=name, reason=state.trouble)
        elif state.active and before is not None and not before.active:
            _log.info("storage is available again", storage=name)
        with self._lock:
            self._states[name] = state


RESERVE: Final = 256 << 20
RESERVE_PART: Final = 20


def reserve_of(total: int) -> int:
    """What files from outside leave free of so many bytes."""
    return min(RESERVE, total // RESERVE_PART)


def require_room(driver: StorageDriver, size: int) -> None:
    """Raises NoSpace unless `size` bytes from outside fit, with a little left over.

    A storage often lies on the file system of the node's own state, or of running guests' thin disks: a download must
    not take the last byte from them. The reserve is 256 MiB, on a small storage a twentieth of it.
    """
    usage = driver.usage()
    reserve = reserve_of(usage.total)
    if size > usage.available - reserve:
        raise NoSpace(
            f"not enough space on storage '{driver.name}': {size} bytes are needed, {usage.available} are free"
            f" and {reserve} of these are kept in reserve; free some space and try again"
        )
