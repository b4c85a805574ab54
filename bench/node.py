# SPDX-License-Identifier: AGPL-3.0-or-later
"""A node of its own for one measurement: a root in a temporary folder, served at 127.0.0.1 of a private network."""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from orrery.cli.client import Client, Target
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.store.base import Put
from orrery.store.documents import encode_document
from orrery.store.guests import guest_key
from orrery.store.local import SqliteStore
from orrery.system.paths import Paths

NAME = "alpha"
ADDRESS = ("127.0.0.1", 8006)
USER = "admin@pve"
ORRERY = Path(sys.executable).with_name("orrery")
START_SECONDS = 60.0
BATCH = 500


class Https:
    """One client with one connection, as admin@pve with a ticket: the way that programs come in, nginx included."""

    def __init__(self, password: str, certificate: Path) -> None:
        trust = ssl.create_default_context(cafile=str(certificate))
        trust.check_hostname = False
        self._connection = http.client.HTTPSConnection(*ADDRESS, timeout=60, context=trust)
        form = urllib.parse.urlencode({"username": USER, "password": password})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        status, body = self.request("POST", "/access/ticket", body=form.encode(), headers=kind)
        assert status == 200, body
        data = decoded(body)
        self.headers = {
            "Cookie": f"PVEAuthCookie={data['ticket']}",
            "CSRFPreventionToken": data["CSRFPreventionToken"],
        }

    def request(
        self, verb: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request, with the body as it came (compressed, if that was asked for)."""
        self._connection.request(verb, f"/api2/json{path}", body=body, headers=dict(headers or self.headers))
        with self._connection.getresponse() as response:
            return response.status, response.read()


def decoded(body: bytes) -> Any:
    """The `data` of a reply."""
    return orjson.loads(body)["data"]


class Node:
    """A node that is served while the block of `serving` runs."""

    def __init__(self, root: Path, password: str) -> None:
        self.root = root
        self.paths = Paths.of(root)
        self.password = password
        self.core = 0
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Serves the root; guests that still run when the block ends are ended too."""
        with (self.root / "serve.out").open("wb") as output:
            command = [str(ORRERY), "serve", "--root", str(self.root), "--listen", "{}:{}".format(*ADDRESS)]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self.core = self._process.pid
        try:
            self._wait_until_served()
            yield
        finally:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            command = [str(ORRERY), "down", "--timeout", "0", "--root", str(self.root)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def _wait_until_served(self) -> None:
        end = time.monotonic() + START_SECONDS
        while b" serves " not in (self.root / "serve.out").read_bytes():
            assert self._process is not None
            assert self._process.poll() is None, (self.root / "serve.out").read_text()
            assert time.monotonic() < end, "the node does not come up"
            time.sleep(0.05)

    def local(self) -> Client:
        """A client as root of this host."""
        return Client(Target(self.paths.local_sock))

    def https(self) -> Https:
        """A client from outside."""
        return Https(self.password, self.paths.tls_cert)

    def zygote(self) -> int:
        """The process that tasks are forked from."""
        found = [pid for pid in children(self.core) if "zygote" in command_line(pid)]
        assert len(found) == 1, found
        return found[0]

    def front(self) -> list[int]:
        """nginx, its workers included."""
        masters = [pid for pid in children(self.core) if "nginx" in command_line(pid)]
        return [*masters, *(worker for master in masters for worker in descendants(master))]


def children(parent: int) -> list[int]:
    """Processes whose parent is `parent`."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(folder.name))
    return found


def descendants(parent: int) -> list[int]:
    """Children, and theirs."""
    return [pid for child in children(parent) for pid in (child, *descendants(child))]


def command_line(pid: int) -> str:
    """A process's command line, or what it says instead."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@contextlib.contextmanager
def fresh_node() -> Iterator[Node]:
    """A root with a node that was initialised and is not served yet."""
    root = Path(tempfile.mkdtemp(prefix="orrery-bench-"))
    try:
        password = secrets.token_urlsafe(12)
        file = root / "password"
        file.write_text(f"{password}\n")
        file.chmod(0o600)
        command = [str(ORRERY), "init", "--root", str(root), "--node-name", NAME, "--admin-password-file", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield Node(root, password)
    finally:
        shutil.rmtree(root)


def seed(node: Node, count: int, pools: int = 20) -> None:
    """Enters `count` guests that have never run into the store of a node that is not served, every tenth in a pool."""
    store = SqliteStore(node.paths.store_db)
    numbers = range(1000, 1000 + count)
    for first in range(0, count, BATCH):
        batch = numbers[first : first + BATCH]
        records = [GuestRecord(vmid, "qemu", NAME, config(vmid)) for vmid in batch]
        store.transact([], [Put(guest_key(record.vmid), record.encode()) for record in records])
    for pool in range(pools):
        members = [vmid for vmid in numbers[::10] if vmid // 10 % pools == pool]
        store.put(f"/pools/pool{pool}", encode_document({"comment": "", "vms": members, "storage": []}))
    store.close()


def config(vmid: int) -> GuestConfig:
    """A machine's configuration of usual size."""
    mac = ":".join(f"{byte:02X}" for byte in vmid.to_bytes(3, "big"))
    options = {
        "agent": "1",
        "boot": "order=scsi0;ide2;net0",
        "cores": str(1 + vmid % 8),
        "cpu": "x86-64-v2-AES",
        "ide2": "none,media=cdrom",
        "memory": str(1024 * (1 + vmid % 16)),
        "meta": "creation-qemu=7.2.0,ctime=1763000000",
        "name": f"machine-{vmid}.example.net",
        "net0": f"virtio=BC:24:11:{mac},bridge=vmbr0,firewall=1",
        "numa": "0",
        "ostype": "l26",
        "scsi0": f"local:{vmid}/vm-{vmid}-disk-0.qcow2,discard=on,iothread=1,size={8 + vmid % 90}G",
        "scsihw": "virtio-scsi-single",
        "smbios1": f"uuid={uuid.uuid5(uuid.NAMESPACE_OID, str(vmid))}",
        "sockets": "1",
        "vmgenid": str(uuid.uuid5(uuid.NAMESPACE_URL, str(vmid))),
    }
    if vmid % 3 == 0:
        options["tags"] = ("production;web", "test", "database;production")[vmid // 3 % 3]
    return GuestConfig(options=options, description="Made for a measurement." if vmid % 5 == 0 else "")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
