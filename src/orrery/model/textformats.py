# SPDX-License-Identifier: AGPL-3.0-or-later
"""Formats of single words: ids, names, addresses, sizes, features.

Each format is a function from text to text: it returns the value (in canonical form where there is one) or raises
ValueError with a text that says what the value should be. `check_text_format` finds them by the name that the
compatible API gives them, with `-list` for lists of them. Formats that are property strings are beside, in
`orrery.model.properties` and `orrery.model.machine_properties`; `orrery.model.formats` knows them all.
"""

import ipaddress
import re
from collections.abc import Callable

from orrery.model.disksize import parse_size
from orrery.model.identity import REALM, TokenId, UserId
from orrery.model.volume import CONTENT_TYPES, STORAGE_ID, STORAGE_ID_MAX, VMID, VolumeId

TextFormat = Callable[[str], str]

LIST_SEPARATORS = re.compile(r"[,;\s\0]+")
HOTPLUG_FEATURES = ("network", "disk", "cpu", "memory", "usb", "cloudinit")
HOTPLUG_DEFAULT = ("network", "disk", "usb")
TASK_STATES = ("unknown", "ok", "warning", "error")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_WORD = r"[A-Za-z0-9._-]+"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_MOUNT_OPTION = r"[^\s,\x00-\x1f\x7f]+"
_CPU_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


def split_list(text: str) -> list[str]:
    """The items of a list parameter: separated by comma, semicolon, whitespace or NUL; empty items are dropped."""
    return [item for item in LIST_SEPARATORS.split(text) if item]


def _pattern(expression: str, what: str, longest: int = 1024) -> TextFormat:
    compiled = re.compile(expression, re.ASCII)

    def check(value: str) -> str:
        if len(value) > longest or not compiled.fullmatch(value):
            raise ValueError(f"value '{value[:80]}' does not look like a valid {what}")
        return value

    return check


def _one_of(what: str, *words: str) -> TextFormat:
    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"{what} '{value[:80]}' is none of {', '.join(words)}")
        return value

    return check


def _user_id(value: str) -> str:
    return str(UserId.parse(value))


def _token_id(value: str) -> str:
    return str(TokenId.parse(value))


def _volume_id(value: str) -> str:
    return str(VolumeId.parse(value))


def _absolute_path(value: str) -> str:
    parts = value.split("/")
    if not value.startswith("/") or not value.isprintable() or ".." in parts or "." in parts:
        raise ValueError(f"value '{value[:80]}' is not an absolute path without '.' and '..'")
    return value


def _volume_or_path(value: str) -> str:
    return _absolute_path(value) if value.startswith("/") else _volume_id(value)


def _mount_source(value: str) -> str:
    """What a container mounts: a volume, the size of a new one (`STORAGE:8`), or a path of the host."""
    if value == "/":
        raise ValueError("the host's root folder cannot be mounted")
    return _volume_or_path(value)


def _device_path(value: str) -> str:
    path = _absolute_path(value)
    if not path.removeprefix("/dev/").strip("/") or not path.startswith("/dev/"):
        raise ValueError(f"value '{value[:80]}' is not the path of a device (/dev/…)")
    return path


def _disk_source(value: str) -> str:
    return value if value in ("none", "cdrom") else _volume_or_path(value)


def _disk_size(value: str) -> str:
    parse_size(value)
    return value


