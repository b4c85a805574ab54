# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers for installers: in the formats that they read, whatever the values hold."""

import base64
import shlex
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.model.answers import Answers, autoinstall, faults, medium, preseed, unattended

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna's laptop"
HASH = "$6$rounds=1000$salt$hash"
NAMES = {"u": "urn:schemas-microsoft-com:unattend"}


def answers(**given: Any) -> Answers:
    usual: dict[str, Any] = {"system": "debian", "hostname": "web1", "user": "anna", "password": HASH}
    made = Answers(**{**usual, **given})
    assert faults(made) == {}
    return made


def test_debconf_takes_the_preseed(tmp_path: Path) -> None:
    file = tmp_path / "preseed.cfg"
    file.write_bytes(
        preseed(answers(keys=(KEY,), packages=("nginx", "g++"), timezone="Europe/Rome", domain="lan.example"))
    )
    checked = subprocess.run(["debconf-set-selections", "--checkonly", file], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    said = {line.split()[1]: line for line in file.read_text().splitlines()}
    assert said["passwd/user-password-crypted"].endswith(f"password {HASH}")
    assert said["pkgsel/include"].endswith("qemu-guest-agent sudo nginx g++")
    assert said["netcfg/get_domain"] == "d-i netcfg/get_domain string lan.example"


def test_the_key_command_writes_the_keys(tmp_path: Path) -> None:
    text = preseed(answers(keys=(KEY, KEY))).decode()
    line = next(line for line in text.splitlines() if "late_command" in line)
    words = shlex.split(line.split(" string ", 1)[1])
    assert words[:3] == ["in-target", "sh", "-c"]
    encoded = words[3].split("echo ", 1)[1].split(" ", 1)[0]
    assert base64.b64decode(encoded).decode().splitlines() == [KEY, KEY]


def test_autoinstall() -> None:
    text = autoinstall(answers(system="ubuntu", keys=(KEY,), domain="lan", keyboard="it", packages=("vim",)))
    assert text.startswith(b"#cloud-config\n")
    section = yaml.safe_load(text)["autoinstall"]
    assert section["version"] == 1
    assert section["identity"] == {"hostname": "web1", "realname": "anna", "username": "anna", "password": HASH}
    assert section["ssh"] == {"install-server": True, "allow-pw": False, "authorized-keys": [KEY]}
    assert section["packages"] == ["qemu-guest-agent", "vim"]
    assert section["keyboard"] == {"layout": "it"}
    assert section["user-data"] == {"fqdn": "web1.lan"}


@pytest.mark.parametrize(
    ("firmware", "partition", "kinds"), [("uefi", "3", ["EFI", "MSR", "Primary"]), ("bios", "2", ["Primary"] * 2)]
)
def test_windows(firmware: Any, partition: str, kinds: list[str]) -> None:
    given = answers(
        system="windows", user="Anna R", password="pä<&>ss", edition="Windows 11 Pro", firmware=firmware,
        product_key="AAAAA-BBBBB-CCCCC-DDDDD-EEEEE", locale="it-IT",
    )  # fmt: skip
    root = ElementTree.fromstring(unattended(given))  # noqa: S314
    assert root.tag == "{urn:schemas-microsoft-com:unattend}unattend"
    assert [each.get("pass") for each in root] == ["windowsPE", "specialize", "oobeSystem"]
    assert [each.text for each in root.findall(".//u:CreatePartition/u:Type", NAMES)] == kinds
    assert root.findtext(".//u:InstallTo/u:PartitionID", None, NAMES) == partition
    assert root.findtext(".//u:MetaData/u:Value", None, NAMES) == "Windows 11 Pro"
    assert root.findtext(".//u:ComputerName", None, NAMES) == "web1"
    assert root.findtext(".//u:LocalAccount/u:Name", None, NAMES) == "Anna R"
    value = root.findtext(".//u:LocalAccount/u:Password/u:Value", "", NAMES)
    assert base64.b64decode(value).decode("utf-16-le") == "pä<&>ssPassword"
    for item in root.iter("{urn:schemas-microsoft-com:unattend}CreatePartition"):
        if item.find("u:Type", NAMES) is not None:
            assert item.get("{http://schemas.microsoft.com/WMIConfig/2002/State}action") == "add"
    assert "Key" not in [e.tag.rpartition("}")[2] for e in ElementTree.fromstring(  # noqa: S314
        unattended(answers(system="windows", password="x"))).iter()]  # fmt: skip


@pytest.mark.parametrize(
    ("system", "label", "names"),
    [
        ("debian", "PRESEED", {"preseed.cfg"}),
        ("ubuntu", "cidata", {"user-data", "meta-data"}),
        ("windows", "AUTOUNATTEND", {"autounattend.xml"}),
    ],
)
def test_media_are_found_by_their_names(system: Any, label: str, names: set[str]) -> None:
    made = medium(answers(system=system))
    assert made.label == label
    assert set(made.files) == names


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("hostname", {"hostname": "a b"}),
        ("hostname", {"hostname": ""}),
        ("hostname", {"hostname": "x\nd-i evil string"}),
        ("hostname", {"system": "windows", "hostname": "x" * 16}),
        ("user", {"user": "root"}),
        ("user", {"user": "Anna"}),
        ("user", {"user": "anna\n"}),
        ("user", {"system": "windows", "user": "a/b"}),
        ("password", {"password": ""}),
        ("password", {"password": "a\nb"}),
        ("domain", {"domain": "a..b"}),
        ("keys", {"keys": ("nonsense",)}),
        ("packages", {"packages": ("a;reboot",)}),
        ("timezone", {"timezone": "UTC\nd-i x"}),
        ("locale", {"locale": "it IT"}),
        ("edition", {"edition": "Windows 11 Pro"}),
        ("keys", {"system": "windows", "keys": (KEY,)}),
        ("product_key", {"system": "windows", "product_key": "AAAAA"}),
    ],
)
def test_what_cannot_be(field: str, given: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"system": "debian", "hostname": "web1", "user": "anna", "password": HASH}
    assert field in faults(Answers(**{**usual, **given}))


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional={
    name: st.text(max_size=20) for name in ("hostname", "user", "password", "domain", "locale", "keyboard", "timezone")
}))  # fmt: skip
def test_no_value_makes_a_line_of_its_own(given: dict[str, str]) -> None:
    usual: dict[str, Any] = {"system": "debian", "hostname": "web1", "user": "anna", "password": HASH}
    plain = preseed(Answers(**usual)).decode()
    made = Answers(**{**usual, **given})
    if not faults(made):
        text = preseed(made).decode()
        assert [line.split(" ")[:3] for line in text.split("\n")] == [line.split(" ")[:3] for line in plain.split("\n")]
