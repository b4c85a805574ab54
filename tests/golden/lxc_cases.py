# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cases of the golden container configurations, and what storage, network and host would say about them."""

from dataclasses import dataclass, replace
from pathlib import Path

from orrery.drivers.lxc import plan as plans
from orrery.drivers.lxc.facts import HostFacts
from orrery.drivers.lxc.plan import FUSE, ContainerPlan
from orrery.model.container_devices import MountPoint, container_view
from orrery.model.container_devices import mounts as parse_mounts
from orrery.model.guest import GuestConfig
from orrery.model.idmap import own
from orrery.system.mounts import BlockDevice, ContainerMount, DeviceNode, Folder, LoopImage, Source

CASES = sorted((Path(__file__).parent / "lxc").glob("*.conf"))
VERSION_1 = HostFacts("lxc.cgroup.devices", apparmor=None, lxcfs=None, cpus=(0, 1, 2, 3))
VERSION_2 = HostFacts(
    "lxc.cgroup2.devices", Path("/usr/sbin/apparmor_parser"), lxcfs=Path("/run/orrery/lxcfs"), cpus=(0, 1, 2, 3)
)
WITH_VERSION_2 = ("apparmor", "fuse", "lxcfs")
_CHARACTER = 0o020000


@dataclass(frozen=True)
class Pair:
    peer: str


def mount_of(point: MountPoint) -> ContainerMount:
    """What the operations make of a mount point."""
    options = point.mountoptions
    if point.acl is not None:
        options = (*options, "acl" if point.acl else "noacl")
    source: Source
    if point.source == "volume":
        path = Path("/storage") / str(point.volume).partition(":")[2]
        source = Folder(path, recursive=False) if path.suffix == ".subvol" else LoopImage(path)
    elif point.source == "device":
        source = BlockDevice(Path(str(point.path)))
    else:
        source = Folder(Path(str(point.path)))
    return ContainerMount(point.key, source, point.mp, point.ro, options, mapped=point.source == "volume")


def plan_of(case: Path) -> ContainerPlan:
    view = container_view(GuestConfig.from_text(case.read_text()))
    points = parse_mounts(GuestConfig.from_text(case.read_text()).options)
    built = plans.build(
        100,
        view,
        VERSION_2 if case.stem.startswith(WITH_VERSION_2) else VERSION_1,
        {point.key: mount_of(point) for point in points},
        {nic.index: Pair(f"pabc1232s{nic.index}") for nic in view.nics},
        {
            each.path: DeviceNode(each.path[5:], _CHARACTER | (each.mode or 0o660), 10 << 8 | 200, each.uid, each.gid)
            for each in (*view.devices, FUSE)
        },
        folder=Path("/run/orrery/guests/100"),
        group="orrery-abc123/guest-100",
        monitor="orrery-abc123/monitor-100",
        debug=case.stem == "debug",
    )
    return built if built.idmap != "own" else replace(built, idmap=own(7))
