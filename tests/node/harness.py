# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real node for tests: `orrery init` and `orrery serve` as processes, in the test process's own network namespace.

The fixtures (tests/conftest.py):

- `node`: one node for the whole session, for tests that clean up after themselves; guests take a number from
  `node.next_vmid()`. Tests may leave guests behind, but may not change what others rely on (kill the daemon, fill the
  storage): those take `fresh_node`, which lives for one test.
- `node.api` is admin@pve by TLS, `node.root` is root@pam by the local socket; both are `tests.node.client.Api`.
- `demo_volume`: the demonstration guest's image, uploaded to `node`; `node.guest(...)` makes a guest from it.

    def test_it(node, demo_volume):
        guest = node.guest(disk=demo_volume, start=True)
        assert guest.ssh("uname") == "Linux"
"""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.node import netns
from tests.node.client import Api

from orrery.demo.image import Prepared
from orrery.drivers.network.taps import own_taps
from orrery.drivers.qemu.records import guest_uid
from orrery.system.paths import Paths

ORRERY = Path(sys.executable).with_name("orrery")
PASSWORD = "correct horse battery"
NODE_NAME = "alpha"
START_SECONDS = 30.0
BOOT_SECONDS = 90.0  # a boot of the demonstration guest takes 4 s on an idle machine without KVM
ROOT_VARIABLE = "ORRERY_TEST_ROOT"
"""Marks the daemon, its zygote and its tasks, so that stragglers are found."""
IMPORTED = "demo.qcow2"
TEMPLATE = "demo.tar.gz"
_LAST_VMID = 100_000

LIVE: list["Node"] = []
"""Nodes whose logs are shown when a test fails."""

GUARDIAN = """
while read -r root; do roots="$roots $root"; done
for root in $roots; do [ ! -e "$root/etc/node.json" ] || "$0" down --timeout 0 --root "$root"; done
"""
"""Outlives the test process, however that ends, and then ends the nodes that it was told and that still are there."""

_guardians: list["subprocess.Popen[str]"] = []


def guard(root: Path) -> None:
    """Has the guardian look after a node. It runs in our network, so that it finds the node's bridge."""
    if not _guardians:
        command = ["sh", "-c", GUARDIAN, str(ORRERY)]
        nowhere = subprocess.DEVNULL
        _guardians.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, text=True, start_new_session=True
            )
        )
    pipe = _guardians[0].stdin
    assert pipe is not None
    pipe.write(f"{root}\n")
    pipe.flush()


