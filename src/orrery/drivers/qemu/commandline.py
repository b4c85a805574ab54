# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a machine's configuration to a launch plan. Pure: the same input always gives the same command line."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orrery.drivers.qemu.devices import (
    agent,
    controllers,
    cpu,
    disk,
    firmware,
    memory,
    nic,
    rng,
    serial,
    smbios,
    tablet,
    vga,
    watchdog,
)
from orrery.drivers.qemu.devices.parts import Context, Parts, Properties, Sources
from orrery.drivers.qemu.facts import HostFacts
from orrery.drivers.qemu.layout import Layout
from orrery.drivers.qemu.plan import (
    FIRST_DESCRIPTOR,
    MONITORS,
    Descriptor,
    Given,
    LaunchPlan,
    ListeningSocket,
    MemoryCopy,
    OpenFile,
    Resources,
    TapFds,
    VolumeFile,
)
from orrery.errors import Failure
from orrery.model.devices import MachineType, MachineView, machine_devices
from orrery.model.guest import GuestConfig

_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_CREATED_BY: Final = re.compile(r"(?:^|,)creation-qemu=(\d+\.\d+)")
_IDE: Final = "ide"


@dataclass
class PlannedSources:
    """Gives out descriptor numbers for what will be opened when the plan is carried out."""

    descriptors: list[Descriptor] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    def number(self, descriptor: Descriptor) -> int:
        """The number that this descriptor will have."""
        self.descriptors.append(descriptor)
        return FIRST_DESCRIPTOR + len(self.descriptors) - 1

    def file(self, path: Path, *, writable: bool, label: str, image: str | None = None) -> str:
        return self._fdset(OpenFile(path, writable, image), label)

    def memory_copy(self, path: Path, label: str) -> str:
        return self._fdset(MemoryCopy(path), label)

    def socket(self, name: str) -> int:
        return self.number(ListeningSocket(name))

    def tap(self, name: str, tap: TapFds) -> Properties:
        numbers = [str(self.number(Given(fd, name))) for fd in tap.fds]
        vhost = [str(self.number(Given(fd, f"{name}-vhost"))) for fd in tap.vhost]
        return tap_properties(numbers, vhost)

    def _fdset(self, descriptor: Descriptor, label: str) -> str:
        number = self.number(descriptor)
        self.options += ["-add-fd", f"fd={number},set={number},opaque={label}"]
        return f"/dev/fdset/{number}"


def tap_properties(queues: list[str], vhost: list[str]) -> Properties:
    """Names or numbers of a tap's descriptors as properties of its back end."""
    several = len(queues) > 1
    found: Properties = {"fds" if several else "fd": ":".join(queues)}
    if vhost:
        found["vhostfds" if several else "vhostfd"] = ":".join(vhost)
    return found


def machine_type(view: MachineView, meta: str | None, facts: HostFacts) -> MachineType:
    """The chipset at the version that this machine keeps.

    What `machine` pins counts, then the QEMU that the machine was created with (`creation-qemu` in `meta`), then this
    host's newest. Raises Failure when this host's QEMU is too old for what `machine` pins.
    """
    newest = facts.machine_version
    pinned = view.machine.version
    if pinned is not None:
        if _numbers(pinned)[:2] > _numbers(newest):
            raise Failure(
                f"machine '{view.machine.name}' needs QEMU {pinned} or newer, this node has {facts.version}; "
                f"choose a machine up to version {newest}"
            )
        return view.machine
    match = _CREATED_BY.search(meta or "")
    created = match[1] if match else newest
    return view.machine.pinned(min(created, newest, key=_numbers))


def build(
    vmid: int,
    config: GuestConfig,
    facts: HostFacts,
    volumes: Mapping[str, VolumeFile] | None = None,
    taps: Mapping[int, TapFds] | None = None,
) -> LaunchPlan:
    """The plan for a machine. `volumes` by option (`scsi0`, `efidisk0`), `taps` by the card's number.

    Raises ParameterError for options that cannot be read, Failure for what cannot be built.
    """
    view = machine_devices(config)
    kind = machine_type(view, config.get("meta"), facts)
    sources = PlannedSources()
    context = live_context(view, facts, sources, volumes or {}, taps or {})
    monitors = _monitors(sources)
    parts = Parts.joined(_all(context))
    options = [
        facts.binary,
        *("-name", f"{view.name or f'VM {vmid}'},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-S", "-sandbox", _SANDBOX),
        *_board(context, kind),
        *parts.options,
        *sources.options,
        *monitors,
        *(word for text in parts.chardevs for word in ("-chardev", text)),
        *_json("-object", parts.objects),
        *_json("-blockdev", parts.blockdevs),
        *_json("-netdev", parts.netdevs),
        *_json("-device", [*_buses(context), *_once(parts.devices)]),
        *_raw(view.args or ""),
    ]
    return LaunchPlan(
        vmid=vmid,
        argv=tuple(options),
        descriptors=tuple(sources.descriptors),
        commands=tuple(parts.commands),
        accelerator=context.accelerator,
        machine=kind.qemu_name,
        version=facts.version,
        notes=(*_accelerator_notes(view, facts), *parts.notes),
        resources=resources(view),
        run=not view.freeze,
    )


