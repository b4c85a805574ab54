# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery ct`: containers."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import typer

from orrery.cli import completion
from orrery.cli.verbs import Columns, Session, duration, pairs, percent, size, verb
from orrery.drivers.lxc import transfer
from orrery.drivers.lxc.driver import LxcDriver
from orrery.drivers.lxc.tree import Tree
from orrery.errors import Failure, OrreryError
from orrery.system import process

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

VMID = typer.Argument(..., help="Number of the container.", autocompletion=completion.vmids)
WAIT = typer.Option(True, help="Wait for the end of the task.")
TIMEOUT = typer.Option(None, help="Seconds to wait for the container.")
OPTIONS = typer.Argument(None, help="Options as KEY=VALUE, such as memory=1024 or mp0=local:8,mp=/data.")
COMMAND = typer.Argument(..., help="Program and arguments.")
SHELLS = ("/bin/bash", "/bin/sh")


def guest(session: Session, vmid: int) -> str:
    """Path of a container."""
    return f"{session.node}/lxc/{vmid}"


@verb(app, "list")
def list_(session: Session) -> None:
    """List the containers that you may see.

    Example:  orrery ct list --json
    """
    columns: Columns = {
        "VMID": "vmid",
        "NAME": "name",
        "STATUS": "status",
        "CPUS": "cpus",
        "CPU": percent("cpu"),
        "MEMORY": size("mem"),
        "OF": size("maxmem"),
        "DISK": size("maxdisk"),
        "UPTIME": duration("uptime"),
        "TAGS": "tags",
    }
    rows = session.get(f"{session.node}/lxc")
    session.table(sorted(rows, key=lambda row: int(row["vmid"])), columns)


@verb(app)
def create(
    session: Session,
    template: str = typer.Argument(..., help="Template, such as local:vztmpl/debian-12.tar.zst."),
    vmid: int | None = typer.Option(None, help="Number of the new container; the next free one without it."),
    name: str | None = typer.Option(None, help="Its hostname."),
    memory: int = typer.Option(512, help="Memory in MiB."),
    cores: int = typer.Option(1, help="Processors."),
    disk: str = typer.Option("local:4", help="Its root: STORAGE:GIB; a size of 0 makes a plain folder."),
    bridge: str | None = typer.Option("vmbr0", help="Bridge of its network card; empty for none."),
    ip: str = typer.Option("dhcp", help="IPv4 address as ADDRESS/PREFIX, dhcp or manual."),
    gateway: str | None = typer.Option(None, help="Gateway of a fixed IPv4 address."),
    root_password: Path | None = typer.Option(None, "--root-password-file", help="File with its root's password."),
    keys: Path | None = typer.Option(None, "--ssh-keys", help="File with public keys that may log in as root."),
    start: bool = typer.Option(False, "--start", help="Start it."),
    set_: list[str] = typer.Option([], "--set", help="Any option as KEY=VALUE; may repeat."),
    wait: bool = WAIT,
) -> None:
    """Create a container from a template.

    Example:  orrery ct create local:vztmpl/debian-12.tar.zst --name web1 --disk local:8 --start
    """
    number = vmid or int(session.get("/cluster/nextid"))
    options: dict[str, Any] = {"hostname": name, "memory": memory, "cores": cores, "rootfs": disk, "unprivileged": True}
    if bridge:
        route = f",gw={gateway}" if gateway else ""
        options["net0"] = f"name=eth0,bridge={bridge},ip={ip}{route}"
    if root_password is not None:
        options["password"] = _read(root_password).splitlines()[0]
    if keys is not None:
        options["ssh-public-keys"] = _read(keys)
    parameters = {**options, **pairs(set_), "vmid": number, "ostemplate": template, "start": start}
    session.follow(session.client.call("POST", f"{session.node}/lxc", parameters), wait=wait)
    session.say(f"created CT {number}")


def _read(file: Path) -> str:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read '{file}': {error}") from error
    if not text.strip():
        raise Failure(f"'{file}' is empty")
    return text


