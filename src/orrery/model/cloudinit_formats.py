# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of a cloud-init medium, in the three formats in which guests look for them.

- NoCloud (label `cidata`): user-data, meta-data, network-config, vendor-data in YAML; the network in version 1, which
  every release of cloud-init understands, on whatever it runs.
- Config drive, version 2 (`config-2`): OpenStack's folder of JSON documents, which Windows' cloudbase-init reads too.
- OpenNebula (`CONTEXT`): a shell script of variables.

Each has an instance id that is a hash of all that is said, so that a guest acts once on every change and on nothing
else. What follows from the host alone (its name servers) does not count there.
"""

import base64
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orrery.model.cloudinit import Card, Kind, Section, Seed, interface
from orrery.model.guest_options import MASK

LABELS: Mapping[Kind, str] = {"nocloud": "cidata", "configdrive2": "config-2", "opennebula": "CONTEXT"}
CUSTOMISABLE: Mapping[Kind, tuple[Section, ...]] = {
    "nocloud": ("user", "network", "meta", "vendor"),
    "configdrive2": ("user", "network", "meta", "vendor"),
    "opennebula": ("user",),
}
"""Which parts a file of the user's can stand for."""

HEADER = "#cloud-config\n"
_CONTENT = "/content/0000"


@dataclass(frozen=True, slots=True)
class Medium:
    """An optical medium: its volume label, and its files by their path."""

    label: str
    files: Mapping[str, bytes]


def medium(seed: Seed, custom: Mapping[Section, bytes] | None = None, fallback: tuple[str, ...] = ()) -> Medium:
    """The medium; `custom` files stand instead of the parts that they are named for.

    `fallback`: name servers for guests with fixed addresses to whom none was named. Raises ValueError when the format
    has no place for one of the files.
    """
    custom = custom or {}
    if misfits := sorted(set(custom) - set(CUSTOMISABLE[seed.kind])):
        raise ValueError(f"a medium of type {seed.kind} has no place for a '{misfits[0]}' file of cicustom")
    sections = _sections(seed, instance_id(seed, custom), custom, fallback)
    return Medium(LABELS[seed.kind], sections)


def dump(
    seed: Seed, section: Section, custom: Mapping[Section, bytes] | None = None, fallback: tuple[str, ...] = ()
) -> str:
    """One part of the medium as text, with a mask for the password. Raises ValueError as `medium`."""
    custom = custom or {}
    shown = replace(seed, password=MASK if seed.password else None)
    medium(shown, custom)
    files = _sections(shown, instance_id(seed, custom), custom, fallback)
    for name in _WHERE[seed.kind][section]:
        if name in files:
            return files[name].decode(errors="replace")
    return ""


