# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers to what installers ask, so that a system installs itself: Debian's, Ubuntu's and Windows' own formats.

- Debian: `preseed.cfg`, lines of OWNER QUESTION TYPE VALUE. The installer reads it when told where it lies
  (`preseed/file=…` at its boot prompt).
- Ubuntu: `user-data` with an `autoinstall` section on a medium labelled `cidata`, which its installer looks for.
- Windows: `autounattend.xml` in the top folder of any medium, which Setup looks for.

Each takes the whole first disk. Linux gets the password as a hash; Windows needs it itself, which its format only
disguises (base64).
"""

import base64
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from xml.etree import ElementTree

from orrery.model.cloudinit import is_public_key
from orrery.model.cloudinit_formats import HEADER, Medium, yaml_text

System = Literal["debian", "ubuntu", "windows"]
SYSTEMS: Final[tuple[System, ...]] = ("debian", "ubuntu", "windows")
Firmware = Literal["bios", "uefi"]
FIRMWARES: Final[tuple[Firmware, ...]] = ("bios", "uefi")

_LABELS: Final[Mapping[System, str]] = {"debian": "PRESEED", "ubuntu": "cidata", "windows": "AUTOUNATTEND"}
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_RULES: Final[Mapping[str, str]] = {
    "hostname": _LABEL,
    "domain": rf"(?:{_LABEL}(?:\.{_LABEL})*)?",
    "locale": r"[A-Za-z]{2,3}(?:[_-][A-Za-z0-9]{2,8})*(?:\.[A-Za-z0-9-]{1,16})?",
    "keyboard": r"[A-Za-z0-9:_-]{1,32}",
    "timezone": r"[A-Za-z0-9_+/ .()-]{1,64}",
    "edition": r"[\w .()-]{0,80}",
    "product_key": r"(?:[A-Z0-9]{5}(?:-[A-Z0-9]{5}){4})?",
}
_LINUX_USER: Final = r"[a-z_][a-z0-9_-]{0,31}"
_WINDOWS_USER: Final = r"[^\x00-\x1f\x7f\"/\\\[\]:;|=,+*?<>@]{1,20}"
_PACKAGE: Final = r"[a-z0-9][a-z0-9+.-]{1,100}"
_COMPUTER_NAME_MAX: Final = 15
_NAMESPACE: Final = "urn:schemas-microsoft-com:unattend"
_TOKEN: Final = "31bf3856ad364e35"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the installer is told. `password` is a crypt hash for Linux, the password itself for Windows.

    `edition` and `product_key` are Windows' (the edition as the medium names it, such as `Windows 11 Pro`), `firmware`
    too, whose disks differ by it.
    """

    system: System
    hostname: str
    user: str
    password: str
    domain: str = ""
    keys: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    locale: str = ""
    keyboard: str = ""
    timezone: str = ""
    edition: str = ""
    product_key: str = ""
    firmware: Firmware = "bios"


def faults(answers: Answers) -> dict[str, str]:
    """What cannot be, by field; empty when a medium can be made."""
    found: dict[str, str] = {}
    for name, rule in _RULES.items():
        value = str(getattr(answers, name))
        if value and not re.fullmatch(rule, value):
            found[name] = f"value '{value[:80]}' does not fit"
    windows = answers.system == "windows"
    if not re.fullmatch(_WINDOWS_USER if windows else _LINUX_USER, answers.user) or not answers.user.isprintable():
        found["user"] = f"'{answers.user[:80]}' cannot be a user's name"
    if not windows and answers.user == "root":
        found["user"] = "the installers make a user of another name than root"
    if not answers.hostname:
        found["hostname"] = "a system needs a name"
    if windows and len(answers.hostname) > _COMPUTER_NAME_MAX:
        found["hostname"] = f"Windows takes names of at most {_COMPUTER_NAME_MAX} characters"
    if any(not is_public_key(key) for key in answers.keys):
        found["keys"] = "one of the keys is no public key (TYPE BASE64 COMMENT)"
    if wrong := [name for name in answers.packages if not re.fullmatch(_PACKAGE, name)]:
        found["packages"] = f"'{wrong[0][:80]}' is not the name of a package"
    for name in ("keys", "packages", "domain") if windows else ("edition", "product_key"):
        if getattr(answers, name):
            found[name] = f"{answers.system} has no such answer"
    if not answers.password or not answers.password.isprintable():
        found["password"] = "the user needs a password without line breaks"
    return found


def medium(answers: Answers) -> Medium:
    """The medium with the answers, which must be without `faults`."""
    makers: Mapping[System, Callable[[Answers], dict[str, bytes]]] = {
        "debian": lambda given: {"preseed.cfg": preseed(given)},
        "ubuntu": lambda given: {"user-data": autoinstall(given), "meta-data": b""},
        "windows": lambda given: {"autounattend.xml": unattended(given)},
    }
    return Medium(_LABELS[answers.system], makers[answers.system](answers))


