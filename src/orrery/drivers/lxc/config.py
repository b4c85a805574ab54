# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a plan to LXC's configuration (lxc.container.conf(5)): pure, so that equal plans give equal texts.

The configuration is whole: it includes no file of the distribution. Limits are not in it but for the list of devices;
they are written by us to the control group above the container's own.
"""

import shlex
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

from orrery.drivers.lxc.plan import ROOT, Card, ContainerPlan
from orrery.errors import Failure
from orrery.model.idmap import IdMap
from orrery.system.mounts import ContainerMount, Folder

CONFIG_FILE: Final = "lxc.conf"
SECCOMP_FILE: Final = "seccomp"
LOG_FILE: Final = "lxc.log"
CONSOLE_FILE: Final = "console.log"
ERRORS_FILE: Final = "lxc.err"
DEVICES: Final = "devices"
LXCFS: Final = "lxcfs"
MONITOR_CHILD: Final = "lxc"
CONTAINER_CHILD: Final = "lxc"
CHANGED_FILE: Final = "changed"
RESTART_FILE: Final = "restart"

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DROPPED: Final = ("mac_admin", "mac_override", "sys_module", "sys_rawio", "sys_time")
_DROPPED_PRIVILEGED: Final = ("audit_control", "block_suspend", "syslog", "wake_alarm")
_FLAGS: Final = ("nodev", "noexec", "nosuid")
_CONSOLE_BYTES: Final = "256KB"

# Kind, number, rights; Documentation/admin-guide/devices.txt
_DEVICES: Final = (
    "c *:* m",  # nodes may be made, but only those below be opened
    "b *:* m",
    "c 1:3 rwm",  # null
    "c 1:5 rwm",  # zero
    "c 1:7 rwm",  # full
    "c 1:8 rwm",  # random
    "c 1:9 rwm",  # urandom
    "c 5:0 rwm",  # tty
    "c 5:1 rwm",  # console
    "c 5:2 rwm",  # ptmx
    "c 136:* rwm",  # pts
)
_MASKED: Final = ("kcore", "keys", "latency_stats", "sched_debug", "timer_list", "timer_stats")
_LXCFS: Final = ("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime")
_LXCFS_CPUS: Final = "sys/devices/system/cpu"


def render(plan: ContainerPlan) -> str:
    """LXC's configuration. `plan.idmap` must be a map by now, or None. Raises Failure."""
    if plan.idmap == "own":
        raise Failure("the range of ids of this container has not been taken yet")
    sections = (
        _identity(plan),
        _root(plan),
        _rights(plan),
        _devices(plan),
        _kernel_mounts(plan),
        _mounts(plan),
        _terminals(plan),
        _network(plan),
    )
    return "\n".join("".join(map(_line, section)) for section in map(list, sections) if section)


def _line(text: str) -> str:
    if any(each in text for each in "\n\r\0"):
        raise Failure(f"'{text!r}' cannot stand in a container's configuration: it has more than one line")
    return text + "\n"


def _identity(plan: ContainerPlan) -> Iterator[str]:
    yield f"lxc.uts.name = {plan.hostname}"
    yield f"lxc.arch = {plan.arch}"
    yield f"lxc.log.file = {plan.folder / LOG_FILE}"
    yield f"lxc.log.level = {'DEBUG' if plan.debug else 'ERROR'}"
    yield "lxc.monitor.unshare = 0"
    yield f"lxc.cgroup.dir.monitor = {plan.monitor}/{MONITOR_CHILD}"
    yield f"lxc.cgroup.dir.monitor.pivot = {plan.monitor}"
    yield f"lxc.cgroup.dir.container = {plan.group}/{CONTAINER_CHILD}"
    yield "lxc.cgroup.dir.container.inner = ns"
    yield "lxc.hook.version = 1"
    yield f"lxc.hook.post-stop = {_restart_hook(plan)}"
    for name, value in {"PATH": _PATH, "TERM": "linux", **plan.environment}.items():
        yield f"lxc.environment = {name}={value}"


def _restart_hook(plan: ContainerPlan) -> str:
    """A restart from inside is LXC's own, by the configuration that it has. When what the container has was changed
    since, the container ends instead, with a note that it wants to be started anew. The log begins anew with each
    restart, of which there may be any number.
    """
    files = (CHANGED_FILE, RESTART_FILE, LOG_FILE)
    changed, restart, log = (shlex.quote(str(plan.folder / name)) for name in files)
    script = f'test "$LXC_TARGET" = reboot || exit 0; test ! -e {changed} || {{ : >{restart}; exit 1; }}; : >{log}'
    return f"/bin/sh -c {shlex.quote(script)}"


def _root(plan: ContainerPlan) -> Iterator[str]:
    root = next(mount for mount in plan.mounts if mount.key == ROOT)
    mapped = plan.idmap is not None
    options = [*(["ro"] if root.read_only else []), *_kept(root, mapped=mapped)]
    if mapped:
        options.append("idmap=container")
    yield f"lxc.rootfs.path = dir:{plan.place(ROOT)}"
    yield f"lxc.rootfs.mount = {plan.place('mnt')}"
    if options:
        yield f"lxc.rootfs.options = {','.join(options)}"
    if isinstance(plan.idmap, IdMap):
        for entry in plan.idmap.entries:
            yield f"lxc.idmap = {entry.kind} {entry.inside} {entry.host} {entry.count}"


