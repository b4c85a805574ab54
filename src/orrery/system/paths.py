# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a node keeps its things: every folder and file of a root, under one name each.

With a root, everything lies below it, so that several nodes run side by side on one machine; without one, the places
of the Filesystem Hierarchy Standard are used. No other module joins these paths by hand.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orrery.errors import Failure, ParameterError

_UPID = re.compile(r"UPID:[A-Za-z0-9.-]+:[0-9A-Fa-f]{8,}:[0-9A-Fa-f]{8,}:[0-9A-Fa-f]{6,}([0-9A-Fa-f]{2}):[^\0/\s]+")
_LONGEST_FILE_NAME = 255  # NAME_MAX of every file system that Linux boots from

PRIVATE = 0o700
READABLE = 0o755  # below a private folder: for a jailed child that sees this folder alone
FRONT = 0o750  # the front's group may look into its own folders, nothing else


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one node. Take an instance from `Paths.of`; properties only name, `create` makes."""

    root: Path | None
    etc: Path
    lib: Path
    log: Path
    run: Path

    @classmethod
    def of(cls, root: Path | None) -> "Paths":
        """The paths below `root` (made absolute, symbolic links resolved), or those of the installed system."""
        if root is None:
            return cls(None, Path("/etc/orrery"), Path("/var/lib/orrery"), Path("/var/log/orrery"), Path("/run/orrery"))
        top = root.resolve()
        return cls(top, top / "etc", top / "lib", top / "log", top / "run")

    # --- identity

    @property
    def root_digest(self) -> str:
        """SHA-256 of the root in hex: marks what this root made on the host (bridges, taps, tables, groups)."""
        return hashlib.sha256(os.fsencode(self.root or self.lib)).hexdigest()

    @property
    def root_hash(self) -> str:
        """The first six hex digits of `root_digest`, for names that must be short."""
        return self.root_digest[:6]

    # --- configuration

    @property
    def node_json(self) -> Path:
        """The node's name and the address it listens on."""
        return self.etc / "node.json"

    @property
    def tls(self) -> Path:
        return self.etc / "tls"

    @property
    def tls_key(self) -> Path:
        return self.tls / "key.pem"

    @property
    def tls_cert(self) -> Path:
        return self.tls / "cert.pem"

    # --- state

    @property
    def store_db(self) -> Path:
        return self.lib / "store.db"

    @property
    def tasks_db(self) -> Path:
        return self.lib / "tasks.db"

    @property
    def boot_file(self) -> Path:
        """The boot of the host in which this node last started its guests."""
        return self.lib / "boot"

    @property
    def keys(self) -> Path:
        """Signing keys; 0700, files in it 0600."""
        return self.lib / "keys"

    @property
    def local_storage(self) -> Path:
        """The built-in storage `local`."""
        return self.lib / "storage" / "local"

    @property
    def network_json(self) -> Path:
        """What this root changed in the host's network."""
        return self.lib / "network.json"

    @property
    def network_lib(self) -> Path:
        """Configuration, leases and name servers of the DHCP and DNS service; bound into its jail."""
        return self.lib / "network"

    # --- logs

    @property
    def audit_log(self) -> Path:
        return self.log / "audit.log"

    @property
    def daemon_log(self) -> Path:
        return self.log / "orrery.log"

    @property
    def dnsmasq_log(self) -> Path:
        return self.log / "dnsmasq.log"

    @property
    def lxcfs_log(self) -> Path:
        return self.log / "lxcfs.log"

    @property
    def nginx_log(self) -> Path:
        """Folder of the front's logs; belongs to the front's user."""
        return self.log / "nginx"

    @property
    def task_logs(self) -> Path:
        return self.log / "tasks"

    def task_log(self, upid: str) -> Path:
        """Log file of a task, in a folder named by the last two hex digits of its start time.

        Raises ParameterError when `upid` has not the form of a UPID (it may come from outside).
        """
        match = _UPID.fullmatch(upid)
        if match is None or len(os.fsencode(upid)) > _LONGEST_FILE_NAME:
            raise ParameterError({"upid": "value does not look like a valid worker task UPID"})
        return self.task_logs / match[1].upper() / upid

    # --- run time

    @property
    def front(self) -> Path:
        """Folder that is bound into the front's jail; the core's socket for the front lies in it."""
        return self.run / "front"

    @property
    def front_sock(self) -> Path:
        return self.front / "api.sock"

    @property
    def local_sock(self) -> Path:
        """The core's socket for local root's command line; 0600."""
        return self.run / "local.sock"

    @property
    def nginx_run(self) -> Path:
        """The front's own folder: its pid file and temporary bodies; belongs to the front's user."""
        return self.run / "nginx"

    @property
    def nginx_conf(self) -> Path:
        return self.front / "nginx.conf"

    @property
    def nginx_process(self) -> Path:
        """Identity of the running front."""
        return self.run / "nginx.json"

    @property
    def zygote_process(self) -> Path:
        """Identity of the running zygote."""
        return self.run / "zygote.json"

    @property
    def zygote_sock(self) -> Path:
        return self.run / "zygote.sock"

    @property
    def serve_lock(self) -> Path:
        """Held by the one `serve` of this root."""
        return self.run / "serve.lock"

    @property
    def network_lock(self) -> Path:
        """Held while the host's network is changed."""
        return self.run / "network.lock"

    @property
    def lxcfs(self) -> Path:
        """Where lxcfs shows what containers see of the machine."""
        return self.run / "lxcfs"

    @property
    def guests_run(self) -> Path:
        return self.run / "guests"

    def guest_run(self, vmid: int) -> Path:
        """Folder of a running guest: its process identity and sockets."""
        return self.guests_run / str(int(vmid))

    @property
    def tree_run(self) -> Path:
        """An empty folder: tasks mount the tree that they work on upon it, each in a mount namespace of its own."""
        return self.run / "tree"

    @property
    def tasks_run(self) -> Path:
        return self.run / "tasks"

    def task_run(self, upid: str) -> Path:
        """Progress file of a running task. Raises ParameterError as `task_log` does."""
        return self.tasks_run / self.task_log(upid).name

    # --- creation

    def create(self, front: tuple[int, int] | None = None) -> None:
        """Make all folders (idempotent). `front` is (uid, gid) of the front's user, root when absent.

        Only root may enter any of them; the front reaches its own through bind mounts. Raises Failure.
        """
        uid, gid = front or (os.geteuid(), os.getegid())
        private = (
            *(self.etc, self.lib, self.log, self.run),
            *(self.tls, self.keys, self.lib / "storage", self.local_storage),
            *(self.task_logs, self.guests_run, self.tasks_run),
        )
        for folder in private:
            _folder(folder, PRIVATE)
        _folder(self.network_lib, READABLE)
        _folder(self.front, FRONT, os.geteuid(), gid)
        _folder(self.nginx_run, PRIVATE, uid, gid)
        _folder(self.nginx_log, PRIVATE, uid, gid)


def _folder(path: Path, mode: int, uid: int | None = None, gid: int | None = None) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        state = path.stat()
        if uid is not None and gid is not None and (state.st_uid, state.st_gid) != (uid, gid):
            os.chown(path, uid, gid)
        if state.st_mode & 0o7777 != mode:
            path.chmod(mode)
    except OSError as error:
        raise Failure(f"unable to make the folder '{path}': {error.strerror}") from error