# --- Debian


def preseed(answers: Answers) -> bytes:
    """Answers for Debian's installer, in the form that debconf-set-selections(1) reads."""
    ask: list[tuple[str, str, str]] = [
        ("debian-installer/locale", "string", answers.locale or "en_US.UTF-8"),
        ("keyboard-configuration/xkb-keymap", "select", answers.keyboard or "us"),
        ("netcfg/choose_interface", "select", "auto"),
        ("netcfg/get_hostname", "string", answers.hostname),
        ("netcfg/get_domain", "string", answers.domain),
        ("netcfg/hostname", "string", answers.hostname),
        ("hw-detect/load_firmware", "boolean", "true"),
        ("mirror/country", "string", "manual"),
        ("mirror/http/hostname", "string", "deb.debian.org"),
        ("mirror/http/directory", "string", "/debian"),
        ("mirror/http/proxy", "string", ""),
        ("passwd/root-login", "boolean", "false"),
        ("passwd/user-fullname", "string", answers.user),
        ("passwd/username", "string", answers.user),
        ("passwd/user-password-crypted", "password", answers.password),
        ("clock-setup/utc", "boolean", "true"),
        ("clock-setup/ntp", "boolean", "true"),
        ("time/zone", "string", answers.timezone or "Etc/UTC"),
        ("partman-auto/method", "string", "regular"),
        ("partman-auto/choose_recipe", "select", "atomic"),
        ("partman-partitioning/confirm_write_new_label", "boolean", "true"),
        ("partman/choose_partition", "select", "finish"),
        ("partman/confirm", "boolean", "true"),
        ("partman/confirm_nooverwrite", "boolean", "true"),
        ("apt-setup/cdrom/set-first", "boolean", "false"),
        ("pkgsel/include", "string", " ".join(("qemu-guest-agent", "sudo", *answers.packages))),
        ("pkgsel/upgrade", "select", "full-upgrade"),
        ("grub-installer/only_debian", "boolean", "true"),
        ("grub-installer/bootdev", "string", "default"),
        ("cdrom-detect/eject", "boolean", "true"),
        ("finish-install/reboot_in_progress", "note", ""),
    ]
    if answers.keys:
        ask.append(("preseed/late_command", "string", _key_command(answers)))
    lines = [f"d-i {question} {kind} {value}".rstrip() for question, kind, value in ask]
    lines += [
        "tasksel tasksel/first multiselect standard, ssh-server",
        "popularity-contest popularity-contest/participate boolean false",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _key_command(answers: Answers) -> str:
    """A line for the shell; the keys travel in base64, whatever they hold."""
    text = base64.b64encode("".join(f"{key}\n" for key in answers.keys).encode()).decode()
    user = answers.user
    script = (
        f"install -d -m 700 -o {user} -g {user} /home/{user}/.ssh && "
        f"echo {text} | base64 -d >/home/{user}/.ssh/authorized_keys && "
        f"chown {user}:{user} /home/{user}/.ssh/authorized_keys"
    )
    return f"in-target sh -c {shlex.quote(script)}"


# --- Ubuntu


def autoinstall(answers: Answers) -> bytes:
    """Answers for Ubuntu's installer (autoinstall, version 1), as user-data of cloud-init."""
    section: dict[str, Any] = {
        "version": 1,
        "locale": answers.locale or "en_US.UTF-8",
        "keyboard": {"layout": answers.keyboard or "us"},
        "timezone": answers.timezone or "Etc/UTC",
        "identity": {
            "hostname": answers.hostname,
            "realname": answers.user,
            "username": answers.user,
            "password": answers.password,
        },
        "ssh": {
            "install-server": True,
            "allow-pw": not answers.keys,
            "authorized-keys": list(answers.keys),
        },
        "storage": {"layout": {"name": "direct"}},
        "packages": ["qemu-guest-agent", *answers.packages],
        "updates": "security",
        "shutdown": "reboot",
    }
    if answers.domain:
        section["user-data"] = {"fqdn": f"{answers.hostname}.{answers.domain}"}
    return (HEADER + yaml_text({"autoinstall": section})).encode()


# --- Windows


def unattended(answers: Answers) -> bytes:
    """Answers for Windows' Setup."""
    ElementTree.register_namespace("", _NAMESPACE)
    ElementTree.register_namespace("wcm", "http://schemas.microsoft.com/WMIConfig/2002/State")
    root = ElementTree.Element(f"{{{_NAMESPACE}}}unattend")
    locale = {
        "InputLocale": answers.keyboard or "en-US",
        "SystemLocale": answers.locale or "en-US",
        "UILanguage": answers.locale or "en-US",
        "UserLocale": answers.locale or "en-US",
    }
    setup = _settings(root, "windowsPE")
    language = {"SetupUILanguage": {"UILanguage": answers.locale or "en-US"}, **locale}
    _component(setup, "Microsoft-Windows-International-Core-WinPE", language)
    _component(setup, "Microsoft-Windows-Setup", _installation(answers))
    naming = {"ComputerName": answers.hostname, "TimeZone": answers.timezone or "UTC"}
    _component(_settings(root, "specialize"), "Microsoft-Windows-Shell-Setup", naming)
    first = _settings(root, "oobeSystem")
    _component(first, "Microsoft-Windows-International-Core", locale)
    _component(first, "Microsoft-Windows-Shell-Setup", _first_use(answers))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _installation(answers: Answers) -> dict[str, Any]:
    if answers.firmware == "uefi":
        partitions = [
            {"Type": "EFI", "Size": "300"},
            {"Type": "MSR", "Size": "16"},
            {"Type": "Primary", "Extend": "true"},
        ]
        formats = {1: {"Format": "FAT32", "Label": "System"}, 3: {"Format": "NTFS", "Label": "Windows", "Letter": "C"}}
    else:
        partitions = [{"Type": "Primary", "Size": "500"}, {"Type": "Primary", "Extend": "true"}]
        formats = {
            1: {"Format": "NTFS", "Label": "System", "Active": "true"},
            2: {"Format": "NTFS", "Label": "Windows", "Letter": "C"},
        }
    chosen: dict[str, Any] = {"Key": "/IMAGE/NAME", "Value": answers.edition}
    image: dict[str, Any] = {"InstallTo": {"DiskID": "0", "PartitionID": str(max(formats))}}
    if answers.edition:
        image = {"InstallFrom": {"MetaData": _added(chosen)}, **image}
    return {
        "DiskConfiguration": {
            "Disk": _added(
                {
                    "DiskID": "0",
                    "WillWipeDisk": "true",
                    "CreatePartitions": {
                        "CreatePartition": [
                            _added({"Order": str(order), **part}) for order, part in enumerate(partitions, 1)
                        ]
                    },
                    "ModifyPartitions": {
                        "ModifyPartition": [
                            _added({"Order": str(order), "PartitionID": str(number), **part})
                            for order, (number, part) in enumerate(formats.items(), 1)
                        ]
                    },
                }
            ),
            "WillShowUI": "OnError",
        },
        "ImageInstall": {"OSImage": {**image, "WillShowUI": "OnError"}},
        "UserData": {
            "AcceptEula": "true",
            "ProductKey": {**({"Key": answers.product_key} if answers.product_key else {}), "WillShowUI": "OnError"},
        },
    }


def _first_use(answers: Answers) -> dict[str, Any]:
    disguised = base64.b64encode(f"{answers.password}Password".encode("utf-16-le")).decode()
    return {
        "OOBE": {
            "HideEULAPage": "true",
            "HideOnlineAccountScreens": "true",
            "HideWirelessSetupInOOBE": "true",
            "ProtectYourPC": "3",
        },
        "UserAccounts": {
            "LocalAccounts": {
                "LocalAccount": _added(
                    {
                        "Name": answers.user,
                        "DisplayName": answers.user,
                        "Group": "Administrators",
                        "Password": {"Value": disguised, "PlainText": "false"},
                    }
                )
            }
        },
    }


_ADD: Final = "{http://schemas.microsoft.com/WMIConfig/2002/State}action"


def _added(content: dict[str, Any]) -> dict[str, Any]:
    """An item of a list, which the format wants marked."""
    return {_ADD: "add", **content}


def _settings(root: ElementTree.Element, step: str) -> ElementTree.Element:
    return ElementTree.SubElement(root, f"{{{_NAMESPACE}}}settings", {"pass": step})


def _component(settings: ElementTree.Element, name: str, content: Mapping[str, Any]) -> None:
    attributes = {
        "name": name,
        "processorArchitecture": "amd64",
        "publicKeyToken": _TOKEN,
        "language": "neutral",
        "versionScope": "nonSxS",
    }
    _fill(ElementTree.SubElement(settings, f"{{{_NAMESPACE}}}component", attributes), content)


def _fill(element: ElementTree.Element, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if name == _ADD:
            element.set(name, value)
            continue
        for each in value if isinstance(value, list) else [value]:
            child = ElementTree.SubElement(element, f"{{{_NAMESPACE}}}{name}")
            if isinstance(each, Mapping):
                _fill(child, each)
            else:
                child.text = str(each)
