# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an unprivileged child may see and do.

A jailed program has a root of its own in memory, with the system's programs and libraries read-only, only the devices
named, only its own folders at short paths, and a user without capabilities. So it works below a folder that only root
may enter, and its socket paths stay short. Files, taps and sockets that it uses are better passed as descriptors.
"""

import enum
import pwd
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

_SYSTEM_FOLDERS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES: Final = ("/etc/ld.so.cache", "/etc/alternatives")
_BASIC_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_TMP_SIZE: Final = 16 << 20


class Capability(enum.IntEnum):
    """Capabilities that one of our children may need (include/uapi/linux/capability.h)."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    FSETID = 4
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SETFCAP = 31


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the host, shown in the jail at `target` (absolute, short)."""

    source: Path
    target: str
    writable: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Jail:
    """One child's place. `devices` are names below /dev beyond null, zero, full, random, urandom.

    Without `network` it has an empty network namespace of its own. `alone`, it sees no other process and can signal
    none, whoever its user is; not together with `proc`. `tmp_size` is in bytes, 0 for no /tmp. `proc` shows the child
    its own processes only. `cgroups` are the files that its pid is written to before it is confined.
    `limits` maps `resource.RLIMIT_*` to one number, soft and hard; what exceeds our own hard limit is lowered to it.
    """

    uid: int
    gid: int
    user: str = "orrery"
    groups: tuple[int, ...] = ()
    capabilities: frozenset[Capability] = frozenset()
    network: bool = True
    binds: tuple[Bind, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    tmp_size: int = _TMP_SIZE
    proc: bool = True
    alone: bool = False
    cgroups: tuple[Path, ...] = ()
    limits: Mapping[int, int] = field(default_factory=dict)
    nice: int = 0
    umask: int = 0o077

    def describe(self) -> dict[str, Any]:
        """The part `jail` of the specification that `orrery.system.launch` reads."""
        return {
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "capabilities": sorted(self.capabilities),
            "network": self.network,
            "binds": [
                *_system_binds(),
                *([str(bind.source), bind.target, bind.writable, bind.optional] for bind in self.binds),
            ],
            "folders": ["/etc", "/run", "/var"],
            "files": {**self._accounts(), **self.files},
            "links": _system_links(),
            "devices": [*_BASIC_DEVICES, *self.devices],
            "tmp_size": self.tmp_size,
            "proc": self.proc,
            "alone": self.alone,
        }

    def _accounts(self) -> dict[str, str]:
        """Accounts as the child sees them: root and itself, nobody else on the host."""
        no_login = "::/:/usr/sbin/nologin\n"
        return {
            "/etc/passwd": f"root:x:0:0{no_login}{self.user}:x:{self.uid}:{self.gid}{no_login}",
            "/etc/group": f"root:x:0:\n{self.user}:x:{self.gid}:\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
            "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
        }


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the host that a child may run as."""

    name: str
    uid: int
    gid: int


def account(*names: str) -> Account:
    """The first of these users that exists on the host, else `nobody`."""
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    return Account("nobody", 65534, 65534)


def unlimited_core_less() -> dict[int, int]:
    """Limits for a long-lived child: no core dumps (they would carry guests' memory), many open files."""
    return {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 65536}


@cache
def _system_binds() -> list[list[Any]]:
    folders = [[path, path, False, False] for path in _SYSTEM_FOLDERS if _is_real_folder(path)]
    return [*folders, *([path, path, False, True] for path in _SYSTEM_FILES)]


@cache
def _system_links() -> dict[str, str]:
    """On a system with merged /usr, /bin and the like are symbolic links."""
    return {path: str(Path(path).readlink()) for path in _SYSTEM_FOLDERS if Path(path).is_symlink()}


def _is_real_folder(path: str) -> bool:
    return Path(path).is_dir() and not Path(path).is_symlink()