def _raw(args: str) -> list[str]:
    try:
        return shlex.split(args)
    except ValueError as error:
        raise Failure(f"'args' cannot be taken apart: {error}") from error


def resources(view: MachineView) -> Resources:
    """The limits of processor time that a configuration asks for."""
    return Resources(view.topology.limit, view.topology.units, view.affinity)


def live_context(
    view: MachineView,
    facts: HostFacts,
    sources: Sources,
    volumes: Mapping[str, VolumeFile] | None = None,
    taps: Mapping[int, TapFds] | None = None,
) -> Context:
    """The machine around its devices, for building it or for plugging a device later."""
    return Context(
        view=view,
        layout=Layout("q35" if view.machine.is_q35 else "i440fx"),
        accelerator="kvm" if view.kvm and facts.no_kvm is None else "tcg",
        sources=sources,
        aio=facts.aio,
        nested=facts.nested,
        volumes=volumes or {},
        taps=taps or {},
        boot={key: place for place, key in enumerate(view.boot, 1)},
    )


def _all(context: Context) -> Iterator[Parts]:
    view = context.view
    yield cpu.args(context)
    yield memory.args(context)
    yield smbios.args(context)
    yield firmware.args(context)
    yield vga.args(context)
    yield tablet.args(context)
    yield from (serial.args(each, context) for each in view.serials)
    yield agent.args(view.agent, context)
    if view.rng:
        yield rng.args(view.rng, context)
    if view.watchdog:
        yield watchdog.args(view.watchdog, context)
    yield controllers.standing(context)
    for each in view.disks:
        parts = disk.args(each, context)
        if each.bus not in ("virtio", _IDE):
            parts.devices = [*controllers.args(each, context).devices, *parts.devices]
        yield parts
    yield from (nic.args(each, context) for each in view.nics)


def _buses(context: Context) -> list[Properties]:
    view = context.view
    legacy = any(nic.is_legacy(each) for each in view.nics)
    single = view.scsihw == "virtio-scsi-single"
    names = [f"virtio{each.index}" for each in view.disks if each.bus == "virtio"]
    names += [f"scsisingle{each.index}" for each in view.disks if each.bus == "scsi" and single]
    names += [nic.name_of(each) for each in view.nics if not nic.is_legacy(each)]
    pluggable = ["net", "virtio", *(["scsisingle"] if single else [])]
    return context.layout.buses(names, legacy=legacy, kinds=pluggable)


def _board(context: Context, kind: MachineType) -> Iterator[str]:
    view = context.view
    kvm = context.accelerator == "kvm"
    board = [kind.qemu_name, f"accel={context.accelerator}"]
    if not view.acpi:
        board.append("acpi=off")
    if kvm and (view.is_windows or view.ostype == "l26"):
        board.append("hpet=off")
    yield from ("-machine", ",".join([*board, *firmware.machine_options(context)]))
    start = {"now": "localtime" if view.localtime else "utc"}.get(view.startdate, view.startdate)
    yield from ("-rtc", f"base={start}{',driftfix=slew' if view.tdf else ''}")
    yield from ("-boot", "strict=on")
    if not view.reboot:
        yield from ("-action", "reboot=shutdown")


def _monitors(sources: PlannedSources) -> list[str]:
    options: list[str] = []
    for name in MONITORS:
        number = sources.socket(name)
        options += ["-chardev", f"socket,id=monitor-{name},fd={number},server=on,wait=off"]
        options += ["-mon", f"chardev=monitor-{name},mode=control"]
    return options


def _json(option: str, values: list[Properties]) -> Iterator[str]:
    for value in values:
        yield option
        yield json.dumps(value, separators=(",", ":"))


def _once(devices: list[Properties]) -> Iterator[Properties]:
    """Devices without repetition: disks that share a controller all name it. A thread of its own counts once named."""
    seen: set[str] = set()
    for device in devices:
        name = device.get("id", "")
        if name not in seen:
            seen.add(name)
            yield device


def _accelerator_notes(view: MachineView, facts: HostFacts) -> Iterator[str]:
    if not view.kvm:
        yield "KVM is switched off for this machine: it runs emulated (TCG), which is slow"
    elif facts.no_kvm:
        yield f"KVM is not available ({facts.no_kvm}): the machine runs emulated (TCG), which is slow"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
