# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery vm`: virtual machines."""

import contextlib
import time
from typing import Any

import typer

from orrery.cli import completion, vm_cloudinit
from orrery.cli.client import POLL_SECONDS
from orrery.cli.verbs import Columns, Session, duration, pairs, percent, size, verb
from orrery.errors import Failure, OrreryError, ParameterError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(vm_cloudinit.app, name="cloudinit", help="What machines are told about themselves.")

VMID = typer.Argument(..., help="Number of the machine.", autocompletion=completion.vmids)
FORMATS = completion.words("raw", "qcow2", "vmdk")
WAIT = typer.Option(True, help="Wait for the end of the task.")
TIMEOUT = typer.Option(None, help="Seconds to wait for the guest.")
OPTIONS = typer.Argument(None, help="Options as KEY=VALUE, such as memory=2048 or net0=virtio,bridge=vmbr0.")


def guest(session: Session, vmid: int) -> str:
    """Path of a machine."""
    return f"{session.node}/qemu/{vmid}"


@verb(app, "list")
def list_(session: Session) -> None:
    """List the machines that you may see.

    Example:  orrery vm list --json
    """
    columns: Columns = {
        "VMID": "vmid",
        "NAME": "name",
        "STATUS": "status",
        "CPUS": "cpus",
        "CPU": percent("cpu"),
        "MEMORY": size("maxmem"),
        "DISK": size("maxdisk"),
        "UPTIME": duration("uptime"),
        "TAGS": "tags",
    }
    rows = session.get(f"{session.node}/qemu")
    session.table(sorted(rows, key=lambda row: int(row["vmid"])), columns)


@verb(app)
def create(
    session: Session,
    vmid: int | None = typer.Argument(None, help="Number of the new machine; the next free one without it."),
    name: str | None = typer.Option(None, help="Its name."),
    memory: int = typer.Option(1024, help="Memory in MiB."),
    cores: int = typer.Option(1, help="Processors."),
    disk: str | None = typer.Option(None, help="First disk: STORAGE:GIB, or STORAGE:0,import-from=VOLUME."),
    iso: str | None = typer.Option(None, help="Optical medium, such as local:iso/debian.iso."),
    bridge: str | None = typer.Option("vmbr0", help="Bridge of the first network card; empty for none."),
    start: bool = typer.Option(False, "--start", help="Start it."),
    set_: list[str] = typer.Option([], "--set", help="Any option as KEY=VALUE; may repeat."),
    wait: bool = WAIT,
) -> None:
    """Create a machine.

    Example:  orrery vm create --name web1 --memory 2048 --cores 2 --disk local:32 --iso local:iso/debian.iso --start
    """
    number = vmid or int(session.get("/cluster/nextid"))
    options: dict[str, str | int | None] = {"name": name, "memory": memory, "cores": cores}
    if disk:
        options |= {"scsi0": disk, "scsihw": "virtio-scsi-single"}
    if iso:
        options["ide2"] = f"{iso},media=cdrom"
    if bridge:
        options["net0"] = f"virtio,bridge={bridge}"
    parameters = {**options, **pairs(set_), "vmid": number, "start": start}
    session.follow(session.client.call("POST", f"{session.node}/qemu", parameters), wait=wait)
    session.say(f"created VM {number}")


