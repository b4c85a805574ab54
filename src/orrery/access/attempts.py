# SPDX-License-Identifier: AGPL-3.0-or-later
"""How often passwords may be tried: limits per address and per user, in bounded memory.

Each address and each user has a budget of failures that grows back slowly, and few tries may run at once. A user who
logged in from an address recently has a budget of its own there, so that strangers who use up the others do not lock
the user out of the usual place.
"""

import ipaddress
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`failures` in a row, then one more every `seconds`; `parallel` tries at once; `remembered` keys at most."""

    address_failures: int = 20
    address_seconds: float = 15.0
    user_failures: int = 20
    user_seconds: float = 15.0
    parallel: int = 16
    remembered: int = 10_000
    familiar_seconds: float = 24 * 3600.0


class _Budget:
    """Failures by key: a bucket each that fills by failing and drains with time. Forgets the longest unused keys."""

    def __init__(self, size: int, seconds: float, remembered: int) -> None:
        self._size = size
        self._seconds = seconds
        self._remembered = remembered
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, key: str, now: float) -> bool:
        return self._level(key, now) <= self._size - 1

    def clear(self, key: str) -> None:
        self._used.pop(key, None)

    def spend(self, key: str, now: float) -> None:
        self._used[key] = (self._level(key, now) + 1, now)
        self._used.move_to_end(key)
        if len(self._used) > self._remembered:
            self._used.popitem(last=False)

    def _level(self, key: str, now: float) -> float:
        level, at = self._used.get(key, (0.0, now))
        return max(0.0, level - (now - at) / self._seconds)


class Attempts:
    """Counts tries; safe for threads. `clock` gives seconds that never go back."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or Limits()
        limits = self.limits
        self._clock = clock
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._addresses = _Budget(limits.address_failures, limits.address_seconds, limits.remembered)
        self._users = _Budget(limits.user_failures, limits.user_seconds, limits.remembered)
        self._homes = _Budget(limits.user_failures, limits.user_seconds, limits.remembered)
        self._familiar: OrderedDict[tuple[str, str], float] = OrderedDict()

    @contextmanager
    def trying(self, origin: str, user: str) -> Iterator[bool]:
        """Whether a password may be tried now; counts as running until the block ends."""
        keys = ("address " + network(origin), "user " + user)
        with self._lock:
            admitted = self._admits(network(origin), user) and all(
                self._running[key] < self.limits.parallel for key in keys
            )
            if admitted:
                self._running.update(keys)
        try:
            yield admitted
        finally:
            if admitted:
                with self._lock:
                    self._running.subtract(keys)
                    for key in keys:
                        if self._running[key] <= 0:
                            del self._running[key]

    def failed(self, origin: str, user: str) -> None:
        """A password was wrong."""
        with self._lock:
            now, address = self._clock(), network(origin)
            if self._is_familiar(address, user, now):
                self._homes.spend(f"{address} {user}", now)
            else:
                self._addresses.spend(address, now)
                self._users.spend(user, now)

    def succeeded(self, origin: str, user: str) -> None:
        """A password was right: the user is at home at this address."""
        with self._lock:
            key = (network(origin), user)
            self._familiar[key] = self._clock()
            self._familiar.move_to_end(key)
            self._homes.clear(" ".join(key))
            if len(self._familiar) > self.limits.remembered:
                self._familiar.popitem(last=False)

    def _admits(self, address: str, user: str) -> bool:
        now = self._clock()
        if self._is_familiar(address, user, now):
            return self._homes.left(f"{address} {user}", now)
        return self._addresses.left(address, now) and self._users.left(user, now)

    def _is_familiar(self, address: str, user: str, now: float) -> bool:
        seen = self._familiar.get((address, user))
        return seen is not None and now - seen < self.limits.familiar_seconds


def network(origin: str) -> str:
    """What counts as one address: of IPv6 the /64, which any single host has to itself."""
    try:
        address = ipaddress.ip_address(origin.partition("%")[0])
    except ValueError:
        return origin[:100]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