def _rights(plan: ContainerPlan) -> Iterator[str]:
    dropped = (*_DROPPED, *(_DROPPED_PRIVILEGED if plan.privileged else ()))
    yield f"lxc.cap.drop = {' '.join(dropped)}"
    yield f"lxc.seccomp.profile = {plan.folder / SECCOMP_FILE}"
    if not plan.facts.apparmor:
        yield "lxc.apparmor.profile = unconfined"
        return
    yield "lxc.apparmor.profile = generated"
    yield "lxc.apparmor.allow_incomplete = 1"
    if plan.features.nesting:
        yield "lxc.apparmor.allow_nesting = 1"
    kinds = [*plan.features.mount, *(["fuse", "fuse.*"] if plan.features.fuse else [])]
    for kind in kinds:
        yield f"lxc.apparmor.raw = mount fstype={kind},"


def _devices(plan: ContainerPlan) -> Iterator[str]:
    key = plan.facts.device_key
    yield f"{key}.deny = a"
    for rule in _DEVICES:
        yield f"{key}.allow = {rule}"
    for device in plan.devices:
        yield f"{key}.allow = {device.node.rule} {'rw' if device.writable else 'r'}"


def _kernel_mounts(plan: ContainerPlan) -> Iterator[str]:
    free = plan.features.nesting and not plan.privileged  # what is not the container's own cannot be written anyway
    rights = "rw" if free else "mixed"
    yield f"lxc.mount.auto = proc:{rights} sys:{'rw' if plan.features.force_rw_sys else rights} cgroup:mixed"
    if plan.features.nesting:
        # The kernel lets a container inside mount these only where they are seen whole somewhere.
        yield _entry("proc", "dev/.lxc/proc", "create=dir,optional", "proc")
        yield _entry("sys", "dev/.lxc/sys", "create=dir,optional", "sysfs")
    else:
        for name in _MASKED:
            yield _entry("/dev/null", f"proc/{name}", "bind,optional")
    if plan.facts.lxcfs is not None:
        lxcfs = plan.place(LXCFS)  # not where it is on the host: below folders that the container's root may not enter
        for name in _LXCFS:
            yield _entry(lxcfs / "proc" / name, f"proc/{name}", "bind,create=file,optional")
        yield _entry(lxcfs / _LXCFS_CPUS, _LXCFS_CPUS, "bind,create=dir,optional")


def _mounts(plan: ContainerPlan) -> Iterator[str]:
    for device in plan.devices:
        source = plan.place(DEVICES) / device.node.name
        yield _entry(source, device.inside.lstrip("/"), "bind,create=file")
    for mount in plan.mounts:
        if mount.key != ROOT:
            yield _entry(plan.place(mount.key), mount.target.lstrip("/"), ",".join(_options(mount, plan)))


def _options(mount: ContainerMount, plan: ContainerPlan) -> Iterator[str]:
    yield "rbind" if isinstance(mount.source, Folder) and mount.source.recursive else "bind"
    if plan.outer(mount) is None:
        yield "create=file" if mount.key in plan.files else "create=dir"
    if mount.read_only:
        yield "ro"
    mapped = mount.mapped and plan.idmap is not None
    yield from _kept(mount, mapped=mapped)
    if mapped:
        yield "idmap=container"


def _kept(mount: ContainerMount, *, mapped: bool) -> Iterator[str]:
    """Options of a mount of ours, which LXC mounts once more; where it maps ids it cannot set how times are kept."""
    return (each for each in mount.options if each in _FLAGS or (each == "noatime" and not mapped))


def _entry(source: str | Path, target: str, options: str, kind: str = "none") -> str:
    return f"lxc.mount.entry = {_escape(str(source))} {_escape(target)} {kind} {options} 0 0"


def _escape(text: str) -> str:
    """As fstab(5) has it."""
    return text.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _terminals(plan: ContainerPlan) -> Iterator[str]:
    yield f"lxc.tty.max = {plan.tty}"
    yield "lxc.pty.max = 1024"
    if not plan.console:
        yield "lxc.console.path = none"
        return
    yield f"lxc.console.logfile = {plan.folder / CONSOLE_FILE}"
    yield f"lxc.console.size = {_CONSOLE_BYTES}"


def _network(plan: ContainerPlan) -> Iterator[str]:
    if not plan.cards:
        yield "lxc.net.0.type = empty"
    for number, card in enumerate(plan.cards):
        yield from _card(f"lxc.net.{number}", card)


def _card(key: str, card: Card) -> Iterator[str]:
    yield f"{key}.type = phys"
    yield f"{key}.link = {card.peer}"
    yield f"{key}.name = {card.name}"
    if card.up:
        yield f"{key}.flags = up"
    for address in card.addresses:
        yield f"{key}.ipv{ip_interface(address).version}.address = {address}"
    for gateway in card.gateways:
        yield f"{key}.ipv{ip_interface(gateway).version}.gateway = {gateway}"