@verb(app)
def start(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Start a container."""
    session.follow(session.post(guest(session, vmid) + "/status/start"), wait=wait)


@verb(app)
def stop(
    session: Session,
    vmid: int = VMID,
    overrule: bool = typer.Option(False, "--overrule-shutdown", help="End shutdowns of it that still wait."),
    wait: bool = WAIT,
) -> None:
    """Stop a container at once, like pulling the plug."""
    where = guest(session, vmid) + "/status/stop"
    session.follow(session.post(where, overrule_shutdown=overrule or None), wait=wait)


@verb(app)
def shutdown(
    session: Session,
    vmid: int = VMID,
    timeout: int | None = TIMEOUT,
    force: bool = typer.Option(False, "--force", help="Stop it when it has not ended in time."),
    wait: bool = WAIT,
) -> None:
    """Ask the system in a container to shut down.

    Example:  orrery ct shutdown 101 --timeout 30 --force
    """
    where = guest(session, vmid) + "/status/shutdown"
    session.follow(session.post(where, timeout=timeout, forceStop=force), wait=wait)


@verb(app)
def reboot(session: Session, vmid: int = VMID, timeout: int | None = TIMEOUT, wait: bool = WAIT) -> None:
    """Shut a container down and start it again; pending changes take effect."""
    session.follow(session.post(guest(session, vmid) + "/status/reboot", timeout=timeout), wait=wait)


@verb(app)
def suspend(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Freeze all processes of a container."""
    session.follow(session.post(guest(session, vmid) + "/status/suspend"), wait=wait)


@verb(app)
def resume(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Let a suspended container go on."""
    session.follow(session.post(guest(session, vmid) + "/status/resume"), wait=wait)


@verb(app)
def destroy(
    session: Session,
    vmid: int = VMID,
    force: bool = typer.Option(False, "--force", help="Also when it runs."),
    purge: bool = typer.Option(False, "--purge", help="Also drop it from jobs, of which there are none yet."),
    unreferenced: bool = typer.Option(False, "--unreferenced", help="Also remove volumes that no option names."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    wait: bool = WAIT,
) -> None:
    """Destroy a container and its volumes.

    Example:  orrery ct destroy 101 --yes
    """
    if not yes and not typer.confirm(f"Destroy CT {vmid} and its volumes?"):
        raise Failure("nothing was destroyed")
    upid = session.delete(guest(session, vmid), force=force, purge=purge, destroy_unreferenced_disks=unreferenced)
    session.follow(upid, wait=wait)


@verb(app)
def status(session: Session, vmid: int = VMID) -> None:
    """Show what a container is doing."""
    session.facts(session.get(guest(session, vmid) + "/status/current"))


@verb(app)
def config(
    session: Session,
    vmid: int = VMID,
    current: bool = typer.Option(False, "--current", help="Without what is pending."),
) -> None:
    """Show a container's options."""
    session.facts(session.get(guest(session, vmid) + "/config", current=current))


@verb(app)
def pending(session: Session, vmid: int = VMID) -> None:
    """Show what waits for the next start."""
    rows = session.get(guest(session, vmid) + "/pending")
    columns: Columns = {"OPTION": "key", "NOW": "value", "PENDING": "pending", "DELETE": "delete"}
    session.table(rows if session.json else _pending(rows), columns)


@verb(app, "set")
def set_(
    session: Session,
    vmid: int = VMID,
    options: list[str] = OPTIONS,
    delete: str | None = typer.Option(None, help="Options to remove, separated by commas."),
    revert: str | None = typer.Option(None, help="Options whose pending change to drop."),
) -> None:
    """Change a container's options.

    Example:  orrery ct set 101 memory=1024 cores=2
    """
    if not (options or delete or revert):
        raise Failure("nothing to change: give options as KEY=VALUE, --delete OPTION or --revert OPTION")
    where = guest(session, vmid)
    parameters = {**pairs(options or ()), "delete": delete, "revert": revert}
    session.follow(session.client.call("PUT", where + "/config", parameters))
    with contextlib.suppress(OrreryError):  # who may change a container need not be allowed to look at it
        waiting = [row["key"] for row in _pending(session.get(where + "/pending"))]
        if waiting:
            session.say(f"pending until CT {vmid} is started anew: {', '.join(waiting)}")


def _pending(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The options that have another value, or none, from the next start on."""
    return [row for row in rows if "pending" in row or "delete" in row]


@verb(app)
def resize(
    session: Session,
    vmid: int = VMID,
    disk: str = typer.Argument(..., help="rootfs or a mount point, such as mp0."),
    amount: str = typer.Argument(..., metavar="SIZE", help="The new size, or what to add: 40G, +5G."),
) -> None:
    """Grow a volume, also while the container runs.

    Example:  orrery ct resize 101 rootfs +5G
    """
    session.follow(session.put(guest(session, vmid) + "/resize", disk=disk, size=amount))


@verb(app)
def move(
    session: Session,
    vmid: int = VMID,
    volume: str = typer.Argument(..., help="rootfs, a mount point or an unused volume."),
    storage: str | None = typer.Argument(None, help="Where to.", autocompletion=completion.storages),
    to: int | None = typer.Option(None, "--to", help="Give it to this container instead."),
    as_: str | None = typer.Option(None, "--as-volume", help="What it is to be there, such as mp1."),
    delete: bool = typer.Option(False, "--delete", help="Remove the original."),
) -> None:
    """Move a volume of a stopped container to another storage, or to another container.

    Example:  orrery ct move 101 mp0 fast --delete
    """
    parameters = {"volume": volume, "storage": storage, "delete": delete, "target-vmid": to, "target-volume": as_}
    session.follow(session.client.call("POST", guest(session, vmid) + "/move_volume", parameters))


@verb(app)
def addresses(session: Session, vmid: int = VMID) -> None:
    """Show the addresses of a running container."""
    found = session.get(guest(session, vmid) + "/interfaces")
    rows = [
        {"interface": card["name"], "mac": card.get("hwaddr"), "address": address}
        for card in found
        for address in (card.get("inet"), card.get("inet6"))
        if address
    ]
    session.table(rows, {"INTERFACE": "interface", "MAC": "mac", "ADDRESS": "address"})


@verb(app, "exec")
def exec_(session: Session, vmid: int = VMID, command: list[str] = COMMAND) -> None:
    """Run a program inside as root, with this terminal or pipe, and end with its exit code. For root on the node.

    Example:  orrery ct exec 101 -- ps
    """
    raise typer.Exit(entered(session, vmid, command))


@verb(app)
def shell(session: Session, vmid: int = VMID) -> None:
    """Open a shell in a running container, as its root. For root on the node.

    Example:  orrery ct shell 101
    """
    driver = LxcDriver(session.here())
    first = driver.init_pid(vmid)
    raise typer.Exit(entered(session, vmid, [SHELLS[-1] if first is None else shell_of(first), "-l"]))


def shell_of(first: int) -> str:
    """The best shell that a container has, by its own links: an absolute one would lead us out."""
    with Tree(Path(f"/proc/{first}/root")) as tree:
        return next(filter(tree.exists, SHELLS), SHELLS[-1])


def entered(session: Session, vmid: int, command: list[str]) -> int:
    """Runs a program in a container with our own input and output; its exit code."""
    argv = LxcDriver(session.here()).entering(vmid, command)
    sys.stdout.flush()
    child = process.spawn(argv, name=command[0], stdin=0, stdout=1, stderr=2, new_session=False)
    _, status = os.waitpid(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


@verb(app)
def push(
    session: Session,
    vmid: int = VMID,
    file: Path = typer.Argument(..., help="File here; - for standard input."),
    path: str = typer.Argument(..., help="Where it goes in the container."),
    mode: str | None = typer.Option(None, help="Its mode there, such as 0644; without, that of the file."),
    user: int = typer.Option(0, help="Number of its owner there."),
    group: int = typer.Option(0, help="Number of its group there."),
) -> None:
    """Copy a file into a running container. For root on the node.

    Example:  orrery ct push 101 nginx.conf /etc/nginx/nginx.conf
    """
    first = running(session, vmid)
    try:
        with contextlib.ExitStack() as stack:
            source = 0 if str(file) == "-" else stack.enter_context(file.open("rb", buffering=0)).fileno()
            rights = int(mode, 8) if mode else os.fstat(source).st_mode & 0o777 if source else 0o644
            transfer.push(first, source, inside(path), mode=rights & 0o7777, owner=(user, group))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot copy '{file}': {error}") from error


@verb(app)
def pull(
    session: Session,
    vmid: int = VMID,
    path: str = typer.Argument(..., help="File in the container."),
    file: Path = typer.Argument(..., help="Where it goes here; - for standard output."),
) -> None:
    """Copy a file out of a running container. For root on the node.

    Example:  orrery ct pull 101 /var/log/messages messages
    """
    first = running(session, vmid)
    if str(file) == "-":
        sys.stdout.flush()
        transfer.pull(first, inside(path), 1, keep_mode=False)
        return
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            transfer.pull(first, inside(path), descriptor)
            new.rename(file)
        finally:
            os.close(descriptor)
            new.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(f"cannot write '{file}': {error.strerror}") from error


def running(session: Session, vmid: int) -> int:
    """The first process of a running container. Raises `Failure`."""
    first = LxcDriver(session.here()).init_pid(vmid)
    if first is None:
        raise Failure(f"CT {vmid} not running")
    return first


def inside(path: str) -> str:
    """An absolute path in a container. Raises `Failure`."""
    if not path.startswith("/") or "\0" in path:
        raise Failure(f"'{path}' is no absolute path in the container")
    return path
