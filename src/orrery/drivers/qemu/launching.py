# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a launch plan to a running machine.

Root opens everything, QEMU gets it as descriptors: an unprivileged process of its own user, in a mount namespace that
shows only the system's programs, in an empty network namespace, with system calls filtered. It reaches the network by
its taps alone.
"""

import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from orrery.drivers.qemu.monitor import Monitor, MonitorError
from orrery.drivers.qemu.plan import Descriptor, Given, LaunchPlan, ListeningSocket, MemoryCopy, OpenFile, Resources
from orrery.drivers.qemu.records import MachineRecord, Records, guest_uid
from orrery.errors import Failure
from orrery.system import cgroup, process, sockets
from orrery.system.jail import Jail, unlimited_core_less
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

LOG_FILE: Final = "qemu.log"
READY_SECONDS: Final = 30.0
"""How long QEMU may take to greet, and to answer each command until it runs."""

_DEATH_SECONDS: Final = 2.0
_SAID_BYTES: Final = 4096

# The header of a qcow2 image, https://www.qemu.org/docs/master/interop/qcow2.html
_QCOW2_MAGIC: Final = b"QFI\xfb"
_QCOW2_HEADER: Final = struct.Struct(">4sIQ56xQ")
_QCOW2_DATA_FILE: Final = 1 << 2

Log = Callable[[str], None]


def launch(paths: Paths, records: Records, plan: LaunchPlan, log: Log, patience: float = READY_SECONDS) -> ProcessId:
    """Start a machine and return once it runs; `log` gets the plan's notes and warnings for the task's log.

    Raises Failure with what QEMU said when it ends at once; then nothing is left but the run folder.
    """
    folder = paths.guest_run(plan.vmid)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for note in plan.notes:
        log(note)
    group = cgroup.guest_group(paths.root_hash, plan.vmid)
    for warning in _prepare_group(group, plan.resources):
        log(f"warning: {warning}")
    machine = _spawn(paths, plan, folder, group)
    try:
        records.write(
            plan.vmid, MachineRecord(machine, plan.machine, plan.version, plan.accelerator, round(time.time(), 3))
        )
        _begin(folder, plan, machine, patience)
    except BaseException:
        end(machine, 0)
        raise
    return machine


def end(machine: ProcessId, grace: float) -> bool:
    """End a machine without asking its guest: SIGTERM, which lets QEMU close its images, and SIGKILL after `grace`.

    Whether it was alive. Raises Failure when even SIGKILL does not end it (a process that waits for a broken disk).
    """
    alive = process.alive(machine)
    if alive and grace > 0:
        process.signal(machine, signal.SIGTERM)
        process.wait(machine, grace)
    if process.alive(machine):
        process.signal(machine, signal.SIGKILL)
        if not process.wait(machine, _DEATH_SECONDS):
            raise Failure(f"process {machine.pid} cannot be killed; it waits for a device or file that does not answer")
    process.reap(machine)
    return alive


def said(folder: Path) -> str:
    """The last lines that QEMU wrote to its standard error."""
    try:
        with (folder / LOG_FILE).open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _SAID_BYTES))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line.removeprefix("qemu-system-x86_64: ") for line in text.strip().splitlines()[-5:])


# --- the process


def _spawn(paths: Paths, plan: LaunchPlan, folder: Path, group: cgroup.Group) -> ProcessId:
    uid = guest_uid(paths, plan.vmid)
    jail = Jail(
        uid=uid,
        gid=uid,
        user=f"vm{plan.vmid}",
        network=False,
        devices=("kvm",) if plan.accelerator == "kvm" else (),
        tmp_size=0,
        proc=False,
        cgroups=group.entrances(),
        limits=unlimited_core_less(),
    )
    with contextlib.ExitStack() as stack:
        numbers = {number: _open(each, folder, stack) for number, each in plan.numbers.items()}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        errors = os.open(folder / LOG_FILE, flags, 0o600)
        stack.callback(os.close, errors)
        return process.spawn(plan.argv, name=f"VM {plan.vmid}", jail=jail, stderr=errors, pass_fds=numbers)


def _open(descriptor: Descriptor, folder: Path, stack: contextlib.ExitStack) -> int:
    match descriptor:
        case ListeningSocket(name):
            return stack.enter_context(sockets.listen_unix(folder / name, mode=0o600)).fileno()
        case Given(fd, _):
            return fd
        case MemoryCopy(path):
            opened = os.memfd_create(path.name, os.MFD_CLOEXEC)
            stack.callback(os.close, opened)
            os.write(opened, path.read_bytes())
            return opened
        case OpenFile(path, writable, image):
            opened = open_file(path, writable=writable, image=image)
            stack.callback(os.close, opened)
            return opened


def open_file(path: Path, *, writable: bool, image: str | None = None) -> int:
    """Open a file for QEMU; the caller closes the descriptor. `image` is the format of a disk image.

    Raises Failure, also for an image that refers to other files: those are never found by a name that stands in an
    image, which its guest or whoever uploaded it has written.
    """
    try:
        opened = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"unable to open '{path}': {error.strerror}") from error
    if image == "qcow2":
        try:
            check_qcow2(os.pread(opened, _QCOW2_HEADER.size, 0), path)
        except BaseException:
            os.close(opened)
            raise
    return opened


def check_qcow2(header: bytes, path: Path) -> None:
    """Refuse an image whose guest data lies in another file. (Backing files are named by us, never by the image.)"""
    if len(header) < _QCOW2_HEADER.size:
        raise Failure(f"'{path}' is not a qcow2 image: it is too short")
    magic, version, _, incompatible = _QCOW2_HEADER.unpack(header)
    if magic != _QCOW2_MAGIC:
        raise Failure(f"'{path}' is not a qcow2 image")
    if version >= 3 and incompatible & _QCOW2_DATA_FILE:
        raise Failure(f"'{path}' keeps its data in another file, which is not supported; convert it first")


def _prepare_group(group: cgroup.Group, wanted: Resources) -> Iterator[str]:
    yield from group.create()
    yield from limit(group, wanted, fresh=True)


def limit(group: cgroup.Group, wanted: Resources, *, fresh: bool = False) -> Iterator[str]:
    """Put limits in force; yields warnings. A `fresh` group is not told what it does anyway."""
    if wanted.cpu_limit or not fresh:
        yield from group.limit_cpu(wanted.cpu_limit or None)
    if wanted.cpu_units or not fresh:
        yield from group.weigh_cpu(wanted.cpu_units)
    if wanted.affinity or not fresh:
        yield from group.pin_cpu(wanted.affinity)


# --- its first moments


def _begin(folder: Path, plan: LaunchPlan, machine: ProcessId, patience: float) -> None:
    """Wait for QEMU's greeting (it waits in the socket's queue, so nothing is polled), prepare, and let it run."""
    try:
        with Monitor(folder / "control", plan.vmid, patience) as monitor:
            for command in plan.commands:
                monitor.execute(command.name, command.arguments)
            if plan.run:
                monitor.execute("cont")
    except Failure as error:
        closed = not isinstance(error, MonitorError) or error.kind == "closed"
        if closed and process.wait(machine, _DEATH_SECONDS):
            code = process.reap(machine)
            reason = said(folder) or ("" if code is None else f"exit code {code}")
            raise Failure(f"start failed: QEMU ended at once: {reason}") from error
        raise