def eventually(condition: Callable[[], Any], seconds: float = 20.0, what: str = "it") -> Any:
    """Waits until a condition holds; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come to pass within {seconds} s"
        time.sleep(0.05)
    return value


class Node:
    """A node below `root`, which does not exist yet or holds one already. Use it as a context, or call `destroy`."""

    guest_password = ""
    """Of the demonstration guest's root, once `import_demo` was called."""

    def __init__(self, root: Path, *, name: str = NODE_NAME, port: int = 8006) -> None:
        self.folder = root
        self.paths = Paths.of(root)
        self.name = name
        self.port = port
        self.url = f"https://127.0.0.1:{port}"
        self.path = f"/nodes/{name}"
        self.output = root.with_name(f"{root.name}.serve.log")
        self.serving: subprocess.Popen[bytes] | None = None
        self._apis: dict[str, Api] = {}
        self._next_vmid = 100

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    # --- the daemon

    def init(self) -> "Node":
        """`orrery init`, with PASSWORD for admin@pve."""
        password = self.folder.with_name(f"{self.folder.name}.password")
        password.write_text(PASSWORD + "\n")
        self.cli("init", "--node-name", self.name, "--admin-password-file", str(password))
        return self

    def serve(self, environment: dict[str, str] | None = None, *, within: Sequence[str] = ()) -> "Node":
        """`orrery serve`; returns when the node serves. Raises AssertionError with what it said when it ends.

        `within` is a program with arguments that becomes `orrery serve`, such as `unshare`.
        """
        netns.enter()
        if self not in LIVE:
            LIVE.append(self)
            guard(self.folder)
        command = [*within, str(ORRERY), "serve", "--root", str(self.folder), "--listen", f"127.0.0.1:{self.port}"]
        with self.output.open("ab") as output:
            said_before = output.tell()
            self.serving = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, ROOT_VARIABLE: str(self.folder), "PYTHONFAULTHANDLER": "1", **(environment or {})},
            )
        end = time.monotonic() + START_SECONDS
        while b" serves https://" not in (said := self.output.read_bytes()[said_before:]):
            if self.serving.poll() is not None:
                raise AssertionError(f"serve ended with {self.serving.returncode}: {said.decode(errors='replace')}")
            if time.monotonic() > end:
                self.dump()
                said = self.output.read_bytes()[said_before:]
                raise AssertionError(f"serve does not come up: {said.decode(errors='replace')}")
            time.sleep(0.02)
        return self

    def end(self, number: int = signal.SIGINT, seconds: float = 20.0) -> None:
        """Ends the daemon by a signal; SIGKILL is a crash. Guests and tasks go on."""
        for api in self._apis.values():
            api.close()
        self._apis.clear()
        if self.serving is not None:
            self.serving.send_signal(number)
            self.serving.wait(seconds)
            self.serving = None

    def dump(self) -> None:
        """Ends a daemon that hangs; the stacks of its threads are then in its output."""
        if self.serving is not None:
            self.serving.send_signal(signal.SIGABRT)
            self.serving.wait(10)

    def restart(self, number: int = signal.SIGINT, environment: dict[str, str] | None = None) -> "Node":
        """Ends the daemon by a signal and starts it again."""
        self.end(number)
        return self.serve(environment)

    def cli(self, *words: str, check: bool = True, timeout: float = 60.0, text: str | None = None) -> Any:
        """Runs `orrery WORDS --root …`; the completed process with `stdout` and `stderr` as text."""
        done = subprocess.run(
            [str(ORRERY), *words[:1], *_with_root(words[1:], self.folder)],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"orrery {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    # --- its clients

    @property
    def api(self) -> Api:
        """admin@pve by TLS."""
        if "admin" not in self._apis:
            self._apis["admin"] = self.anonymous().log_in("admin@pve", PASSWORD)
        return self._apis["admin"]

    @property
    def root(self) -> Api:
        """root@pam by the local socket."""
        if "root" not in self._apis:
            self._apis["root"] = Api.local(self.paths.local_sock, self.dump)
        return self._apis["root"]

    def anonymous(self) -> Api:
        """A new client that has not logged in; the caller closes it."""
        return Api.remote(self.url, self.paths.tls_cert, self.dump)

    # --- guests

    def next_vmid(self) -> int:
        """A number that no other test of this session uses on this node."""
        self._next_vmid += 1
        return self._next_vmid

    def import_demo(self, image: Prepared) -> str:
        """Uploads the demonstration guest's image to the storage `local`; its volume id."""
        self.guest_password = image.password
        with image.image.open("rb") as stream:
            response = self.root.http.post(
                f"/api2/json{self.path}/storage/local/upload",
                data={"content": "import"},
                files={"filename": (IMPORTED, stream)},
            )
        assert response.status_code == 200, response.text
        self.root.wait(response.json()["data"])
        return f"local:import/{IMPORTED}"

    def guest(self, disk: str | None = None, *, start: bool = False, **options: Any) -> "Guest":
        """Creates a machine of 160 MiB; `disk` (a volume of content `import`) becomes virtio0, with a card and agent.

        Options override; None leaves one out. With `start` the machine runs when this returns.
        """
        vmid = options.pop("vmid", None) or self.next_vmid()
        wanted: dict[str, Any] = {"vmid": vmid, "memory": 160, "ostype": "l26", "serial0": "socket"}
        if disk is not None:
            wanted |= {"virtio0": f"local:0,import-from={disk}", "net0": "virtio,bridge=vmbr0", "agent": "1"}
        self.api.wait(self.api.post(f"{self.path}/qemu", wanted | options))
        guest = Guest(self, vmid)
        if start:
            guest.run("start")
        return guest

    def import_template(self, archive: Path, name: str = TEMPLATE) -> str:
        """Uploads a template of containers to the storage `local`; its volume id."""
        with archive.open("rb") as stream:
            response = self.root.http.post(
                f"/api2/json{self.path}/storage/local/upload",
                data={"content": "vztmpl"},
                files={"filename": (name, stream)},
            )
        assert response.status_code == 200, response.text
        self.root.wait(response.json()["data"])
        return f"local:vztmpl/{name}"

    def container(self, template: str, *, start: bool = False, **options: Any) -> "Container":
        """Creates a container of 64 MiB on an image of 64 MiB, with a card that asks for its address.

        Options override; None leaves one out. With `start` the container runs when this returns.
        """
        vmid = options.pop("vmid", None) or self.next_vmid()
        self.api.wait(self.api.post(f"{self.path}/lxc", container_options(vmid, template) | options))
        made = Container(self, vmid)
        if start:
            made.run("start")
        return made

    def containers(self) -> list[int]:
        """Numbers of the containers of this root that run, found by their processes' control groups."""
        found = set()
        for pid, _ in _processes():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/cgroup").read_text()
                found |= {int(vmid) for vmid in re.findall(rf"orrery-{self.paths.root_hash}/guest-(\d+)/", text)}
        return sorted(found)

    def machines(self) -> list[int]:
        """Numbers of the QEMU processes of this root, found by their user: recorded or not."""
        first = guest_uid(self.paths, 0)
        return sorted(uid - first for _, uid in _processes() if 0 < uid - first < _LAST_VMID)

    def taps(self) -> list[str]:
        """Taps of this root."""
        shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        names = re.findall(r"^\d+: ([^:@]+)", shown, re.MULTILINE)
        return sorted(own_taps(self.paths.root_hash, names).values())

    def groups(self) -> list[Path]:
        """Control groups of this root's guests."""
        return sorted(Path("/sys/fs/cgroup").glob(f"**/orrery-{self.paths.root_hash}/guest-*"))

    def images(self) -> list[str]:
        """Files of disk images, complete or not, on the storage `local`."""
        folder = self.paths.local_storage / "images"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def locks(self) -> list[str]:
        """Locks that tasks and requests hold, read from the journal's file."""
        with contextlib.closing(sqlite3.connect(f"file:{self.paths.tasks_db}?mode=ro", uri=True)) as journal:
            return [str(name) for (name,) in journal.execute("SELECT name FROM lock WHERE held = 1 ORDER BY name")]

    # --- its end

    def destroy(self) -> None:
        """Ends everything that this root ever started and removes it. Raises when something had to be killed."""
        with contextlib.suppress(ValueError):
            LIVE.remove(self)
        if self.serving is not None:
            self.serving.send_signal(signal.SIGCONT)
            self.end(signal.SIGKILL)
        for pid in self.stragglers(tasks_only=True):
            _signal(pid, signal.SIGKILL)
        said = ""
        if self.paths.node_json.exists():
            done = self.cli("down", "--timeout", "0", check=False)
            said = f"`orrery down` ended with {done.returncode}: {done.stdout}{done.stderr}"
        left = self.stragglers()
        told = [f"{pid}: {_command(pid)}" for pid in left]
        for pid in left:
            _signal(pid, signal.SIGKILL)
        for group in self.groups():
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not told, f"`orrery down` left processes behind: {told}; {said}"

    def stragglers(self, *, tasks_only: bool = False) -> list[int]:
        """Live processes of this root: marked by their environment, jailed with its folders, or of a guest's user."""
        guests = range(0) if tasks_only else range(guest_uid(self.paths, 0), guest_uid(self.paths, 0) + _LAST_VMID)
        mark = f"{ROOT_VARIABLE}={self.folder}\0".encode()
        group = f"/orrery-{self.paths.root_hash}/"
        lxcfs = f" {self.paths.lxcfs} "  # seen by every process of the host, and by containers of other nodes
        found = []
        for pid, uid in _processes():
            with contextlib.suppress(OSError):
                folder = Path(f"/proc/{pid}")
                marked = mark in (folder / "environ").read_bytes() + b"\0"
                mounts = [line for line in (folder / "mountinfo").read_text().splitlines() if lxcfs not in line]
                shown = any(f"{self.folder}/" in line for line in mounts)
                jailed = not tasks_only and (shown or group in (folder / "cgroup").read_text())
                if marked or jailed or uid in guests:
                    found.append(pid)
        return found

    def tail(self, lines: int = 300) -> Iterator[tuple[str, str]]:
        """The ends of its logs, by name."""
        for file in (self.output, self.paths.daemon_log, self.paths.nginx_log / "error.log"):
            with contextlib.suppress(OSError):
                yield str(file), "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


class Guest:
    """A machine of a node."""

    def __init__(self, node: Node, vmid: int) -> None:
        self.node = node
        self.vmid = vmid
        self.path = f"{node.path}/qemu/{vmid}"

    @property
    def api(self) -> Api:
        return self.node.api

    def run(self, verb: str, **parameters: Any) -> list[str]:
        """A verb of its power (`start`, `stop`, …) to its good end; the task's log."""
        return self.api.wait(self.api.post(f"{self.path}/status/{verb}", **parameters))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"{self.path}/status/current")
        return found

    def config(self, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"{self.path}/config", **parameters)
        return found

    def set(self, also: dict[str, Any] | None = None, **options: Any) -> None:
        """Changes options by the task that clients use, to its good end."""
        upid = self.api.post(f"{self.path}/config", also, **options)
        if upid is not None:
            self.api.wait(upid)

    def pid(self) -> int:
        """QEMU's process."""
        return int(self.status()["pid"])

    def agent(self, command: str, **parameters: Any) -> Any:
        """The result of an agent command that is a GET."""
        return self.api.get(f"{self.path}/agent/{command}", **parameters)["result"]

    def wait_agent(self, seconds: float = BOOT_SECONDS) -> "Guest":
        """Waits until the agent inside answers."""

        def answers() -> bool:
            return self.api.send("POST", f"{self.path}/agent/ping").status_code == 200

        eventually(answers, seconds, f"an answer of the agent in VM {self.vmid}")
        return self

    def addresses(self) -> list[str]:
        """IPv4 addresses inside, as the agent tells them, without the loopback's."""
        return [
            str(each["ip-address"])
            for card in self.agent("network-get-interfaces")
            for each in card.get("ip-addresses", ())
            if each["ip-address-type"] == "ipv4" and not each["ip-address"].startswith("127.")
        ]

    def address(self, seconds: float = BOOT_SECONDS) -> str:
        """Its first address; waits for the agent and for DHCP."""
        self.wait_agent(seconds)
        found: list[str] = eventually(self.addresses, seconds, f"an address of VM {self.vmid}")
        return found[0]

    def ssh(self, command: str, *, timeout: float = 60.0, password: str | None = None, user: str = "root") -> str:
        """The output of a command inside, run by SSH; it must end well."""
        options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -oConnectTimeout=20"
        done = subprocess.run(
            ["sshpass", "-e", "ssh", *options.split(), f"{user}@{self.address()}", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "SSHPASS": self.node.guest_password if password is None else password},
        )
        assert done.returncode == 0, f"ssh {command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def inside(self, *command: str, seconds: float = 20.0) -> str:
        """The output of a program inside, run by the agent; it must end well."""
        pid = self.api.post(f"{self.path}/agent/exec", {"command": list(command)})["pid"]

        def result() -> Any:
            told = self.api.get(f"{self.path}/agent/exec-status", pid=pid)
            return told if told["exited"] else None

        told = eventually(result, seconds, f"the end of {command}")
        assert told.get("exitcode") == 0, told
        return str(told.get("out-data", "")).strip()

    def destroy(self) -> list[str]:
        """Stops and destroys it; the task's log."""
        self.run("stop")
        return self.api.wait(self.api.delete(self.path))


