# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `make run` does: a node in the foreground, with a machine and a container that were made through its API.

Everything is taken up where it stands: a root that is there, images, guests, guests that run. Ctrl-C stops the node and
leaves the guests running.
"""

import argparse
import contextlib
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import structlog

from orrery.cli.client import Client, Target
from orrery.demo.image import prepared
from orrery.demo.template import prepared_template
from orrery.errors import Failure, OrreryError
from orrery.front.certificate import fingerprint
from orrery.front.nginx import Address
from orrery.system.files import write_atomic
from orrery.system.paths import Paths
from orrery.system.process import ProcessId, alive, reap, run, spawn, terminate

GUEST_NAME = "demo"
IMAGE_NAME = "orrery-demo.qcow2"
IMAGE_VOLUME = f"local:import/{IMAGE_NAME}"
CONTAINER_NAME = "demo-ct"
TEMPLATE_NAME = "orrery-demo.tar.gz"
TEMPLATE_VOLUME = f"local:vztmpl/{TEMPLATE_NAME}"

MACHINE_WORD, CONTAINER_WORD = f"Machine '{GUEST_NAME}'", f"Container '{CONTAINER_NAME}'"

_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_ADDRESS_SECONDS = 180.0  # without KVM and on a busy machine a boot may take a minute
_POLL_SECONDS = 0.1
_INIT_SECONDS = 60.0
_ORRERY = Path(sys.executable).with_name("orrery")


@dataclass(frozen=True, slots=True)
class Places:
    """The files that this script adds to a node's root."""

    root: Path
    paths: Paths

    @property
    def admin_password(self) -> Path:
        return self.root / "admin-password"

    @property
    def guest_password(self) -> Path:
        return self.root / "demo-guest-password"

    @property
    def output(self) -> Path:
        """What the node prints."""
        return self.root / "serve.log"


def say(text: str = "") -> None:
    """A line for the person at the terminal, at once."""
    print(text, flush=True)


def initialise(places: Places, node: str) -> None:
    """Make the root of a node with a made-up password for admin@pve, unless there is one."""
    if places.paths.node_json.exists():
        return
    say(f"preparing a node in {places.root}")
    places.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not places.admin_password.exists():
        write_atomic(places.admin_password, f"{secrets.token_urlsafe(12)}\n".encode())
    command: list[str | Path] = [_ORRERY, "init", "--root", places.root, "--node-name", node]
    run([*command, "--admin-password-file", places.admin_password], timeout=_INIT_SECONDS)


def require_free(listen: Address) -> None:
    """Raise Failure when somebody listens at the address already."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            raise Failure(
                f"cannot listen on {listen}: {error.strerror}. Stop what runs there, or choose another address: "
                f"make run LISTEN={Address(listen.host, listen.port + 100)}"
            ) from error


@contextlib.contextmanager
def serving(places: Places, listen: Address) -> Iterator[ProcessId]:
    """A node that serves as long as the block runs; it ends, at the latest, with this process."""
    descriptor = os.open(places.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        process = spawn(
            [_ORRERY, "serve", "--root", places.root, "--listen", str(listen)],
            stdout=descriptor,
            stderr=descriptor,
            die_with_parent=True,
            parent_death_signal=signal.SIGTERM,
        )
    finally:
        os.close(descriptor)
    try:
        yield process
    finally:
        terminate(process, _STOP_SECONDS)


def connect(places: Places, listen: Address, process: ProcessId) -> Client:
    """A client of the node, once it answers at its address. Raises Failure when the node ends or says nothing."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if not alive(process):
            raise collapse(places, f"the node ended with code {reap(process)}")
        with contextlib.suppress(OSError), socket.create_connection((host, listen.port), timeout=1):
            return Client(Target(places.paths.local_sock))
        time.sleep(_POLL_SECONDS)
    raise collapse(places, f"the node does not answer at {listen} after {_START_SECONDS:.0f} seconds")


def collapse(places: Places, reason: str) -> Failure:
    """The error for a node that is no use: the reason, and the last that it printed."""
    tail = "\n".join(places.output.read_text(errors="replace").splitlines()[-15:])
    return Failure(f"{reason}; the end of {places.output}:\n{tail}")


