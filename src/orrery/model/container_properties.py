# SPDX-License-Identifier: AGPL-3.0-or-later
"""Property strings of a container's options: root file system, mount points, network cards, devices, features.

Keys, words and limits are those of the compatible API. A key marked `not-yet` is known and checked, and refused where
its value is not the default; what is marked `yes` is heeded. That goes for `backup` and `replicate` too: what their
other value forbids is never done, since there are neither backups nor replication.
"""

import re
from collections.abc import Mapping

from orrery.model.properties import address_rule, enum, flag, not_yet
from orrery.model.propertystring import Property, PropertyString, schema
from orrery.model.values import Value

MOUNT_OPTIONS = ("discard", "lazytime", "noatime", "nodev", "noexec", "nosuid")
_MOUNT_OPTION = "|".join(MOUNT_OPTIONS)

_INTERFACE = re.compile(r"[-_.A-Za-z0-9]{1,15}", re.ASCII)
"""Linux names network cards with at most 15 bytes."""

_RESERVED_PLACES = ("/proc", "/sys")
"""What the container's own kernel interfaces lie on: nothing can be mounted at or below."""


def _place_rule(values: Mapping[str, Value]) -> None:
    place = "/" + "/".join(part for part in str(values["mp"]).split("/") if part)
    if place in ("/", "/dev") or any(place == each or place.startswith(f"{each}/") for each in _RESERVED_PLACES):
        raise ValueError(f"nothing can be mounted at '{place}' of a container")


def _nic_rule(values: Mapping[str, Value]) -> None:
    name = str(values["name"])
    if not _INTERFACE.fullmatch(name) or name in (".", "..", "lo", "all", "default"):
        raise ValueError(
            f"'{name[:80]}' cannot be the name of a network card (1 to 15 letters, digits, '-', '_' or '.', not 'lo')"
        )
    for vlan in str(values.get("trunks", "")).split(";"):
        if vlan and not 1 <= int(vlan) <= 4094:
            raise ValueError(f"'{vlan[:10]}' is not a VLAN (1 to 4094)")
    address_rule(values)


_volume = Property(format="pve-lxc-mp-string", default_key=True, optional=False)
_mount: dict[str, Property] = {
    "volume": _volume,
    "acl": flag(),
    "mountoptions": Property(pattern=rf"(?:{_MOUNT_OPTION})(?:;(?:{_MOUNT_OPTION}))*"),
    "quota": not_yet(flag(False)),
    "replicate": flag(True),
    "ro": flag(),
    "shared": not_yet(flag(False)),
    "size": Property(format="disk-size"),
}

ROOTFS = schema(_mount)
MOUNT_POINT = schema(
    _mount,
    {
        "backup": flag(),
        "keepattrs": not_yet(flag(False)),
        "mp": Property(format="pve-storage-path", optional=False),
    },
    rule=_place_rule,
)
UNUSED_VOLUME = schema({"volume": Property(format="pve-volume-id", default_key=True, optional=False)})

CONTAINER_NIC = schema(
    {
        "bridge": Property(format="pve-bridge-id"),
        "firewall": not_yet(flag(False)),
        "gw": Property(format="ipv4"),
        "gw6": Property(format="ipv6"),
        "host-managed": not_yet(flag(False)),
        "hwaddr": Property(format="mac-addr"),
        "ip": Property(format="pve-ipv4-config"),
        "ip6": Property(format="pve-ipv6-config"),
        "link_down": flag(False),
        "mtu": Property(type="integer", minimum=64, maximum=65535),
        "name": Property(pattern=r"[-_.\w\d]+", optional=False),
        "rate": Property(type="number", minimum=0),
        "tag": Property(type="integer", minimum=1, maximum=4094),
        "trunks": Property(pattern=r"\d+(?:;\d+)*"),
        "type": enum("veth", default="veth"),
    },
    rule=_nic_rule,
)

PASSED_DEVICE = schema(
    {
        "deny-write": flag(False),
        "gid": Property(type="integer", minimum=0, maximum=(1 << 32) - 2),
        "mode": Property(pattern="0[0-7]{3}"),
        "path": Property(format="pve-lxc-dev-string", default_key=True, optional=False),
        "uid": Property(type="integer", minimum=0, maximum=(1 << 32) - 2),
    }
)

FEATURES = schema(
    {
        "force_rw_sys": not_yet(flag(False)),
        "fuse": flag(False),
        "keyctl": flag(False),
        "mknod": not_yet(flag(False)),
        "mount": Property(pattern=r"[a-zA-Z0-9_; ]+"),
        "nesting": flag(False),
    }
)

CONTAINER_FORMATS: dict[str, PropertyString] = {
    "$devN": PASSED_DEVICE,
    "$features": FEATURES,
    "$mpN": MOUNT_POINT,
    "$netN~2": CONTAINER_NIC,
    "$rootfs": ROOTFS,
    "$unusedN~2": UNUSED_VOLUME,
}
"""Schemas by the format's name in the API description."""
