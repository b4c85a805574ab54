# SPDX-License-Identifier: AGPL-3.0-or-later
"""The LXC driver: from a container's configuration to running processes, and everything one does to them.

Mounts and interfaces come in as plain arguments; the driver knows neither storages nor networks. Containers outlive
whoever started them: every method finds them anew by their record.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from orrery.drivers.lxc import facts, inside, launching
from orrery.drivers.lxc.config import CHANGED_FILE, RESTART_FILE
from orrery.drivers.lxc.facts import HostFacts
from orrery.drivers.lxc.launching import READY_SECONDS
from orrery.drivers.lxc.live import LiveContainer
from orrery.drivers.lxc.plan import FUSE, ROOT, STAGE, ContainerPlan, Device, Pair, build, limits
from orrery.drivers.lxc.records import ContainerRecord, Records, groups
from orrery.errors import Failure
from orrery.model.container_devices import PassedDevice, container_view
from orrery.model.guest import GuestConfig
from orrery.system import process
from orrery.system.mounts import ContainerMount, DeviceNode, LoopImage
from orrery.system.netlink import Link
from orrery.system.paths import Paths
from orrery.system.process import Completed, ProcessId

State = Literal["stopped", "running", "frozen"]

_FREEZE_SECONDS: Final = 10.0
_TIDY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """What a running container uses: nanoseconds of processor time, bytes of memory without page cache and of swap,
    bytes of its root file system and how many there are, bytes read from and written to disks."""

    cpu: int
    memory: int
    swap: int
    disk: int
    disk_size: int
    disk_read: int
    disk_written: int


class LxcDriver:
    """All containers of one root. Cheap to make; nothing is opened before it is asked for."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._records = Records(paths)

    # --- before it runs

    def facts(self) -> HostFacts:
        """What this host offers at this moment (lxcfs comes and goes)."""
        return facts.detect(self.paths)

    def plan(
        self,
        vmid: int,
        config: GuestConfig,
        mounts: Mapping[str, ContainerMount],
        pairs: Mapping[int, Pair] | None = None,
        *,
        debug: bool = False,
    ) -> ContainerPlan:
        """What starting this configuration would do; nothing is touched.

        `mounts` by option, `rootfs` first, in the order of mounting; `pairs` by the card's number: one without is left
        out. `debug` writes a detailed log. Raises ParameterError, NotSupported or Failure with the reason why not.
        """
        view = container_view(config)
        group, monitor = groups(self.paths, vmid)
        images = frozenset(key for key, mount in mounts.items() if isinstance(mount.source, LoopImage))
        passed = [*view.devices, *([FUSE] if view.features.fuse else [])]
        nodes = {each.path: _node(each) for each in passed}
        return build(
            vmid,
            view,
            self.facts(),
            mounts,
            pairs or {},
            nodes,
            folder=self.folder(vmid),
            group=group.name,
            monitor=monitor.name,
            files=frozenset(key for key, mount in mounts.items() if mount.source.path.is_file()) - images,
            debug=debug or config.options.get("debug") == "1",
        )

    def launch(self, plan: ContainerPlan, log: Callable[[str], None], patience: float = READY_SECONDS) -> ProcessId:
        """Start a container; returns its monitor when its first process runs. `log` takes notes and warnings.

        Raises Failure with the words of LXC or of the container's console; then nothing is left of it.
        """
        if self.find(plan.vmid) is not None:
            raise Failure(f"CT {plan.vmid} already running")
        try:
            return launching.launch(self.paths, self._records, plan, log, patience)
        except BaseException:
            self.discard(plan.vmid)
            raise

    # --- finding

    def find(self, vmid: int) -> ProcessId | None:
        """The container's monitor, verified by its start time; None when the container does not run."""
        record = self._records.read(vmid)
        return record.process if record else None

    def record(self, vmid: int) -> ContainerRecord | None:
        """What was noted about the running container: monitor, map of ids, when it was started."""
        return self._records.read(vmid)

    def running(self) -> dict[int, ProcessId]:
        """All containers that run."""
        return {vmid: record.process for vmid, record in self._records.running().items()}

    def leftovers(self) -> list[int]:
        """Containers that have ended and still have a run folder."""
        return self._records.ended()

    def folder(self, vmid: int) -> Path:
        """The container's run folder."""
        return self.paths.guest_run(vmid)

    def forget(self, vmid: int) -> None:
        """Remove what a container that has ended left behind. Raises Failure while it runs."""
        self._records.forget(vmid)

    def last_words(self, vmid: int) -> str:
        """The last lines of the container's console."""
        return launching.said(self.folder(vmid))

    def init_pid(self, vmid: int) -> int | None:
        """The container's first process, as the host numbers it; None when the container does not run."""
        monitor = self.find(vmid)
        return None if monitor is None else launching.init_pid(monitor)

    def state(self, vmid: int) -> State:
        """How the container does."""
        if self.find(vmid) is None:
            return "stopped"
        return "frozen" if groups(self.paths, vmid)[0].frozen() else "running"

    # --- power

    def ask_to_stop(self, vmid: int) -> None:
        """Ask the system inside to shut down; what it makes of it is its affair. Raises Failure."""
        inside.ask(self._first(vmid), "stop", lambda argv: self.execute(vmid, argv, timeout=inside.ask_seconds()))

    def ask_to_reboot(self, vmid: int) -> None:
        """Ask the system inside to start again. It comes up as it was started, not as its configuration is now."""
        inside.ask(self._first(vmid), "reboot", lambda argv: self.execute(vmid, argv, timeout=inside.ask_seconds()))

    def wait_end(self, vmid: int, timeout: float) -> bool:
        """Wait until the container has ended; False after `timeout` seconds."""
        monitor = self.find(vmid)
        return monitor is None or process.wait(monitor, timeout)

    def stop(self, vmid: int, grace: float = _TIDY_SECONDS) -> bool:
        """End the container without asking its system; whether it ran. The run folder stays for `forget`.

        `grace`: seconds that LXC has for tidying up behind the last process.
        """
        monitor = self.find(vmid)
        if monitor is not None:
            launching.end(self.paths, vmid, monitor, grace)
        return monitor is not None

    def discard(self, vmid: int) -> None:
        """Undo a start, however far it came: no process, no run folder, no control group. Idempotent."""
        launching.end(self.paths, vmid, self.find(vmid), 0)
        self.forget(vmid)

    def freeze(self, vmid: int) -> None:
        """Stop all its processes where they are. Raises Failure."""
        self._first(vmid)
        groups(self.paths, vmid)[0].freeze(_FREEZE_SECONDS)

    def thaw(self, vmid: int) -> None:
        """Let its processes go on."""
        self._first(vmid)
        groups(self.paths, vmid)[0].thaw()

    # --- while it runs

    def execute(
        self,
        vmid: int,
        argv: Sequence[str],
        *,
        timeout: float,
        input: bytes | None = None,  # noqa: A002  (as in `process.run`)
        env: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
        check: bool = False,
        on_output: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run a program inside, as root or `user` (uid, gid inside), in a small environment and `env`.

        The exit code is the program's; 127 when there is none of that name. Raises Failure when the container does not
        run or is suspended (a program would hang), or after `timeout` seconds.
        """
        return inside.execute(
            vmid,
            self.paths,
            self._responsive(vmid),
            argv,
            timeout=timeout,
            input=input,
            env=env,
            user=user,
            check=check,
            on_output=on_output,
        )

    def entering(self, vmid: int, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs a program inside as root, for callers who give it a terminal. Raises Failure."""
        return inside.entering(vmid, self.paths, self._responsive(vmid), argv, env=env)

    def interfaces(self, vmid: int) -> list[Link]:
        """The network cards inside, loopback too, with their addresses."""
        return inside.interfaces(self._first(vmid))

    def usage(self, vmid: int) -> ContainerUsage:
        """What the container uses now. Raises Failure when it does not run."""
        monitor = self._running(vmid)
        group, _ = groups(self.paths, vmid)
        memory, swap = group.memory()
        read, written = group.io()
        try:
            # As the monitor sees it: what the first process calls its root is up to it, and may never answer.
            space = os.statvfs(f"/proc/{monitor.pid}/root{STAGE / ROOT}")
        except OSError as error:
            raise Failure(f"CT {vmid} not running") from error
        size = space.f_blocks * space.f_frsize
        return ContainerUsage(
            cpu=group.usage().cpu or 0,
            memory=memory,
            swap=swap,
            disk=size - space.f_bfree * space.f_frsize,
            disk_size=size,
            disk_read=read,
            disk_written=written,
        )

    def apply_limits(self, vmid: int, config: GuestConfig) -> list[str]:
        """Put the limits of a configuration in force; gives warnings about what this host cannot do."""
        wanted = limits(vmid, container_view(config), self.facts())
        return list(launching.limit(groups(self.paths, vmid)[0], wanted))

    def attach_mount(self, vmid: int, mount: ContainerMount) -> None:
        """Show a mount inside. Raises Failure; then nothing has changed."""
        self._live(vmid).attach_mount(mount)

    def detach_mount(self, vmid: int, mount: ContainerMount) -> None:
        """Take a mount away (idempotent). Raises Failure when something inside uses it."""
        self._live(vmid).detach_mount(mount)

    def grow_mount(self, vmid: int, mount: ContainerMount) -> None:
        """Let the file system of a mount fill its image, which has grown (idempotent). Raises Failure."""
        self._live(vmid).grow(mount)

    def attach_nic(self, vmid: int, pair: Pair, name: str) -> None:
        """Give the container a network card: the end of a pair, under this name. Raises Failure."""
        self._live(vmid).attach_nic(pair.peer, name)

    def address_nic(self, vmid: int, name: str, addresses: Sequence[str], gateways: Sequence[str] = ()) -> None:
        """Bring a card up with addresses (ADDRESS/PREFIX) and gateways beside those it has. Raises Failure."""
        self._live(vmid).address_nic(name, tuple(addresses), tuple(gateways))

    def detach_nic(self, vmid: int, name: str) -> bool:
        """Remove a network card, both ends of its pair; whether it was there."""
        return self._live(vmid).detach_nic(name)

    def attach_device(self, vmid: int, device: PassedDevice) -> None:
        """Show a device of the host inside. Raises Failure."""
        self._live(vmid).attach_device(Device(device.path, _node(device), not device.deny_write))

    def detach_device(self, vmid: int, device: PassedDevice) -> None:
        """Take a device away; programs that have it open keep it. Raises Failure."""
        self._live(vmid).detach_device(Device(device.path, _node(device), not device.deny_write))

    def restart_afresh(self, vmid: int) -> None:
        """Should the container restart from inside, it is to end and be started anew by its configuration of then.

        Every change of mounts, cards and devices says so by itself.
        """
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            (self.folder(vmid) / CHANGED_FILE).touch(mode=0o600)

    def wants_restart(self, vmid: int) -> bool:
        """Whether a container that has ended did so to be started anew (`restart_afresh`)."""
        return (self.folder(vmid) / RESTART_FILE).exists()

    def forget_restart(self, vmid: int) -> None:
        """Somebody starts it anew now (idempotent)."""
        (self.folder(vmid) / RESTART_FILE).unlink(missing_ok=True)

    def _live(self, vmid: int) -> LiveContainer:
        first = self._first(vmid)
        record = self._records.read(vmid)
        if record is None:
            raise Failure(f"CT {vmid} not running")
        self.restart_afresh(vmid)
        return LiveContainer(vmid, self.paths, record, groups(self.paths, vmid)[0], first)

    def _responsive(self, vmid: int) -> ProcessId:
        monitor = self._running(vmid)
        if self.state(vmid) == "frozen":
            raise Failure(f"CT {vmid} is suspended; resume it first")
        return monitor

    def _running(self, vmid: int) -> ProcessId:
        monitor = self.find(vmid)
        if monitor is None:
            raise Failure(f"CT {vmid} not running")
        return monitor

    def _first(self, vmid: int) -> int:
        first = launching.init_pid(self._running(vmid))
        if first is None:  # it is ending, or starting again
            raise Failure(f"CT {vmid} not running")
        return first


def _node(device: PassedDevice) -> DeviceNode:
    path = Path(device.path)
    name = device.path.removeprefix("/dev/").lstrip("/")
    return DeviceNode.like(path, name, mode=device.mode, uid=device.uid, gid=device.gid)


__all__ = ["ContainerUsage", "LxcDriver", "State"]