class Demonstration:
    """The guests, made and started through the API of a node that runs."""

    def __init__(self, client: Client, node: str, places: Places, cache: Path) -> None:
        self._client = client
        self._node = f"/nodes/{node}"
        self._places = places
        self._cache = cache

    def machine(self) -> int:
        """Number of the machine, which runs when this returns."""
        found = self._present("qemu", GUEST_NAME)
        if found is None:
            self._upload()
            found = self._create()
            self._start("qemu", found)
        return found

    def container(self) -> int:
        """Number of the container, which runs when this returns."""
        found = self._present("lxc", CONTAINER_NAME)
        if found is None:
            self._upload_template()
            found = self._create_container()
        return found

    def _present(self, kind: str, name: str) -> int | None:
        """The guest of that name, started if it does not run; None when there is none."""
        for row in self._client.call("GET", f"{self._node}/{kind}"):
            if row.get("name") == name:
                vmid = int(row["vmid"])
                if row["status"] != "running":
                    self._start(kind, vmid)
                return vmid
        return None

    def _upload(self) -> None:
        content = self._client.call("GET", f"{self._node}/storage/local/content", {"content": "import"})
        if any(row["volid"] == IMAGE_VOLUME for row in content) and self._places.guest_password.exists():
            return
        say("building the guest's disk image from Debian packages (once)")
        image = prepared(self._cache)
        write_atomic(self._places.guest_password, image.password_file.read_bytes())
        where = f"{self._node}/storage/local/upload"
        self._client.wait(self._client.upload(where, {"content": "import"}, image.image, IMAGE_NAME))

    def _create(self) -> int:
        vmid = int(self._client.call("GET", "/cluster/nextid"))
        say(f"creating guest {vmid} '{GUEST_NAME}'")
        options = {
            "vmid": vmid,
            "name": GUEST_NAME,
            "description": "Demonstration guest, made by `make run`.",
            "ostype": "l26",
            "cores": 1,
            "memory": 256,
            "virtio0": f"local:0,import-from={IMAGE_VOLUME}",
            "net0": "virtio,bridge=vmbr0",
            "serial0": "socket",
            "agent": "1",
            "boot": "order=virtio0",
        }
        self._client.wait(self._client.call("POST", f"{self._node}/qemu", options))
        return vmid

    def _upload_template(self) -> None:
        content = self._client.call("GET", f"{self._node}/storage/local/content", {"content": "vztmpl"})
        if any(row["volid"] == TEMPLATE_VOLUME for row in content):
            return
        say("building the container's template from Debian packages (once)")
        where = f"{self._node}/storage/local/upload"
        archive = prepared_template(self._cache)
        self._client.wait(self._client.upload(where, {"content": "vztmpl"}, archive, TEMPLATE_NAME))

    def _create_container(self) -> int:
        vmid = int(self._client.call("GET", "/cluster/nextid"))
        say(f"creating and starting container {vmid} '{CONTAINER_NAME}'")
        options = {
            "vmid": vmid,
            "hostname": CONTAINER_NAME,
            "description": "Demonstration container, made by `make run`.",
            "ostemplate": TEMPLATE_VOLUME,
            "ostype": "alpine",
            "unprivileged": 1,
            "cores": 1,
            "memory": 128,
            "swap": 0,
            "rootfs": "local:0.125",
            "net0": "name=eth0,bridge=vmbr0,ip=dhcp",
            "password": self._password(),
            "start": 1,
        }
        self._client.wait(self._client.call("POST", f"{self._node}/lxc", options))
        return vmid

    def _password(self) -> str:
        """Root's password in both guests."""
        file = self._places.guest_password
        if not file.exists():
            write_atomic(file, f"{secrets.token_urlsafe(9)}\n".encode())
        return file.read_text().strip()

    def _start(self, kind: str, vmid: int) -> None:
        say(f"starting guest {vmid}")
        self._client.wait(self._client.call("POST", f"{self._node}/{kind}/{vmid}/status/start"))

    def container_address(self, vmid: int) -> str | None:
        """The container's IPv4 address; None when it has none in time."""
        end = time.monotonic() + _ADDRESS_SECONDS
        while time.monotonic() < end:
            for card in self._client.call("GET", f"{self._node}/lxc/{vmid}/interfaces"):
                if card["name"] != "lo" and card.get("inet"):
                    return str(card["inet"]).partition("/")[0]
            time.sleep(_POLL_SECONDS)
        return None

    def machine_address(self, vmid: int) -> str | None:
        """The machine's IPv4 address as its agent says it; None when it does not in time."""
        end = time.monotonic() + _ADDRESS_SECONDS
        while time.monotonic() < end:
            # An agent that does not answer yet is the node's error 500.
            with contextlib.suppress(Failure):
                reply = self._client.call("GET", f"{self._node}/qemu/{vmid}/agent/network-get-interfaces")
                found = first_address(reply["result"])
                if found:
                    return found
            time.sleep(_POLL_SECONDS * 3)
        return None


