# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed views of a container: what its options mean, with defaults filled in where they are the same everywhere."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, TypeVar

from orrery.errors import ParameterError
from orrery.model import idmap
from orrery.model.container_options import CONTAINER_OPTIONS, DEFAULT_MEMORY
from orrery.model.container_properties import CONTAINER_NIC, FEATURES, MOUNT_POINT, PASSED_DEVICE, ROOTFS
from orrery.model.disksize import SIZE_MAX, parse_size
from orrery.model.guest import GuestConfig
from orrery.model.values import Value
from orrery.model.volume import VolumeId

Source = Literal["volume", "bind", "device"]

GIB = 1 << 30
_NEW = re.compile(r"\d{1,12}(?:\.\d{1,12})?", re.ASCII)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """The root file system (`rootfs`, mounted at `/`) or a mount point (`mpN`).

    `source`: a volume of a storage, a folder or file of the host (`bind`), or a device of the host; `path` is set for
    the last two. `new`: the volume is still to be made, with so many bytes (0: a plain folder). `mp`: where it is
    mounted inside. `size` in bytes. `acl` None: as the file system has it.
    """

    key: str
    source: Source
    mp: str
    volume: VolumeId | None = None
    path: str | None = None
    new: int | None = None
    size: int | None = None
    ro: bool = False
    acl: bool | None = None
    quota: bool = False
    backup: bool = False
    shared: bool = False
    replicate: bool = True
    mountoptions: tuple[str, ...] = ()

    @property
    def storage(self) -> str | None:
        """The storage that the volume is on or will be made on."""
        return self.volume.storage if self.volume is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerNic:
    """A network card. `hwaddr` in upper case; `rate` in MB/s; `trunks`: ranges of VLANs, both ends included.

    `ip`, `ip6`: `dhcp`, `auto` (IPv6 alone), `manual`, ADDRESS/PREFIX, or None when nothing is said.
    """

    index: int
    name: str
    bridge: str | None = None
    hwaddr: str | None = None
    tag: int | None = None
    trunks: tuple[tuple[int, int], ...] = ()
    rate: float | None = None
    mtu: int | None = None
    link_down: bool = False
    ip: str | None = None
    gw: str | None = None
    ip6: str | None = None
    gw6: str | None = None
    firewall: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a container may do beyond the usual. `mount`: file systems that it may mount."""

    nesting: bool = False
    keyctl: bool = False
    fuse: bool = False
    mknod: bool = False
    force_rw_sys: bool = False
    mount: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedDevice:
    """A device of the host, at the same path inside. `mode`: its permissions there, None for 0660."""

    path: str
    uid: int = 0
    gid: int = 0
    mode: int | None = None
    deny_write: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """All of a container. Memory and swap in MiB; `cores` None: all of the host's; `cpulimit` 0: no limit.

    `idmap`: `shared`, `own` or a map; None for a privileged container. `entrypoint` None: the system's own init.
    """

    hostname: str | None
    ostype: str | None
    arch: str
    unprivileged: bool
    idmap: Literal["shared", "own"] | idmap.IdMap | None
    memory: int
    swap: int
    cores: int | None
    cpulimit: float
    cpuunits: int | None
    affinity: str | None
    rootfs: MountPoint | None
    mounts: tuple[MountPoint, ...]
    nics: tuple[ContainerNic, ...]
    devices: tuple[PassedDevice, ...]
    features: Features
    nameservers: tuple[str, ...]
    searchdomains: tuple[str, ...]
    console: bool
    cmode: str
    tty: int
    timezone: str | None
    entrypoint: tuple[str, ...] | None
    environment: Mapping[str, str] = field(default_factory=dict)


def container_view(config: GuestConfig) -> ContainerView:
    """The current options of a container as typed views; ParameterError names the option that cannot be read."""
    options = config.options

    def read(key: str, parse: Callable[[str], _T], default: _T) -> _T:
        return _named(key, parse, options[key]) if key in options else default

    unprivileged = options.get("unprivileged") == "1"
    found = list(mounts(options))
    return ContainerView(
        hostname=options.get("hostname"),
        ostype=options.get("ostype"),
        arch=options.get("arch", "amd64"),
        unprivileged=unprivileged,
        idmap=read("idmap", parse_idmap, "shared") if unprivileged else None,
        memory=read("memory", int, DEFAULT_MEMORY),
        swap=read("swap", int, DEFAULT_MEMORY),
        cores=read("cores", int, None),
        cpulimit=read("cpulimit", float, 0.0),
        cpuunits=read("cpuunits", int, None),
        affinity=options.get("affinity"),
        rootfs=next((mount for mount in found if mount.key == "rootfs"), None),
        mounts=tuple(mount for mount in found if mount.key != "rootfs"),
        nics=tuple(nics(options)),
        devices=tuple(_named(key, parse_device, text) for key, _, text in CONTAINER_OPTIONS.each(options, "dev")),
        features=read("features", parse_features, Features()),
        nameservers=tuple(options.get("nameserver", "").split()),
        searchdomains=tuple(options.get("searchdomain", "").split()),
        console=options.get("console") != "0",
        cmode=options.get("cmode", "tty"),
        tty=read("tty", int, 2),
        timezone=options.get("timezone"),
        entrypoint=read("entrypoint", parse_entrypoint, None),
        environment=parse_environment(options.get("env", "")),
    )


def mounts(options: Mapping[str, str]) -> Iterator[MountPoint]:
    """The root file system and all mount points, outer ones first, as they must be mounted.

    ParameterError names the option that cannot be read.
    """
    if "rootfs" in options:
        yield _named("rootfs", parse_mount, "rootfs", options["rootfs"])
    found = [_named(key, parse_mount, key, text) for key, _, text in CONTAINER_OPTIONS.each(options, "mp")]
    yield from sorted(found, key=lambda mount: mount.mp.count("/"))


def nics(options: Mapping[str, str]) -> Iterator[ContainerNic]:
    """All network cards by number; ParameterError names the option that cannot be read."""
    for key, index, text in CONTAINER_OPTIONS.each(options, "net"):
        yield _named(key, parse_nic, text, index)


def parse_mount(key: str, text: str) -> MountPoint:
    """Read `rootfs` or `mpN`; ValueError when the text is none."""
    values = (ROOTFS if key == "rootfs" else MOUNT_POINT).parse(text, key)
    place = str(values.get("mp", "/"))
    source, volume, path, new = _source(str(values["volume"]))
    return MountPoint(
        key=key,
        source=source,
        mp="/" + "/".join(part for part in place.split("/") if part),
        volume=volume,
        path=path,
        new=new,
        size=parse_size(str(values["size"])) if "size" in values else None,
        ro=bool(values.get("ro", False)),
        acl=bool(values["acl"]) if "acl" in values else None,
        quota=bool(values.get("quota", False)),
        backup=key == "rootfs" or bool(values.get("backup", False)),
        shared=bool(values.get("shared", False)),
        replicate=bool(values.get("replicate", True)),
        mountoptions=tuple(dict.fromkeys(_items(values, "mountoptions"))),
    )


def parse_nic(text: str, index: int = 0) -> ContainerNic:
    """Read `netN`; ValueError when the text is none."""
    values = CONTAINER_NIC.parse(text, f"net{index}")
    mac = _word(values, "hwaddr")
    return ContainerNic(
        index=index,
        name=str(values["name"]),
        bridge=_word(values, "bridge"),
        hwaddr=None if mac is None else mac.upper(),
        tag=int(values["tag"]) if "tag" in values else None,
        trunks=tuple((int(vlan), int(vlan)) for vlan in _items(values, "trunks")),
        rate=float(values["rate"]) if values.get("rate") else None,
        mtu=int(values["mtu"]) if "mtu" in values else None,
        link_down=bool(values.get("link_down", False)),
        ip=_word(values, "ip"),
        gw=_word(values, "gw"),
        ip6=_word(values, "ip6"),
        gw6=_word(values, "gw6"),
        firewall=bool(values.get("firewall", False)),
    )


def parse_features(text: str) -> Features:
    """Read `features`; ValueError when the text is none."""
    values = FEATURES.parse(text, "features")
    return Features(
        nesting=bool(values.get("nesting", False)),
        keyctl=bool(values.get("keyctl", False)),
        fuse=bool(values.get("fuse", False)),
        mknod=bool(values.get("mknod", False)),
        force_rw_sys=bool(values.get("force_rw_sys", False)),
        mount=tuple(dict.fromkeys(re.findall(r"\w+", str(values.get("mount", ""))))),
    )


def parse_device(text: str) -> PassedDevice:
    """Read `devN`; ValueError when the text is none."""
    values = PASSED_DEVICE.parse(text, "dev")
    return PassedDevice(
        path=str(values["path"]),
        uid=int(values.get("uid", 0)),
        gid=int(values.get("gid", 0)),
        mode=int(str(values["mode"]), 8) if "mode" in values else None,
        deny_write=bool(values.get("deny-write", False)),
    )


def parse_idmap(text: str) -> Literal["shared", "own"] | idmap.IdMap:
    """Read `idmap`; ValueError when the text is none."""
    if text == "shared":
        return "shared"
    return "own" if text == "own" else idmap.IdMap.parse(text)


def parse_entrypoint(text: str) -> tuple[str, ...]:
    """The program and its arguments; words may be quoted. ValueError for none, or a quotation without end."""
    words = tuple(shlex.split(text))
    if not words or not words[0]:
        raise ValueError("an entrypoint must name a program")
    return words


def parse_environment(text: str) -> dict[str, str]:
    """The variables that `env` lists, separated by NUL."""
    return {name: value for name, _, value in (part.partition("=") for part in text.split("\0") if part)}


def _source(text: str) -> tuple[Source, VolumeId | None, str | None, int | None]:
    if text.startswith("/"):
        return ("device" if text.startswith("/dev/") else "bind"), None, text, None
    volume = VolumeId.parse(text)
    if not _NEW.fullmatch(volume.name):
        return "volume", volume, None, None
    size = int(Decimal(volume.name) * GIB)
    if size > SIZE_MAX:
        raise ValueError(f"size '{volume.name}' (GiB) is too large")
    return "volume", volume, None, size


def _word(values: Mapping[str, Value], key: str) -> str | None:
    return str(values[key]) if key in values else None


def _items(values: Mapping[str, Value], key: str) -> list[str]:
    return [item for item in str(values.get(key, "")).split(";") if item]


def _named(key: str, parse: Callable[..., _T], *arguments: object) -> _T:
    try:
        return parse(*arguments)
    except ValueError as error:
        raise ParameterError({key: str(error)}, f"the container's option '{key}' cannot be read: {error}") from None
