# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a change of an option means for a machine that runs.

Pure judgement: which part of the machine has to be told, or that the change stays pending until the next start.
"""

from collections.abc import Mapping
from typing import Literal

from orrery.model.machine import expand_indexed, find_option, is_disk
from orrery.model.machine_properties import AGENT, NIC
from orrery.model.propertystring import PropertyString
from orrery.model.textformats import HOTPLUG_DEFAULT, split_list
from orrery.model.values import Value

Change = Literal[
    "none",  # the values are the same in effect
    "stored",  # nothing to tell the machine
    "live",  # cpulimit, cpuunits, balloon: told by cgroup or monitor
    "throttle",  # a disk's rates
    "media",  # what lies in a CD-ROM drive
    "plug",  # a device is added
    "unplug",  # a device is removed
    "replace",  # unplugged, then plugged anew
    "link",  # a network card's bridge, VLAN, rate, firewall or link state
    "restart",  # stays pending
]

_PLUGGABLE_DISKS = ("scsi", "virtio")
_THROTTLE = ("bps", "iops", "mbps")
_DISK_STORED = frozenset(("backup", "replicate", "shared", "size", "format", "import-from"))
_NIC_LIVE = frozenset(("bridge", "tag", "trunks", "rate", "firewall", "link_down"))


def hotplug_features(options: Mapping[str, str]) -> frozenset[str]:
    """What the guest's `hotplug` option allows: words such as `disk` and `network`."""
    text = options.get("hotplug", "1")
    if text == "0":
        return frozenset()
    return frozenset(HOTPLUG_DEFAULT if text == "1" else split_list(text))


def change_of(key: str, old: str | None, new: str | None, features: frozenset[str]) -> Change:
    """What changing an option from one value to another (None: absent) means for a running machine.

    Values must be valid; `features` comes from `hotplug_features` of the machine's current options.
    """
    option = find_option(key)
    if old == new or option is None:
        return "none" if old == new else "stored"
    if is_disk(key):
        return _disk_change(key, option.properties, old, new, features)
    match option.hotplug:
        case "nic":
            return _nic_change(old, new, features)
        case "live" if key == "balloon":
            # The balloon device itself cannot come or go while the machine runs.
            return "restart" if (old == "0") != (new == "0") else "live"
        case "live":
            return "live"
        case "stored":
            return "stored"
    if key == "agent":
        return _agent_change(old, new)
    if new is not None and old is None and new == option.default:
        return "stored"
    if old is not None and new is None and old == option.default:
        return "stored"
    return "restart"


def needs_restart(key: str, old: str | None, new: str | None, features: frozenset[str]) -> bool:
    """Whether a change must wait for the next start of a running machine."""
    return change_of(key, old, new, features) == "restart"


def _disk_change(
    key: str, schema: PropertyString | None, old: str | None, new: str | None, features: frozenset[str]
) -> Change:
    indexed = expand_indexed(key)
    pluggable = indexed is not None and indexed[0] in _PLUGGABLE_DISKS and "disk" in features
    if old is None:
        return "plug" if pluggable else "restart"
    if new is None:
        return "unplug" if pluggable else "restart"
    if schema is None:
        return "restart"
    before, after = schema.parse(old), schema.parse(new)
    if before.get("media") == "cdrom" and after.get("media") == "cdrom":
        return "media" if _differing(before, after) <= {"file", *_DISK_STORED} else "restart"
    differing = _differing(before, after)
    if "file" in differing or before.get("media") != after.get("media"):
        return "replace" if pluggable else "restart"
    differing -= _DISK_STORED
    if not differing:
        return "stored"
    return "throttle" if all(name.startswith(_THROTTLE) for name in differing) else "restart"


def _nic_change(old: str | None, new: str | None, features: frozenset[str]) -> Change:
    pluggable = "network" in features
    if old is None or new is None:
        return ("plug" if old is None else "unplug") if pluggable else "restart"
    differing = _differing(NIC.parse(old), NIC.parse(new))
    if not differing:
        return "none"
    if differing <= _NIC_LIVE:
        return "link"
    return "replace" if pluggable else "restart"


def _agent_change(old: str | None, new: str | None) -> Change:
    """Only the channel is part of the machine: whether there is one, and of which type."""
    before = AGENT.parse(old) if old is not None else {}
    after = AGENT.parse(new) if new is not None else {}
    channel = [(bool(values.get("enabled")), values.get("type", "virtio")) for values in (before, after)]
    return "stored" if channel[0] == channel[1] or not (channel[0][0] or channel[1][0]) else "restart"


def _differing(before: Mapping[str, Value], after: Mapping[str, Value]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
