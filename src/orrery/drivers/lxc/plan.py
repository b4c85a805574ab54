# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is needed to start a container, as data: everything is decided here, nothing is touched."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from orrery.drivers.lxc.facts import HostFacts
from orrery.errors import NotSupported, ParameterError
from orrery.model.container_devices import ContainerNic, ContainerView, Features, PassedDevice
from orrery.model.idmap import IdMap, shared
from orrery.system.mounts import ContainerMount, DeviceNode

MIB: Final = 1 << 20
ROOT: Final = "rootfs"
STAGE: Final = Path("/run/lxc")
"""Where each monitor, in its own view, puts the container's mounts together: the container's root must be able to walk
there, which it could not below our folders. LXC's locks lie there too, of no use to us and so gone with the monitor."""

FUSE: Final = PassedDevice(path="/dev/fuse", mode=0o666)

_PRIVILEGED_NOTE: Final = "this container is privileged: root inside is root of this host; prefer unprivileged ones"
_UNCONFINED_NOTE: Final = (
    "this host has AppArmor, but not the program 'apparmor_parser': no profile confines the container; install the "
    "package 'apparmor'"
)


class Pair(Protocol):
    """A pair of interfaces, as the network made it: `peer` is the end that goes into the container."""

    @property
    def peer(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Card:
    """A network card: the interface `peer` of the host gets the name `name` inside.

    `addresses` and `gateways` are set from outside, for containers in which nothing would set them.
    """

    peer: str
    name: str
    up: bool = False
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use: bytes of memory and swap, processors' worth of time (None: no limit), a weight,
    processors (`0,3-5`, None: all), processes and threads."""

    memory: int
    swap: int
    cpu_limit: float | None = None
    cpu_units: int | None = None
    cpus: str | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host that is shown inside at `inside`; `node` has the owner as the container sees it."""

    inside: str
    node: DeviceNode
    writable: bool = True


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """A container to start. `folder`: its run folder. `group`, `monitor`: its control groups.

    `idmap`: None for a privileged container, `own` for a range that is taken when it is launched. `init`: the program
    that runs instead of the system's init. `files`: keys of the mounts that show a single file of the host.
    """

    vmid: int
    hostname: str
    folder: Path
    group: str
    monitor: str
    mounts: tuple[ContainerMount, ...]
    idmap: IdMap | Literal["own"] | None
    facts: HostFacts
    limits: Limits
    cards: tuple[Card, ...] = ()
    devices: tuple[Device, ...] = ()
    features: Features = field(default_factory=Features)
    arch: str = "amd64"
    tty: int = 2
    console: bool = True
    init: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    debug: bool = False
    files: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def place(self, key: str) -> Path:
        """Where a mount is put together, seen by the container's monitor alone."""
        return STAGE / key

    def outer(self, mount: ContainerMount) -> ContainerMount | None:
        """The mount in whose tree the mount point lies that we make for this one.

        None for the root, and for what lies in the container's own /dev: that is new at each start and holds no links,
        so LXC may make mount points there. Anywhere else it would follow the links of whoever is root inside, out into
        the host's folders.
        """
        if mount.key == ROOT:
            return None
        around = [each for each in self.mounts if mount.target.startswith(f"{each.target.rstrip('/')}/")]
        found = max(around, key=lambda each: len(each.target))
        return None if found.key == ROOT and mount.target.startswith("/dev/") else found

    @property
    def programs(self) -> Path:
        """The only folder in which LXC looks for programs.

        There is none but AppArmor's where it is needed: `newuidmap`, if it were found, would write the ids by files of
        the host that we leave alone.
        """
        return STAGE / "bin"

    @property
    def lxcpath(self) -> Path:
        """The folder of containers that LXC is told of; it is in the name of the monitor's abstract socket too."""
        return STAGE / self.monitor.partition("/")[0]

    @property
    def privileged(self) -> bool:
        return self.idmap is None


def build(
    vmid: int,
    view: ContainerView,
    facts: HostFacts,
    mounts: Mapping[str, ContainerMount],
    pairs: Mapping[int, Pair],
    nodes: Mapping[str, DeviceNode],
    *,
    folder: Path,
    group: str,
    monitor: str,
    files: frozenset[str] = frozenset(),
    debug: bool = False,
) -> ContainerPlan:
    """A container's plan; `nodes`: passed devices by path. Raises ParameterError, NotSupported naming the option."""
    if ROOT not in mounts:
        raise ParameterError({ROOT: "property is missing and it is not optional"})
    if view.features.mknod:
        raise NotSupported("features: 'mknod' is not supported yet")
    cards = [_card(nic, pairs[nic.index], bare=view.entrypoint is not None) for nic in view.nics if nic.index in pairs]
    passed = [*view.devices, *([FUSE] if view.features.fuse else [])]
    return ContainerPlan(
        vmid=vmid,
        hostname=view.hostname or f"CT{vmid}",
        folder=folder,
        group=group,
        monitor=monitor,
        mounts=tuple(sorted(mounts.values(), key=lambda mount: mount.key != ROOT)),
        idmap=_idmap(view),
        facts=facts,
        limits=limits(vmid, view, facts),
        cards=tuple(cards),
        devices=tuple(Device(each.path, nodes[each.path], not each.deny_write) for each in passed),
        features=view.features,
        arch=view.arch,
        tty=view.tty,
        console=view.console,
        init=view.entrypoint,
        environment=view.environment,
        debug=debug,
        files=files,
        notes=tuple(_notes(view, facts)),
    )


def _notes(view: ContainerView, facts: HostFacts) -> Iterator[str]:
    if not view.unprivileged:
        yield _PRIVILEGED_NOTE
    if facts.unconfined:
        yield _UNCONFINED_NOTE


def limits(vmid: int, view: ContainerView, facts: HostFacts) -> Limits:
    """What a container may use."""
    return Limits(
        memory=view.memory * MIB,
        swap=view.swap * MIB,
        cpu_limit=min(filter(None, (view.cpulimit, view.cores if view.affinity else None)), default=None),
        cpu_units=view.cpuunits,
        cpus=view.affinity or _some_cpus(vmid, view.cores, facts.cpus),
        pids=facts.pids,
    )


def _some_cpus(vmid: int, cores: int | None, online: tuple[int, ...]) -> str | None:
    """As many processors as it has cores, so that programs inside count right; others for other containers."""
    if cores is None or cores >= len(online):
        return None
    chosen = sorted(online[(vmid * cores + number) % len(online)] for number in range(cores))
    return ",".join(map(str, chosen))


def _idmap(view: ContainerView) -> IdMap | Literal["own"] | None:
    if not view.unprivileged:
        return None
    return shared() if view.idmap in ("shared", None) else view.idmap  # type: ignore[return-value]


def _card(nic: ContainerNic, pair: Pair, *, bare: bool) -> Card:
    """`bare`: a program runs in the container, no system that would set addresses."""
    if not bare:
        return Card(pair.peer, nic.name)
    addresses = tuple(each for each in (nic.ip, nic.ip6) if each is not None and "/" in each)
    gateways = tuple(each for each in (nic.gw, nic.gw6) if each is not None)
    return Card(pair.peer, nic.name, True, addresses, gateways)