def container_options(vmid: int, template: str) -> dict[str, Any]:
    """What a small container is made with."""
    return {
        "vmid": vmid,
        "ostemplate": template,
        "ostype": "alpine",
        "memory": 64,
        "rootfs": "local:0.0625",
        "net0": "name=eth0,bridge=vmbr0,ip=dhcp",
    }


class Container(Guest):
    """A container of a node."""

    def __init__(self, node: Node, vmid: int) -> None:
        super().__init__(node, vmid)
        self.path = f"{node.path}/lxc/{vmid}"

    def set(self, also: dict[str, Any] | None = None, **options: Any) -> None:
        """Changes options."""
        upid = self.api.put(f"{self.path}/config", also, **options)
        if upid is not None:
            self.api.wait(upid)

    def pending(self) -> dict[str, Any]:
        """What waits for the next start, by option."""
        rows = self.api.get(f"{self.path}/pending")
        return {row["key"]: row.get("pending") for row in rows if "pending" in row or "delete" in row}

    def inside(self, *command: str, seconds: float = 20.0) -> str:
        """The output of a program inside; it must end well."""
        done = self.node.cli("ct", "exec", str(self.vmid), "--", *command, timeout=seconds)
        return str(done.stdout).strip()

    def addresses(self) -> list[str]:
        """IPv4 addresses inside, without the loopback's."""
        cards = self.api.get(f"{self.path}/interfaces")
        found = [str(card["inet"]).partition("/")[0] for card in cards if card.get("inet") and card["name"] != "lo"]
        return [address for address in found if address]

    def address(self, seconds: float = BOOT_SECONDS) -> str:
        """Its first address; waits for DHCP, and for a container that is starting again."""
        eventually(lambda: self.status()["status"] == "running", seconds, f"a start of CT {self.vmid}")
        found: list[str] = eventually(self.addresses, seconds, f"an address of CT {self.vmid}")
        return found[0]


def _with_root(words: tuple[str, ...], root: Path) -> list[str]:
    """Options go before `--`, behind which a guest's program stands."""
    place = words.index("--") if "--" in words else len(words)
    return [*words[:place], "--root", str(root), *words[place:]]


def _processes() -> Iterator[tuple[int, int]]:
    """Pid and user of every process that is not a zombie and not ours."""
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    yield int(entry.name), entry.stat().st_uid


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return ""
