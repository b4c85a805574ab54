# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a virtual machine is told about itself when it starts: user, password, keys, addresses, names.

`seed` reads it from the machine's options, `medium` makes the files of a medium from it, in one of three formats
(`orrery.model.cloudinit_formats`). All pure; who makes the medium is `orrery.operations.cloudinit`.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from orrery.model.guest_options import MASK
from orrery.model.machine_properties import IP_CONFIG, NIC
from orrery.model.textformats import split_list

Kind = Literal["nocloud", "configdrive2", "opennebula"]
Section = Literal["user", "network", "meta", "vendor"]

DRIVE = "cloudinit"
"""What stands for a volume in the option of a new cloud-init drive: `local:cloudinit`."""

OPTIONS = ("cicustom", "cipassword", "citype", "ciupgrade", "ciuser", "nameserver", "searchdomain", "sshkeys")
"""The options that speak of nothing else; besides there are `ipconfigN`."""

LONGEST_KEYS = 64 << 10  # bytes of public keys in all

_NUMBERED = re.compile(r"(net|ipconfig)(\d+)", re.ASCII)
_DRIVE_KEY = re.compile(r"(?:ide|sata|scsi)\d+", re.ASCII)
_VOLUME = re.compile(r"vm-\d+-cloudinit(?:\.(?:raw|qcow2|vmdk))?", re.ASCII)
_KEY_TYPE = re.compile(r"(?:ssh-|ecdsa-sha2-|sk-ssh-|sk-ecdsa-)[A-Za-z0-9@.+-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Card:
    """A network card's addresses. `ip`, `ip6`: ADDRESS/PREFIX, `dhcp`, `manual`, for IPv6 also `auto`; None: none."""

    index: int
    mac: str | None
    ip: str | None
    gateway: str | None = None
    ip6: str | None = None
    gateway6: str | None = None

    @property
    def name(self) -> str:
        """What the card is called inside."""
        return f"eth{self.index}"


@dataclass(frozen=True, slots=True)
class Seed:
    """What a machine is told. `password` is a crypt hash; `user` None means the distribution's own default user."""

    kind: Kind
    hostname: str
    fqdn: str
    user: str | None = None
    password: str | None = None
    keys: tuple[str, ...] = ()
    upgrade: bool = True
    cards: tuple[Card, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def is_option(key: str) -> bool:
    """Whether an option says something to the guest alone."""
    numbered = _NUMBERED.fullmatch(key)
    return key in OPTIONS or (numbered is not None and numbered[1] == "ipconfig")


def is_drive(text: str | None) -> bool:
    """Whether a drive's option is a cloud-init drive: a new one (`local:cloudinit`) or one with its volume."""
    if text is None:
        return False
    file = text.split(",", 1)[0].removeprefix("file=").removeprefix("volume=")
    return is_volume(file)


def is_drive_key(key: str) -> bool:
    """Whether a cloud-init drive can be there."""
    return _DRIVE_KEY.fullmatch(key) is not None


def is_volume(volume: str) -> bool:
    """Whether a volume id is that of a cloud-init medium, or asks for one."""
    name = volume.partition(":")[2]
    return name == DRIVE or _VOLUME.fullmatch(name.rpartition("/")[2]) is not None


def drive_of(options: Mapping[str, str]) -> str | None:
    """The key of the machine's cloud-init drive; None without one."""
    found = [key for key in sorted(options) if is_drive_key(key) and is_drive(options[key])]
    return found[0] if found else None


def is_windows(ostype: str) -> bool:
    """Whether an `ostype` is some Windows."""
    return ostype.startswith("w")


def kind_of(options: Mapping[str, str]) -> Kind:
    """The format: as said, else what the guest's system is used to."""
    said = options.get("citype")
    if said is not None:
        known: dict[str, Kind] = {"nocloud": "nocloud", "configdrive2": "configdrive2", "opennebula": "opennebula"}
        return known[said]
    return "configdrive2" if is_windows(options.get("ostype", "other")) else "nocloud"


def seed(vmid: int, options: Mapping[str, str]) -> Seed:
    """What the machine is told; its options must be valid."""
    search = tuple(split_list(options.get("searchdomain", "")))
    name = options.get("name") or f"VM{vmid}"
    hostname, _, domain = name.partition(".")
    fqdn = name if domain or not search else f"{name}.{search[0]}"
    return Seed(
        kind=kind_of(options),
        hostname=hostname,
        fqdn=fqdn,
        user=options.get("ciuser") or None,
        password=options.get("cipassword") or None,
        keys=tuple(ssh_keys(options.get("sshkeys", ""))),
        upgrade=options.get("ciupgrade", "1") == "1",
        cards=tuple(_cards(options)),
        nameservers=tuple(split_list(options.get("nameserver", ""))),
        search=search,
    )


def ssh_keys(text: str) -> list[str]:
    """The keys in the option `sshkeys`, which is percent-encoded: one to a line, comments and empty lines left out."""
    lines = (line.strip() for line in unquote(text, errors="strict").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def check_ssh_keys(text: str) -> None:
    """Raises ValueError, naming the line, unless the percent-encoded text holds public keys and nothing else."""
    try:
        keys = ssh_keys(text)
    except UnicodeDecodeError:
        raise ValueError("the keys must be percent-encoded UTF-8") from None
    if len(text) > LONGEST_KEYS:
        raise ValueError(f"the keys are longer than {LONGEST_KEYS >> 10} KiB")
    for number, key in enumerate(keys, 1):
        if not is_public_key(key):
            raise ValueError(f"SSH public key validation error: key {number} is no public key (TYPE BASE64 COMMENT)")


def is_public_key(line: str) -> bool:
    """Whether a line is a public key as in authorized_keys, options in front included (RFC 4253, 6.6)."""
    if not line.isprintable():
        return False
    words = line.split()
    for place, word in enumerate(words[:-1]):
        if _KEY_TYPE.fullmatch(word):
            return _names_its_type(word, words[place + 1])
    return False


def _names_its_type(kind: str, encoded: str) -> bool:
    """The key itself begins with the length and the name of its type."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    name = kind.encode()
    return len(blob) > 4 + len(name) and blob[: 4 + len(name)] == len(name).to_bytes(4, "big") + name


def faults(options: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with a machine's cloud-init options, by parameter; empty when a medium can be made."""
    found: dict[str, str] = {}
    drives = [key for key in sorted(options) if is_drive_key(key) and is_drive(options[key])]
    if len(drives) > 1:
        found[drives[1]] = f"the machine has a cloud-init drive already: '{drives[0]}'"
    try:
        check_ssh_keys(options.get("sshkeys", ""))
    except ValueError as error:
        found["sshkeys"] = str(error)
    if options.get("cipassword") and is_windows(options.get("ostype", "other")):
        found["cipassword"] = (
            "Windows would need the password itself, and only a hash of it is kept; use sshkeys, or a file by cicustom"
        )
    for name in split_list(options.get("searchdomain", "")):
        if len(name) > 253 or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", name, re.ASCII):
            found["searchdomain"] = f"'{name[:80]}' is not a domain"
    return found


def shown(options: Mapping[str, str]) -> dict[str, str]:
    """Options as anybody may see them: without the password, nor its hash."""
    return {key: MASK if key == "cipassword" and text else text for key, text in options.items()}


def told(options: Mapping[str, str]) -> dict[str, str]:
    """Those of the options that reach the guest: its own, its name, its cards' addresses."""
    wanted = {"name", "ostype"}
    return {key: text for key, text in sorted(options.items()) if is_option(key) or key in wanted}


def _cards(options: Mapping[str, str]) -> list[Card]:
    found: list[Card] = []
    for key, text in options.items():
        match = _NUMBERED.fullmatch(key)
        if match is None or match[1] != "net":
            continue
        mac = NIC.parse(text).get("macaddr")
        said = IP_CONFIG.parse(options.get(f"ipconfig{match[2]}", ""))
        ip, ip6 = said.get("ip"), said.get("ip6")
        found.append(
            Card(
                index=int(match[2]),
                mac=None if mac is None else str(mac).lower(),
                # A card of which nothing is said asks by DHCP.
                ip="dhcp" if ip is None and ip6 is None else _text(ip),
                gateway=_text(said.get("gw")),
                ip6=_text(ip6),
                gateway6=_text(said.get("gw6")),
            )
        )
    return sorted(found, key=lambda card: card.index)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def interface(address: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """ADDRESS/PREFIX as an object that knows its mask."""
    return ipaddress.ip_interface(address)
