# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a plan to a running container, and its end.

The container hangs on one process, its monitor (`lxc-start -F`), which sees the container's mounts in a view of its
own: when it dies, however it dies, the kernel takes back processes, mounts, loop devices and interfaces.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from orrery.drivers.lxc import config, seccomp
from orrery.drivers.lxc.plan import STAGE, ContainerPlan, Limits
from orrery.drivers.lxc.records import ContainerRecord, Records, groups
from orrery.errors import Failure
from orrery.model.idmap import IdMap
from orrery.system import files, process
from orrery.system.cgroup import Group, Hierarchies
from orrery.system.mounts import DeviceNode, DeviceNodes, Folder, Memory, Mount, Shown, Spot
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

READY_SECONDS: Final = 60.0

_POLL: Final = 0.004
_SETTLE_SECONDS: Final = 0.1  # a first process that lives so long counts as running
_RESTS: Final = 5  # looks in a row
_DEATH_SECONDS: Final = 5.0
_SAID_BYTES: Final = 4096
_LOGGED: Final = re.compile(r" ERROR +\S+ - \S+:\d+ - (.*)")
_NOISE: Final = ("Unsupported config key", "Additional information")

Log = Callable[[str], None]


def launch(paths: Paths, records: Records, plan: ContainerPlan, log: Log, patience: float) -> ProcessId:
    """Start a container and return once its first process runs. Raises Failure; then it has ended again."""
    folder = plan.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for note in plan.notes:
        log(f"warning: {note}")
    if plan.idmap is not None:
        plan = replace(plan, idmap=records.take_ids(plan.vmid, plan.idmap))
    _write_files(plan)
    group, monitor = groups(paths, plan.vmid)
    for warning in _prepare_groups(group, monitor, plan.limits):
        log(f"warning: {warning}")
    started = _spawn(plan, monitor)
    try:
        ids = "" if plan.idmap is None else str(plan.idmap)
        records.write(plan.vmid, ContainerRecord(started, ids, round(time.time(), 3)))
        _await_start(plan, started, patience, log)
    except BaseException:
        end(paths, plan.vmid, started, 0)
        raise
    return started


def _write_files(plan: ContainerPlan) -> None:
    text = seccomp.profile(privileged=plan.privileged, nesting=plan.features.nesting, keyctl=plan.features.keyctl)
    files.write_atomic(plan.folder / config.SECCOMP_FILE, text.encode(), lasting=False)
    files.write_atomic(plan.folder / config.CONFIG_FILE, config.render(plan).encode(), lasting=False)
    for name in (config.LOG_FILE, config.CONSOLE_FILE, config.CHANGED_FILE, config.RESTART_FILE):
        (plan.folder / name).unlink(missing_ok=True)


def _prepare_groups(group: Group, monitor: Group, limits: Limits) -> Iterator[str]:
    yield from group.create()
    _first(monitor).create()
    yield from limit(group, limits)


def _first(monitor: Group) -> Group:
    """Where the monitor begins, to be found by, until LXC moves it beside: in one hierarchy, which is enough."""
    name = next(iter(sorted(monitor.mounted.mounts)), None)
    mounts = {} if name is None else {name: monitor.mounted.mounts[name]}
    return Group(f"{monitor.name}/start", Hierarchies(mounts), ())


def limit(group: Group, limits: Limits) -> Iterator[str]:
    """Put limits in force; yields warnings about what this host cannot do."""
    yield from group.limit_memory_and_swap(limits.memory, limits.swap)
    yield from group.limit_cpu(limits.cpu_limit)
    yield from group.weigh_cpu(limits.cpu_units)
    yield from group.pin_cpu(limits.cpus)
    yield from group.limit_pids(limits.pids)


# --- the process


def _spawn(plan: ContainerPlan, monitor: Group) -> ProcessId:
    argv = ["lxc-start", "-F", "-n", str(plan.vmid), "-P", str(plan.lxcpath)]
    argv += ["-f", str(plan.folder / config.CONFIG_FILE), *(["--", *plan.init] if plan.init else [])]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    errors = os.open(plan.folder / config.ERRORS_FILE, flags, 0o600)
    try:
        return process.spawn(
            argv,
            name=f"CT {plan.vmid}",
            view=list(_view(plan)),
            cgroups=_first(monitor).entrances(),
            env={"PATH": str(plan.programs)},
            stdout=errors,
            stderr=errors,
        )
    finally:
        os.close(errors)


def _view(plan: ContainerPlan) -> Iterator[Shown]:
    yield Memory(STAGE)
    yield Memory(plan.place("mnt"))
    yield Mount(Folder(plan.folder), plan.lxcpath / str(plan.vmid))
    if plan.facts.apparmor is not None:
        yield Mount(Folder(plan.facts.apparmor), plan.programs / plan.facts.apparmor.name)
    if plan.facts.lxcfs is not None:
        yield Mount(Folder(plan.facts.lxcfs), plan.place(config.LXCFS))
    for mount in plan.mounts:
        place = plan.place(mount.key)
        options = mount.options if plan.privileged else tuple({*mount.options, "nodev"})
        if isinstance(mount.source, Folder) and not mount.source.path.exists():
            raise Failure(f"{mount.key}: '{mount.source.path}' does not exist")
        yield replace(mount, options=options).at(place)
    for mount in plan.mounts:
        outer = plan.outer(mount)
        if outer is not None:
            inside = mount.target.removeprefix(outer.target)
            yield Spot(plan.place(outer.key), f"/{inside.lstrip('/')}", folder=mount.key not in plan.files)
    if plan.devices:
        yield DeviceNodes(plan.place(config.DEVICES), tuple(_owned(plan)))