def instance_id(seed: Seed, custom: Mapping[Section, bytes] | None = None) -> str:
    """A hash of everything that the machine is told, 40 hexadecimal digits."""
    plain = _sections(seed, "", custom or {}, ())
    digest = hashlib.sha256(LABELS[seed.kind].encode())
    for name, content in sorted(plain.items()):
        digest.update(f"\0{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:40]


_WHERE: Mapping[Kind, Mapping[Section, tuple[str, ...]]] = {
    "nocloud": {
        "user": ("user-data",),
        "network": ("network-config",),
        "meta": ("meta-data",),
        "vendor": ("vendor-data",),
    },
    "configdrive2": {
        "user": ("openstack/latest/user_data",),
        "network": ("openstack/latest/network_data.json", f"openstack{_CONTENT}"),
        "meta": ("openstack/latest/meta_data.json",),
        "vendor": ("openstack/latest/vendor_data.json",),
    },
    "opennebula": dict.fromkeys(("user", "network", "meta", "vendor"), ("context.sh",)),
}


def _sections(
    seed: Seed, instance: str, custom: Mapping[Section, bytes], fallback: tuple[str, ...]
) -> dict[str, bytes]:
    known = seed if seed.nameservers or not _has_fixed_address(seed) else replace(seed, nameservers=fallback)
    if seed.kind == "nocloud":
        return _nocloud(known, instance, custom)
    return _config_drive(known, instance, custom) if seed.kind == "configdrive2" else _context(known, instance, custom)


def _has_fixed_address(seed: Seed) -> bool:
    return any("/" in (address or "") for card in seed.cards for address in (card.ip, card.ip6))


# --- NoCloud


def _nocloud(seed: Seed, instance: str, custom: Mapping[Section, bytes]) -> dict[str, bytes]:
    files = {
        "user-data": custom.get("user", user_data(seed)),
        "meta-data": custom.get("meta", _yaml({"instance-id": instance, "local-hostname": seed.hostname})),
        "network-config": custom.get("network", _yaml({"version": 1, "config": network_v1(seed)})),
    }
    return files | ({"vendor-data": custom["vendor"]} if "vendor" in custom else {})


def user_data(seed: Seed) -> bytes:
    """The `#cloud-config` document."""
    document: dict[str, Any] = {"hostname": seed.hostname, "manage_etc_hosts": True, "fqdn": seed.fqdn}
    if seed.user is not None:
        document["user"] = seed.user
        if seed.user == "root":
            document["disable_root"] = False
    if seed.password is not None:
        document["password"] = seed.password
    if seed.keys:
        document["ssh_authorized_keys"] = list(seed.keys)
    document |= {"chpasswd": {"expire": False}, "users": ["default"]}
    document["package_upgrade"] = seed.upgrade
    return HEADER.encode() + _yaml(document)


def network_v1(seed: Seed) -> list[dict[str, Any]]:
    """cloud-init's network configuration, version 1: the cards with their subnets, then the name servers."""
    config: list[dict[str, Any]] = []
    for card in seed.cards:
        entry: dict[str, Any] = {"type": "physical", "name": card.name}
        if card.mac is not None:
            entry["mac_address"] = card.mac
        entry["subnets"] = _subnets(card)
        config.append(entry)
    resolver: dict[str, Any] = {"type": "nameserver", "address": list(seed.nameservers)}
    if seed.search:
        resolver["search"] = list(seed.search)
    return [*config, resolver] if seed.nameservers or seed.search else config


def _subnets(card: Card) -> list[dict[str, Any]]:
    words = {"dhcp": "dhcp4", "manual": "manual"}
    words6 = {"dhcp": "dhcp6", "auto": "ipv6_slaac", "manual": "manual"}
    found = []
    for address, gateway, static, known in (
        (card.ip, card.gateway, "static", words),
        (card.ip6, card.gateway6, "static6", words6),
    ):
        if address is None:
            continue
        subnet: dict[str, Any] = {"type": known.get(address, static)}
        if address not in known:
            subnet["address"] = address
            if gateway is not None:
                subnet["gateway"] = gateway
        if subnet not in found:
            found.append(subnet)
    return found


# --- config drive


def _config_drive(seed: Seed, instance: str, custom: Mapping[Section, bytes]) -> dict[str, bytes]:
    meta: dict[str, Any] = {
        "uuid": str(uuid.UUID(hex=instance[:32])) if instance else "",
        "hostname": seed.fqdn,
        "name": seed.hostname,
    }
    if seed.keys:
        meta["public_keys"] = {f"key-{number}": key for number, key in enumerate(seed.keys)}
    files = {"openstack/latest/user_data": custom.get("user", user_data(seed))}
    network = custom.get("network")
    if network is None:
        files["openstack/latest/network_data.json"] = _json(network_data(seed))
    elif _is_object(network):
        files["openstack/latest/network_data.json"] = network
    else:
        # The older way: a file of Debian's ifupdown, to which the metadata point.
        meta["network_config"] = {"name": "network_config", "content_path": _CONTENT}
        files[f"openstack{_CONTENT}"] = network
    files["openstack/latest/meta_data.json"] = custom.get("meta", _json(meta))
    return files | ({"openstack/latest/vendor_data.json": custom["vendor"]} if "vendor" in custom else {})


def network_data(seed: Seed) -> dict[str, Any]:
    """OpenStack's description of the network: links, networks on them, services."""
    links = [
        {"id": card.name, "type": "phy", "ethernet_mac_address": card.mac, "mtu": None}
        for card in seed.cards
        if card.mac is not None
    ]
    networks: list[dict[str, Any]] = []
    for card in seed.cards:
        for network in _networks(card) if card.mac is not None else ():
            if seed.search:
                network["dns_search"] = list(seed.search)
            networks.append({"id": f"network{len(networks)}", "network_id": card.name, "link": card.name, **network})
    return {
        "links": links,
        "networks": networks,
        "services": [{"type": "dns", "address": address} for address in seed.nameservers],
    }


def _networks(card: Card) -> list[dict[str, Any]]:
    words = {"dhcp": "ipv4_dhcp", "manual": None}
    words6 = {"dhcp": "ipv6_dhcp", "auto": "ipv6_slaac", "manual": None}
    found: list[dict[str, Any]] = []
    for address, gateway, static, known in (
        (card.ip, card.gateway, "ipv4", words),
        (card.ip6, card.gateway6, "ipv6", words6),
    ):
        if address is None or (address in known and known[address] is None):
            continue
        if address in known:
            found.append({"type": known[address]})
            continue
        fixed = interface(address)
        nowhere = "0.0.0.0" if static == "ipv4" else "::"
        routes = [{"network": nowhere, "netmask": nowhere, "gateway": gateway}] if gateway is not None else []
        found.append({"type": static, "ip_address": str(fixed.ip), "netmask": str(fixed.netmask), "routes": routes})
    return found


# --- OpenNebula


def _context(seed: Seed, instance: str, custom: Mapping[Section, bytes]) -> dict[str, bytes]:
    values = {"INSTANCE_ID": instance, "SET_HOSTNAME": seed.hostname, "HOSTNAME": seed.hostname, "NETWORK": "YES"}
    if seed.user is not None:
        values["USERNAME"] = seed.user
    if seed.password is not None:
        values["CRYPTED_PASSWORD"] = seed.password
        values["CRYPTED_PASSWORD_BASE64"] = base64.b64encode(seed.password.encode()).decode()
    if seed.keys:
        values["SSH_PUBLIC_KEY"] = "\n".join(seed.keys)
    if seed.search:
        values["SEARCH_DOMAIN"] = " ".join(seed.search)
    for card in seed.cards:
        values |= {f"ETH{card.index}_{name}": text for name, text in _card_variables(seed, card).items()}
    values["USER_DATA_ENCODING"] = "base64"
    values["USER_DATA"] = base64.b64encode(custom.get("user", user_data(seed))).decode()
    lines = [f"{name}={_quoted(text)}\n" for name, text in values.items()]
    return {"context.sh": "".join(lines).encode(errors="replace")}


def _card_variables(seed: Seed, card: Card) -> dict[str, str]:
    found = {} if card.mac is None else {"MAC": card.mac}
    methods = {"dhcp": "dhcp", "manual": "skip", None: "skip"}
    found["METHOD"] = methods.get(card.ip, "static")
    if card.ip is not None and card.ip not in methods:
        fixed = interface(card.ip)
        found |= {"IP": str(fixed.ip), "MASK": str(fixed.netmask), "NETWORK": str(fixed.network.network_address)}
        if card.gateway is not None:
            found["GATEWAY"] = card.gateway
    found["IP6_METHOD"] = {**methods, "auto": "auto"}.get(card.ip6, "static")
    if card.ip6 is not None and card.ip6 not in (*methods, "auto"):
        fixed = interface(card.ip6)
        found |= {"IP6": str(fixed.ip), "IP6_PREFIX_LENGTH": str(fixed.network.prefixlen)}
        if card.gateway6 is not None:
            found |= {"GATEWAY6": card.gateway6, "IP6_GATEWAY": card.gateway6}
    if seed.nameservers:
        found["DNS"] = " ".join(seed.nameservers)
    if seed.search:
        found["SEARCH_DOMAIN"] = " ".join(seed.search)
    return found


def _quoted(text: str) -> str:
    """A word for a POSIX shell, whatever the text holds."""
    return "'" + text.replace("\0", "").replace("'", "'\\''") + "'"


# --- documents


def yaml_text(document: object) -> str:
    """A document in YAML, in ASCII alone: line breaks such as U+0085 get lost when they stand for themselves."""
    import yaml  # not at the top: the daemon and most tasks never need it

    return str(yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1 << 20))


def _yaml(document: object) -> bytes:
    return yaml_text(document).encode()


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False