@verb(app)
def start(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Start a machine."""
    session.follow(session.post(guest(session, vmid) + "/status/start"), wait=wait)


@verb(app)
def stop(
    session: Session,
    vmid: int = VMID,
    overrule: bool = typer.Option(False, "--overrule-shutdown", help="End shutdowns of it that still wait."),
    wait: bool = WAIT,
) -> None:
    """Stop a machine at once, like pulling the plug."""
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
    """Shut a machine down by its agent or its power button.

    Example:  orrery vm shutdown 100 --timeout 60 --force
    """
    where = guest(session, vmid) + "/status/shutdown"
    session.follow(session.post(where, timeout=timeout, forceStop=force), wait=wait)


@verb(app)
def reboot(session: Session, vmid: int = VMID, timeout: int | None = TIMEOUT, wait: bool = WAIT) -> None:
    """Shut a machine down and start it again; pending changes take effect."""
    session.follow(session.post(guest(session, vmid) + "/status/reboot", timeout=timeout), wait=wait)


@verb(app)
def reset(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Reset a machine."""
    session.follow(session.post(guest(session, vmid) + "/status/reset"), wait=wait)


@verb(app)
def suspend(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Halt a machine's processors."""
    session.follow(session.post(guest(session, vmid) + "/status/suspend"), wait=wait)


@verb(app)
def resume(session: Session, vmid: int = VMID, wait: bool = WAIT) -> None:
    """Let a suspended machine go on."""
    session.follow(session.post(guest(session, vmid) + "/status/resume"), wait=wait)


@verb(app)
def destroy(
    session: Session,
    vmid: int = VMID,
    purge: bool = typer.Option(False, "--purge", help="Also drop it from jobs, of which there are none yet."),
    unreferenced: bool = typer.Option(False, "--unreferenced", help="Also remove disks that no option names."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    wait: bool = WAIT,
) -> None:
    """Destroy a machine and its disks.

    Example:  orrery vm destroy 100 --purge --yes
    """
    if not yes and not typer.confirm(f"Destroy VM {vmid} and its disks?"):
        raise Failure("nothing was destroyed")
    upid = session.delete(guest(session, vmid), purge=purge, destroy_unreferenced_disks=unreferenced)
    session.follow(upid, wait=wait)


@verb(app)
def status(session: Session, vmid: int = VMID) -> None:
    """Show what a machine is doing."""
    session.facts(session.get(guest(session, vmid) + "/status/current"))


@verb(app)
def config(
    session: Session,
    vmid: int = VMID,
    current: bool = typer.Option(False, "--current", help="Without what is pending."),
) -> None:
    """Show a machine's options."""
    session.facts(session.get(guest(session, vmid) + "/config", current=current))


@verb(app)
def pending(session: Session, vmid: int = VMID) -> None:
    """Show what waits for the next start."""
    rows = session.get(guest(session, vmid) + "/pending")
    session.table(
        rows if session.json else _pending(rows),
        {"OPTION": "key", "NOW": "value", "PENDING": "pending", "DELETE": "delete"},
    )


@verb(app, "set")
def set_(
    session: Session,
    vmid: int = VMID,
    options: list[str] = OPTIONS,
    delete: str | None = typer.Option(None, help="Options to remove, separated by commas."),
    revert: str | None = typer.Option(None, help="Options whose pending change to drop."),
    force: bool = typer.Option(False, "--force", help="Remove the volumes of deleted disks for good."),
) -> None:
    """Change a machine's options.

    Example:  orrery vm set 100 memory=4096 cores=4
    """
    if not (options or delete or revert):
        raise Failure("nothing to change: give options as KEY=VALUE, --delete OPTION or --revert OPTION")
    where = guest(session, vmid)
    parameters = {**pairs(options or ()), "delete": delete, "revert": revert, "force": force or None}
    session.follow(session.client.call("POST", where + "/config", parameters))
    with contextlib.suppress(OrreryError):  # who may change a machine need not be allowed to look at it
        waiting = [row["key"] for row in _pending(session.get(where + "/pending"))]
        if waiting:
            session.say(f"pending until VM {vmid} is started anew: {', '.join(waiting)}")


def _pending(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The options that have another value, or none, from the next start on."""
    return [row for row in rows if "pending" in row or "delete" in row]


@verb(app, dashed=True)
def resize(
    session: Session,
    vmid: int = VMID,
    disk: str = typer.Argument(..., help="The disk, such as scsi0."),
    amount: str = typer.Argument(..., metavar="SIZE", help="The new size, or what to add: 40G, +5G."),
) -> None:
    """Grow a disk.

    Example:  orrery vm resize 100 scsi0 +5G
    """
    if amount.startswith("-"):
        raise ParameterError({"SIZE": f"'{amount}' would make '{disk}' smaller; disks can only grow: 40G, +5G"})
    session.follow(session.put(guest(session, vmid) + "/resize", disk=disk, size=amount))


@verb(app)
def move(
    session: Session,
    vmid: int = VMID,
    disk: str = typer.Argument(..., help="The disk, such as scsi0."),
    storage: str = typer.Argument(..., help="Where to.", autocompletion=completion.storages),
    format_: str | None = typer.Option(None, "--format", help="raw, qcow2 or vmdk.", autocompletion=FORMATS),
    delete: bool = typer.Option(False, "--delete", help="Remove the original."),
) -> None:
    """Move a disk to another storage or format, also while the machine runs.

    Example:  orrery vm move 100 scsi0 fast --format raw --delete
    """
    where = guest(session, vmid) + "/move_disk"
    session.follow(session.post(where, disk=disk, storage=storage, format=format_, delete=delete))


@verb(app)
def insert(
    session: Session,
    vmid: int = VMID,
    medium: str = typer.Argument(..., help="Optical medium, such as local:iso/debian.iso."),
    drive: str = typer.Option("ide2", help="The optical drive."),
) -> None:
    """Put a medium into a machine's optical drive, also while it runs.

    Example:  orrery vm insert 100 local:iso/debian.iso
    """
    _change_medium(session, vmid, drive, medium)


@verb(app)
def eject(session: Session, vmid: int = VMID, drive: str = typer.Option("ide2", help="The optical drive.")) -> None:
    """Take the medium out of a machine's optical drive, also while it runs."""
    _change_medium(session, vmid, drive, "none")


def _change_medium(session: Session, vmid: int, drive: str, medium: str) -> None:
    session.follow(session.client.call("POST", guest(session, vmid) + "/config", {drive: f"{medium},media=cdrom"}))


@verb(app)
def addresses(session: Session, vmid: int = VMID) -> None:
    """Show the addresses that the agent inside reports."""
    found = session.get(guest(session, vmid) + "/agent/network-get-interfaces")["result"]
    rows = [
        {"interface": card["name"], "mac": card.get("hardware-address"), "address": each["ip-address"]}
        for card in found
        for each in card.get("ip-addresses", [])
    ]
    session.table(rows, {"INTERFACE": "interface", "MAC": "mac", "ADDRESS": "address"})


@verb(app, "exec")
def exec_(
    session: Session, vmid: int = VMID, command: list[str] = typer.Argument(..., help="Program and arguments.")
) -> None:
    """Run a program inside by the agent, print what it prints, and end with its exit code.

    Example:  orrery vm exec 100 -- uname -a
    """
    where = guest(session, vmid) + "/agent"
    pid = session.client.call("POST", where + "/exec", {"command": command})["pid"]
    result = session.get(where + "/exec-status", pid=pid)
    while not result["exited"]:
        time.sleep(POLL_SECONDS)
        result = session.get(where + "/exec-status", pid=pid)
    if session.json:
        session.dump(result)
    else:
        typer.echo(result.get("out-data", ""), nl=False)
        typer.echo(result.get("err-data", ""), nl=False, err=True)
    raise typer.Exit(int(result.get("exitcode", 128 + int(result.get("signal", 0)))))