def _mac(value: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", value):
        raise ValueError(f"value '{value[:80]}' does not look like a valid MAC address")
    if int(value[1], 16) & 1:
        raise ValueError(f"value '{value}' is a multicast MAC address; its first octet must be even")
    return value


def _mac_prefix(value: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){0,2}:?", value):
        raise ValueError(f"value '{value[:80]}' is not a unicast MAC address prefix of one to three octets")
    return value


def _dns_name(value: str) -> str:
    if len(value) > 253 or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*\.?", value):
        raise ValueError(f"value '{value[:80]}' does not look like a valid DNS name")
    return value


def _address_of(kind: Callable[[str], object], what: str) -> TextFormat:
    def check(value: str) -> str:
        try:
            kind(value)
        except ValueError:
            raise ValueError(f"value '{value[:80]}' does not look like a valid {what}") from None
        return value

    return check


def _network_of(kind: Callable[..., object], what: str) -> TextFormat:
    def check(value: str) -> str:
        try:
            if not re.fullmatch(r"[^/%]+/\d{1,3}", value, re.ASCII):
                raise ValueError
            kind(value, strict=False)
        except ValueError:
            raise ValueError(f"value '{value[:80]}' does not look like a valid {what}") from None
        return value

    return check


def _ip_address(value: str) -> object:
    if "%" in value:
        raise ValueError
    return ipaddress.ip_address(value)


def _ipv6_address(value: str) -> object:
    if "%" in value:
        raise ValueError
    return ipaddress.IPv6Address(value)


_ip = _address_of(_ip_address, "IP address")
_ipv4 = _address_of(ipaddress.IPv4Address, "IPv4 address")
_ipv6 = _address_of(_ipv6_address, "IPv6 address")
_cidr = _network_of(ipaddress.ip_network, "network (ADDRESS/PREFIX)")
_cidr4 = _network_of(ipaddress.IPv4Network, "IPv4 network (ADDRESS/PREFIX)")
_cidr6 = _network_of(ipaddress.IPv6Network, "IPv6 network (ADDRESS/PREFIX)")


def _address(value: str) -> str:
    try:
        return _ip(value)
    except ValueError:
        pass
    try:
        return _dns_name(value)
    except ValueError:
        raise ValueError(f"value '{value[:80]}' does not look like a valid address: {value[:80]}") from None


def _words_or(otherwise: TextFormat, *words: str) -> TextFormat:
    return lambda value: value if value in words else otherwise(value)


def _resolver(value: str) -> str:
    """An address of a name server; a link-local one may name the card behind it, `fe80::1%eth0`."""
    address, percent, card = value.partition("%")
    if not percent:
        return _ip(value)
    if not ipaddress.IPv6Address(_ipv6(address)).is_link_local or not re.fullmatch(r"[-_.\w]{1,15}", card, re.ASCII):
        raise ValueError(f"value '{value[:80]}' is not a link-local IPv6 address with the name of a network card")
    return value


def _portal(value: str) -> str:
    host, _, port = value.rpartition(":") if re.search(r"(^[^:]+|\]):\d+$", value) else (value, "", "")
    _address(host.removeprefix("[").removesuffix("]"))
    if port and not 0 < int(port) < 65536:
        raise ValueError(f"'{port}' is not a port")
    return value


def _cpu_set(value: str) -> str:
    for part in value.split(","):
        match = _CPU_RANGE.fullmatch(part.strip())
        if not match:
            raise ValueError(f"'{value[:80]}' is not a list of CPU numbers and ranges, such as 0,5,8-11")
        if match[2] and int(match[1]) > int(match[2]):
            raise ValueError(f"CPU range '{part.strip()}' goes backwards")
    return ",".join(part.strip() for part in value.split(","))


def _hotplug_features(value: str) -> str:
    if value in ("0", "1"):
        return value
    features = split_list(value)
    for feature in features:
        if feature not in HOTPLUG_FEATURES:
            raise ValueError(f"unknown hotplug feature '{feature[:80]}'; known are {', '.join(HOTPLUG_FEATURES)}")
    return ",".join(dict.fromkeys(features))


def _folder_override(value: str) -> str:
    content, equals, folder = value.partition("=")
    if not equals or content not in CONTENT_TYPES:
        raise ValueError(f"'{value[:80]}' is not CONTENT=FOLDER with a content type of {', '.join(CONTENT_TYPES)}")
    parts = folder.strip("/").split("/")
    if not folder.isprintable() or {"", ".", ".."} & set(parts):
        raise ValueError(f"folder '{folder[:80]}' must lie within the storage; '.' and '..' are refused")
    return f"{content}={'/'.join(parts)}"


def _email(value: str) -> str:
    if value and not re.fullmatch(rf"[A-Za-z0-9_+~-]+(\.[A-Za-z0-9_+~-]+)*@{_LABEL}(\.{_LABEL})*", value):
        raise ValueError(f"value '{value[:80]}' does not look like a valid email address")
    return value


def _pair(one: TextFormat, what: str) -> TextFormat:
    def check(value: str) -> str:
        source, colon, target = value.partition(":")
        try:
            if value != "1":
                one(source)
            if colon:
                one(target)
        except ValueError:
            raise ValueError(f"'{value[:80]}' is not a pair of {what} SOURCE:TARGET, one of them, or 1") from None
        return value

    return check


def _storage_id(value: str) -> str:
    if len(value) > STORAGE_ID_MAX or not STORAGE_ID.fullmatch(value):
        raise ValueError(f"storage ID '{value[:80]}' contains illegal characters")
    return value


def _pool_id(value: str) -> str:
    parts = value.split("/")
    if len(parts) > 3 or any(not re.fullmatch(_WORD, part) or part in (".", "..") for part in parts):
        raise ValueError(f"pool ID '{value[:80]}' is not one to three words of letters, digits and '._-' joined by '/'")
    return value


_bridge = _pattern(r"[-_.\w]{1,15}", "bridge name")

_LIST_JOINTS = {"pve-tag-list": ";", "lxc-ip-with-ll-iface-list": " ", "dns-name-list": " "}
"""How lists are written, where it is not by commas."""

TEXT_FORMATS: dict[str, TextFormat] = {
    "CIDR": _cidr,
    "CIDRv4": _cidr4,
    "CIDRv6": _cidr6,
    "address": _address,
    "bridge-pair": _pair(_bridge, "bridges"),
    "disk-size": _disk_size,
    "dns-name": _dns_name,
    "email-opt": _email,
    "ip": _ip,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "ldap-simple-attr": _pattern(r"[a-zA-Z0-9]+", "LDAP attribute"),
    "lxc-ip-with-ll-iface": _resolver,
    "mac-addr": _mac,
    "mac-prefix": _mac_prefix,
    "pve-bridge-id": _bridge,
    "pve-configid": _pattern(r"[A-Za-z][A-Za-z0-9_-]+", "configuration ID", 128),
    "pve-cpuset": _cpu_set,
    "pve-ct-timezone": _pattern(r"host|[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}", "time zone", 64),
    "pve-dir-override": _folder_override,
    "pve-groupid": _pattern(_WORD, "group ID", 255),
    "pve-hotplug-features": _hotplug_features,
    "pve-iface": _pattern(r"[A-Za-z][A-Za-z0-9_]{1,20}([:.]\d+)?", "network interface name"),
    "pve-ipv4-config": _words_or(_cidr4, "dhcp", "manual"),
    "pve-ipv6-config": _words_or(_cidr6, "auto", "dhcp", "manual"),
    "pve-lxc-dev-string": _device_path,
    "pve-lxc-mp-string": _mount_source,
    "pve-node": _pattern(_LABEL, "node name"),
    "pve-poolid": _pool_id,
    "pve-priv": _pattern(r"[A-Za-z]+(\.[A-Za-z]+){1,2}", "privilege"),
    "pve-qm-bootdisk": _pattern(r"(ide|sata|scsi|virtio)\d+", "boot disk (ide0, sata0, scsi0, virtio0, …)"),
    "pve-realm": _pattern(REALM.pattern, "realm", 32),
    "pve-roleid": _pattern(_WORD, "role ID", 255),
    "pve-storage-content": _one_of("content type", *CONTENT_TYPES, "none"),
    "pve-storage-id": _storage_id,
    "pve-storage-options": _pattern(rf"{_MOUNT_OPTION}(,{_MOUNT_OPTION})*", "list of mount options"),
    "pve-storage-path": _absolute_path,
    "pve-storage-portal-dns": _portal,
    "pve-storage-server": _address,
    "pve-storage-vgname": _pattern(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*", "volume group name", 127),
    "pve-tag": _pattern(_TAG, "tag", 255),
    "pve-task-status-type": _one_of("task status", *TASK_STATES),
    "pve-tokenid": _token_id,
    "pve-userid": _user_id,
    "pve-vmid": _pattern(VMID.pattern, "VM ID"),
    "pve-volume-id": _volume_id,
    "pve-volume-id-or-absolute-path": _volume_or_path,
    "pve-volume-id-or-qm-path": _disk_source,
    "storage-pair": _pair(_storage_id, "storages"),
    "urlencoded": _pattern(r"[-%a-zA-Z0-9_.!~*'()]*", "percent-encoded text", 1 << 20),
}


def check_text_format(name: str, value: str) -> str:
    """Check a value against a format by its name and return it in canonical form.

    A name that ends in `-list` checks every item; the result is joined with `,`, tags with `;`, name servers and
    domains with a space. ValueError for a bad value, LookupError for a name that does not exist (a mistake in a table,
    not in a request).
    """
    if name in TEXT_FORMATS:
        return TEXT_FORMATS[name](value)
    one = TEXT_FORMATS.get(name.removesuffix("-list"))
    if one is None or not name.endswith("-list"):
        raise LookupError(f"format '{name}' does not exist")
    items = [one(item) for item in split_list(value)]
    return _LIST_JOINTS.get(name, ",").join(dict.fromkeys(items) if name == "pve-tag-list" else items)
