# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this root changed in the host's network, written down before each change.

A `prepare` that was killed at any point is taken up again, or undone, from this file. Names of tables and rules follow
from the root's hash and need no record; what does are the values that were there before, and those chosen once.
"""

import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, Final

from orrery.errors import Corrupt, Failure
from orrery.system import files, host

_VERSION: Final = 1
_POOL: Final = IPv4Network("10.64.0.0/12")
_PREFIX: Final = 20  # 4093 guests


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """The bridge `mac` is the proof that a bridge is the one we made. `scope` names the boot and network namespace that
    the record speaks of: in another one nothing of ours exists. `forward_before`: the kernel's setting before ours.
    """

    scope: str
    mac: str
    subnet: IPv4Network
    forward_before: str | None = None

    @property
    def gateway(self) -> IPv4Interface:
        """The bridge's own address."""
        return IPv4Interface(f"{self.subnet[1]}/{self.subnet.prefixlen}")

    def save(self, path: Path) -> None:
        """Write it down, for good."""
        values = asdict(self) | {"version": _VERSION, "subnet": str(self.subnet)}
        files.write_json(path, values)


def current_scope() -> str:
    """This boot and network namespace."""
    return f"{host.boot_id()}:{host.network_namespace()}"


def load(path: Path) -> NetworkRecord | None:
    """The record, or None before the first `prepare`. Raises Corrupt."""
    try:
        values: Any = files.read_json(path)
    except FileNotFoundError:
        return None
    try:
        if values["version"] != _VERSION:
            raise Corrupt(f"'{path}' was written by a newer version of this program; use that one")
        before = values["forward_before"]
        if before not in (None, "0", "1"):
            raise ValueError(before)
        return NetworkRecord(str(values["scope"]), str(values["mac"]), IPv4Network(values["subnet"]), before)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f"the state file '{path}' is damaged ({error!r}); restore it from a backup, or, when bridge 'vmbr0' does "
            "not exist on this host, move it away"
        ) from error


def fresh(old: NetworkRecord | None, used: Iterable[IPv4Network], seed: int) -> NetworkRecord:
    """A record for this boot: the subnet and MAC of `old` where they still fit (guests keep their leases), else new."""
    taken = list(used)
    if old is not None and not any(old.subnet.overlaps(network) for network in taken):
        return replace(old, scope=current_scope(), forward_before=None)
    return NetworkRecord(current_scope(), random_mac(), free_subnet(taken, seed))


def free_subnet(used: Iterable[IPv4Network], seed: int) -> IPv4Network:
    """A private subnet that overlaps none in use; roots of different hash begin to look at different places.

    Raises Failure when all are taken.
    """
    taken = list(used)
    candidates = list(_POOL.subnets(new_prefix=_PREFIX))
    for offset in range(len(candidates)):
        candidate = candidates[(seed + offset) % len(candidates)]
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    raise Failure(f"every /{_PREFIX} of {_POOL} is in use; create a bridge 'vmbr0' of your own and start again")


def random_mac() -> str:
    """A MAC address of the locally administered kind."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))