def _owned(plan: ContainerPlan) -> Iterator[DeviceNode]:
    for device in plan.devices:
        yield owned(device.node, plan.idmap if isinstance(plan.idmap, IdMap) else None)


def owned(node: DeviceNode, ids: IdMap | None) -> DeviceNode:
    """A device node with its owner as the host counts. Raises Failure when the container has no such owner."""
    if ids is None:
        return node
    uid, gid = ids.host_id("u", node.uid), ids.host_id("g", node.gid)
    if uid is None or gid is None:
        raise Failure(f"'/{node.name}': user {node.uid} or group {node.gid} is not among the container's ids")
    return replace(node, uid=uid, gid=gid)


# --- its first moments


def _await_start(plan: ContainerPlan, monitor: ProcessId, patience: float, log: Log) -> None:
    end_of_patience = time.monotonic() + patience
    while not _has_begun(monitor):
        if process.wait(monitor, _POLL):
            _explain_end(plan, monitor, log)
            return
        if time.monotonic() > end_of_patience:
            raise Failure(f"start failed: the container was not running after {patience:g} seconds")
    if _ends_at_once(monitor):
        _explain_end(plan, monitor, log)


def _ends_at_once(monitor: ProcessId) -> bool:
    """Watch whether the first process survives its first moments, or has come to rest in them, as an init does."""
    end_of_moments, at_rest = time.monotonic() + _SETTLE_SECONDS, 0
    while at_rest < _RESTS and time.monotonic() < end_of_moments:
        if process.wait(monitor, _POLL):
            return True
        at_rest = at_rest + 1 if _is_at_rest(init_pid(monitor)) else 0
    return process.wait(monitor, 0)


def _is_at_rest(pid: int | None) -> bool:
    """Whether a process waits for something to happen (proc(5): stat, field 3)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"S")
    except OSError:
        return False


def _explain_end(plan: ContainerPlan, monitor: ProcessId, log: Log) -> None:
    """The monitor has ended at once. Raises Failure with LXC's words, else those of the console.

    A program of the user's own may have done its work.
    """
    code = process.reap(monitor)
    if plan.init is not None and code == 0:
        log(f"'{plan.init[0]}' has done its work and ended")
        return
    found = [match[1].strip() for match in map(_LOGGED.search, _tail(plan.folder / config.LOG_FILE)) if match]
    if reasons := [text for text in found if not any(noise in text for noise in _NOISE)][:3]:
        raise Failure(f"start failed: {'; '.join(reasons)}")
    reason = said(plan.folder) or ("it gave no reason" if code is None else f"exit code {code}")
    raise Failure(f"start failed: the container's first process ended at once: {reason}")


def _has_begun(monitor: ProcessId) -> bool:
    """Whether the container's first process has become the program that it is to be."""
    first = init_pid(monitor)
    try:
        ours, theirs = Path(f"/proc/{monitor.pid}/exe").stat(), Path(f"/proc/{first}/exe").stat()
    except OSError:
        return False
    return not os.path.samestat(ours, theirs)


def init_pid(monitor: ProcessId) -> int | None:
    """The container's first process, as the host numbers it: the monitor's child in other namespaces."""
    try:
        ours = Path(f"/proc/{monitor.pid}/ns/pid").stat()
        children = Path(f"/proc/{monitor.pid}/task/{monitor.pid}/children").read_text().split()
    except OSError:
        return None
    for child in children:
        try:
            if not os.path.samestat(ours, Path(f"/proc/{child}/ns/pid").stat()):
                return int(child)
        except OSError:
            continue
    return None


def said(folder: Path) -> str:
    """The last lines of a container's console, or of its monitor."""
    lines = _tail(folder / config.CONSOLE_FILE) or _tail(folder / config.ERRORS_FILE)
    return " / ".join(line.strip() for line in lines[-3:] if line.strip())


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _SAID_BYTES))
            return handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


# --- its end


def end(paths: Paths, vmid: int, monitor: ProcessId | None, grace: float) -> None:
    """End a container without asking: all its processes, then the monitor, which gets `grace` seconds to tidy up.

    Raises Failure when something cannot be killed.
    """
    group, watcher = groups(paths, vmid)
    group.thaw()  # in version 1 the frozen cannot die
    first = init_pid(monitor) if monitor is not None else None
    found = process.identity(first) if first is not None else None
    if found is not None and monitor is not None:
        process.signal(found, signal.SIGKILL)
        process.wait(monitor, max(grace, 0.0))
    for each in filter(None, [monitor, *map(process.identity, watcher.pids())]):
        process.signal(each, signal.SIGKILL)
        if not process.wait(each, _DEATH_SECONDS):
            raise Failure(f"process {each.pid} cannot be killed; it waits for a device or file that does not answer")
        process.reap(each)
    group.kill()