def first_address(interfaces: list[dict[str, Any]]) -> str | None:
    """The first IPv4 address of a card that is not the loopback."""
    for interface in interfaces:
        for entry in interface.get("ip-addresses", []):
            if entry["ip-address-type"] == "ipv4" and not entry["ip-address"].startswith("127."):
                return str(entry["ip-address"])
    return None


def make(target: str, root: Path) -> str:
    """What to type in the checkout for a target of the Makefile that concerns this root."""
    default = Path("var").absolute()
    return f"make {target}" if root == default else f"make {target} ROOT={shlex.quote(os.path.relpath(root))}"


def describe(places: Places, listen: Address, guests: Mapping[str, tuple[int, str | None]]) -> None:
    """What there is, how to get in, what to try. `guests`: numbers and addresses by what they are."""
    root = places.root
    container = guests[CONTAINER_WORD][0]
    say()
    say(f"Orrery runs at  https://{listen}")
    say(f"  log in as     admin@pve, password in {places.admin_password}")
    say(f"  certificate   SHA-256 {fingerprint(places.paths.tls_cert)}")
    for what, (vmid, address) in guests.items():
        if address is None:
            say(f"{what} {vmid} runs but has told no address; see {places.paths.log}")
        else:
            say(f"{what} {vmid} runs at {address}")
            say(f"  log in by     ssh root@{address}, password in {places.guest_password}")
    say()
    say("Try:")
    say(f"  {_ORRERY} vm list --root {root}")
    say(f"  {_ORRERY} ct exec {container} --root {root} -- ps")
    say(f"  {_ORRERY} vm --help; {_ORRERY} ct --help")
    say(f"  curl -k https://{listen}/api2/json/access/domains")
    say(f"  proxmoxer, Ansible, Terraform …: point them at {listen}")
    say()
    say(f"Ctrl-C stops Orrery, not the guests. `{make('down', root)}` stops all, `{make('clean', root)}` removes all.")


def watch(places: Places, process: ProcessId) -> None:
    """Wait until the node ends as it was told to from outside, or fails (Failure)."""
    while alive(process):
        time.sleep(1)
    code = reap(process)
    if code != 0:
        raise collapse(places, f"the node ended with code {code}")
    say("\nOrrery was stopped from outside, by `orrery down` for example.")


def demonstrate(places: Places, listen: Address, node: str, cache: Path) -> None:
    """From nothing, or from whatever stands, to a running node with running guests, until the node ends."""
    require_free(listen)
    initialise(places, node)
    with serving(places, listen) as process:
        client = connect(places, listen, process)
        demonstration = Demonstration(client, client.node(), places, cache)
        machine = demonstration.machine()
        container = demonstration.container()
        guests = {
            MACHINE_WORD: (machine, demonstration.machine_address(machine)),
            CONTAINER_WORD: (container, demonstration.container_address(container)),
        }
        describe(places, listen, guests)
        watch(places, process)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """The command line of `make run`."""
    parser = argparse.ArgumentParser(prog="orrery.demo.run", description="Run a node with demonstration guests.")
    parser.add_argument("--root", type=Path, default=Path("var"), help="the node's folder (%(default)s)")
    parser.add_argument("--listen", default="127.0.0.1:8006", help="address and port of the API (%(default)s)")
    parser.add_argument("--node-name", default="orrery", help="name of a node that is made anew (%(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("build/demo"), help="folder for packages and images")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    root = arguments.root.absolute()
    try:
        listen = Address.parse(arguments.listen)
        demonstrate(Places(root, Paths.of(root)), listen, arguments.node_name, arguments.cache.absolute())
    except KeyboardInterrupt:
        say("\nOrrery has stopped; guests go on running.")
        say(f"`{make('run', root)}` takes them up again, `{make('down', root)}` stops them.")
        return 0
    except (OrreryError, OSError, ValueError) as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
