# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a machine is told, and the files of a medium that say it."""

import base64
import json
import shutil
import subprocess
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.model import cloudinit
from orrery.model.cloudinit import Card, Seed, check_ssh_keys, drive_of, faults, is_drive, seed, shown
from orrery.model.cloudinit_formats import dump, instance_id, medium
from orrery.model.guest_options import MASK

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHz1l2Dc5H1OIA0+IgkQCY4ppgSQf8Mk0l2S4l3JkfXm anna@laptop"
NETS = {"net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0", "net1": "virtio=BC:24:11:00:00:02,bridge=vmbr0"}
HASH = "$6$rounds=1000$salt$hash"


def nocloud(options: dict[str, str], **custom: bytes) -> dict[str, Any]:
    files = medium(seed(100, options), custom).files  # type: ignore[arg-type]
    return {name: yaml.safe_load(content) for name, content in files.items()}


def test_a_machine_of_which_nothing_is_said() -> None:
    made = medium(seed(100, {}))
    assert made.label == "cidata"
    assert made.files["user-data"].startswith(b"#cloud-config\n")
    files = nocloud({})
    assert files["user-data"]["hostname"] == "VM100"
    assert "user" not in files["user-data"]
    assert "password" not in files["user-data"]
    assert files["user-data"]["package_upgrade"] is True
    assert files["network-config"] == {"version": 1, "config": []}
    assert files["meta-data"]["local-hostname"] == "VM100"
    assert len(files["meta-data"]["instance-id"]) == 40


def test_user_password_keys_and_names() -> None:
    options = {"name": "web", "searchdomain": "lan.example", "ciuser": "anna", "cipassword": HASH, "ciupgrade": "0"}
    user = nocloud({**options, "sshkeys": quote(f"{KEY}\n# a comment\n\n{KEY}2\n", safe="")})["user-data"]
    assert (user["hostname"], user["fqdn"], user["user"], user["password"]) == ("web", "web.lan.example", "anna", HASH)
    assert user["ssh_authorized_keys"] == [KEY, KEY + "2"]
    assert user["chpasswd"] == {"expire": False}
    assert user["package_upgrade"] is False
    assert nocloud({"ciuser": "root"})["user-data"]["disable_root"] is False
    dotted = nocloud({"name": "web.example.org", "searchdomain": "lan"})["user-data"]
    assert (dotted["hostname"], dotted["fqdn"]) == ("web", "web.example.org")


def test_addresses() -> None:
    options = {
        **NETS,
        "ipconfig0": "ip=192.0.2.5/24,gw=192.0.2.1,ip6=auto",
        "nameserver": "192.0.2.53 2001:db8::53",
        "searchdomain": "a.example b.example",
    }
    config = nocloud(options)["network-config"]["config"]
    assert config[0] == {
        "type": "physical",
        "name": "eth0",
        "mac_address": "bc:24:11:00:00:01",
        "subnets": [
            {"type": "static", "address": "192.0.2.5/24", "gateway": "192.0.2.1"},
            {"type": "ipv6_slaac"},
        ],
    }
    assert config[1]["subnets"] == [{"type": "dhcp4"}], "a card of which nothing is said asks"
    assert config[2] == {
        "type": "nameserver",
        "address": ["192.0.2.53", "2001:db8::53"],
        "search": ["a.example", "b.example"],
    }
    six = nocloud({**NETS, "ipconfig0": "ip6=2001:db8::5/64,gw6=2001:db8::1"})["network-config"]["config"][0]
    assert six["subnets"] == [{"type": "static6", "address": "2001:db8::5/64", "gateway": "2001:db8::1"}]


def test_the_hosts_name_servers_serve_fixed_addresses_alone() -> None:
    fixed = seed(100, {**NETS, "ipconfig0": "ip=192.0.2.5/24"})
    files = medium(fixed, fallback=("192.0.2.9",)).files
    assert b"192.0.2.9" in files["network-config"]
    assert yaml.safe_load(files["meta-data"])["instance-id"] == instance_id(fixed), "no reason to begin anew"
    assert b"192.0.2.9" not in medium(seed(100, NETS), fallback=("192.0.2.9",)).files["network-config"]


def test_every_change_makes_another_instance() -> None:
    base = {**NETS, "name": "web", "ciuser": "anna"}
    changes: list[dict[str, str]] = [
        {"ciuser": "bert"}, {"cipassword": HASH}, {"sshkeys": quote(KEY)}, {"ipconfig0": "ip=192.0.2.5/24"},
        {"nameserver": "192.0.2.1"}, {"searchdomain": "lan"}, {"ciupgrade": "0"}, {"name": "web2"},
        {"citype": "configdrive2"}, {"net0": "virtio=BC:24:11:00:00:03,bridge=vmbr0"},
    ]  # fmt: skip
    ids = {instance_id(seed(100, {**base, **change})) for change in [{}, *changes]}
    assert len(ids) == len(changes) + 1
    assert instance_id(seed(100, {**base, "cores": "4"})) == instance_id(seed(100, base))
    assert instance_id(seed(100, base), {"vendor": b"x"}) != instance_id(seed(100, base))


def test_config_drive() -> None:
    options = {
        **NETS,
        "ostype": "win11",
        "name": "pc",
        "ipconfig0": "ip=192.0.2.5/24,gw=192.0.2.1",
        "ipconfig1": "ip=dhcp,ip6=auto",
        "nameserver": "192.0.2.53",
        "sshkeys": quote(KEY, safe=""),
    }
    made = medium(seed(100, options))
    assert made.label == "config-2"
    meta = json.loads(made.files["openstack/latest/meta_data.json"])
    assert (meta["hostname"], meta["public_keys"]) == ("pc", {"key-0": KEY})
    network = json.loads(made.files["openstack/latest/network_data.json"])
    assert [link["ethernet_mac_address"] for link in network["links"]] == ["bc:24:11:00:00:01", "bc:24:11:00:00:02"]
    fixed, asked, automatic = network["networks"]
    assert (fixed["type"], fixed["ip_address"], fixed["netmask"]) == ("ipv4", "192.0.2.5", "255.255.255.0")
    assert fixed["routes"] == [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.0.2.1"}]
    assert (asked["type"], automatic["type"], automatic["link"]) == ("ipv4_dhcp", "ipv6_slaac", "eth1")
    assert network["services"] == [{"type": "dns", "address": "192.0.2.53"}]


def context(options: dict[str, str], **custom: bytes) -> dict[str, str]:
    """The variables as a shell understands them."""
    script = medium(seed(100, {**options, "citype": "opennebula"}), custom).files["context.sh"]  # type: ignore[arg-type]
    program = script + b'\nfor n in $(compgen -v); do printf "%s=%s\\0" "$n" "${!n}"; done'
    said = subprocess.run([shutil.which("bash") or "bash"], input=program, capture_output=True, check=True, env={})
    return dict(each.split("=", 1) for each in said.stdout.decode().split("\0") if "=" in each)


def test_opennebula() -> None:
    options = {
        **NETS,
        "name": "web",
        "ciuser": "an'na\"$(touch /x)`y`",
        "cipassword": HASH,
        "sshkeys": quote(f"{KEY}\n{KEY}2", safe=""),
        "ipconfig0": "ip=192.0.2.5/24,gw=192.0.2.1,ip6=2001:db8::5/64,gw6=2001:db8::1",
        "nameserver": "192.0.2.53,192.0.2.54",
    }
    found = context(options)
    assert found["USERNAME"] == options["ciuser"]
    assert found["SSH_PUBLIC_KEY"].splitlines() == [KEY, KEY + "2"]
    assert found["CRYPTED_PASSWORD"] == HASH
    assert (found["ETH0_MAC"], found["ETH0_IP"], found["ETH0_MASK"]) == (
        "bc:24:11:00:00:01",
        "192.0.2.5",
        "255.255.255.0",
    )
    assert (found["ETH0_GATEWAY"], found["ETH0_IP6"], found["ETH0_IP6_PREFIX_LENGTH"]) == (
        "192.0.2.1",
        "2001:db8::5",
        "64",
    )
    assert (found["ETH0_DNS"], found["ETH1_METHOD"], found["SET_HOSTNAME"]) == ("192.0.2.53 192.0.2.54", "dhcp", "web")
    assert yaml.safe_load(base64.b64decode(found["USER_DATA"]))["hostname"] == "web"


def test_files_of_the_users_own() -> None:
    own = {
        "user": b"#!/bin/sh\n",
        "network": b"version: 2\n",
        "meta": b"instance-id: mine\n",
        "vendor": b"#cloud-config\n",
    }
    files = medium(seed(100, NETS), own).files  # type: ignore[arg-type]
    assert (files["user-data"], files["network-config"], files["meta-data"], files["vendor-data"]) == tuple(
        own.values()
    )
    windows = seed(100, {**NETS, "citype": "configdrive2"})
    assert (
        medium(windows, {"network": b'{"links": []}'}).files["openstack/latest/network_data.json"] == b'{"links": []}'
    )
    made = medium(windows, {"network": b"auto eth0\n", "vendor": b"{}"}).files
    assert made["openstack/content/0000"] == b"auto eth0\n"
    assert json.loads(made["openstack/latest/meta_data.json"])["network_config"]["content_path"] == "/content/0000"
    assert made["openstack/latest/vendor_data.json"] == b"{}"
    with pytest.raises(ValueError, match="opennebula has no place for a 'meta' file"):
        medium(seed(100, {"citype": "opennebula"}), {"meta": b""})


@pytest.mark.parametrize("kind", ["nocloud", "configdrive2", "opennebula"])
def test_a_dump_shows_what_is_there_but_the_password(kind: str) -> None:
    whole = seed(100, {**NETS, "citype": kind, "cipassword": HASH, "name": "web"})
    texts = {section: dump(whole, section) for section in ("user", "network", "meta")}
    assert all(text for text in texts.values())
    for text in texts.values():
        assert HASH not in text
        assert base64.b64encode(HASH.encode()).decode() not in text
        assert HASH not in "".join(
            base64.b64decode(line.partition("='")[2].rstrip("'\n") + "==").decode("latin-1")
            for line in text.splitlines()
            if line.startswith(("USER_DATA=", "CRYPTED_PASSWORD_BASE64="))
        )
    assert MASK in texts["user"] or kind == "opennebula"
    if kind == "nocloud":
        assert texts["meta"] == medium(whole).files["meta-data"].decode()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
HOSTILE = st.one_of(
    TEXTS,
    st.sampled_from(
        [
            "yes",
            "null",
            "~",
            "012",
            "1e3",
            "!!python/object",
            "- a",
            "a: b",
            "'",
            '"',
            "#",
            "\n---\n",
            "🦉",
            "a\x85b",
            "\u2028",
            "\ufeff",
            "%",
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(user=HOSTILE, password=HOSTILE, keys=st.lists(HOSTILE, max_size=3), name=HOSTILE, domain=HOSTILE)
def test_no_text_becomes_anything_but_a_text(user: str, password: str, keys: list[str], name: str, domain: str) -> None:
    told = Seed(
        "nocloud", name, f"{name}.{domain}", user, password, tuple(keys), search=(domain,), nameservers=("::1",)
    )
    files = medium(told).files
    assert files["user-data"].count(b"\n#cloud-config") == 0
    document = yaml.safe_load(files["user-data"])
    assert (document["hostname"], document["user"], document["password"]) == (name, user, password)
    assert document.get("ssh_authorized_keys", []) == keys
    assert yaml.safe_load(files["network-config"])["config"][0]["search"] == [domain]
    drive = medium(Seed("configdrive2", name, name, user, password, tuple(keys))).files
    assert json.loads(drive["openstack/latest/meta_data.json"])["hostname"] == name


@settings(max_examples=20, deadline=None)
@given(user=HOSTILE, key=HOSTILE)
def test_no_text_leaves_its_quotes_in_a_shell(user: str, key: str) -> None:
    told = Seed("opennebula", "h", "h", user, None, (key,), cards=(Card(0, "bc:24:11:00:00:01", "dhcp"),))
    program = medium(told).files["context.sh"] + b'\nprintf "%s\\0%s" "$USERNAME" "$SSH_PUBLIC_KEY"'
    said = subprocess.run(["/bin/sh"], input=program, capture_output=True, check=True)
    assert said.stderr == b""
    assert said.stdout.decode().split("\0") == [user.replace("\0", ""), key.replace("\0", "")]


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f'restrict,command="echo hi" {KEY}',
        f"{KEY}\n{KEY}",
        "",
        "sk-ssh-ed25519@openssh.com " + base64.b64encode(b"\0\0\0\x1ask-ssh-ed25519@openssh.comxxxx").decode(),
    ],
)
def test_keys_are_known(text: str) -> None:
    check_ssh_keys(quote(text, safe=""))


@pytest.mark.parametrize(
    "text",
    [
        "ssh-rsa",
        "hello",
        "ssh-rsa AAAA",
        KEY.replace("ed25519", "rsa", 1),
        "ssh-ed25519 !!!!",
        f"{KEY}\nnonsense",
        f"{KEY}\x1b[2J",
    ],
)
def test_what_is_no_key_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no public key"):
        check_ssh_keys(quote(text, safe=""))
    assert set(faults({"sshkeys": quote(text, safe="")})) == {"sshkeys"}


def test_keys_that_are_no_text() -> None:
    with pytest.raises(ValueError, match="percent-encoded UTF-8"):
        check_ssh_keys("%ff%fe")


def test_faults() -> None:
    assert faults({"ide2": "local:cloudinit,media=cdrom", "ciuser": "x"}) == {}
    assert set(faults({"ide2": "local:cloudinit", "scsi1": "local:100/vm-100-cloudinit.qcow2,media=cdrom"})) == {
        "scsi1"
    }
    assert "Windows" in faults({"ostype": "win10", "cipassword": HASH})["cipassword"]
    assert set(faults({"searchdomain": "good.example bad!"})) == {"searchdomain"}


def test_drives() -> None:
    assert is_drive("local:cloudinit,media=cdrom")
    assert is_drive("local:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M")
    assert is_drive("file=fast:vm-100-cloudinit")
    assert not is_drive("local:100/vm-100-disk-0.qcow2")
    assert not is_drive("local:iso/vm-100-cloudinit.iso")
    assert not is_drive("none,media=cdrom")
    assert not is_drive(None)
    assert drive_of({"ide2": "none,media=cdrom", "scsi3": "local:cloudinit"}) == "scsi3"
    assert drive_of({"virtio1": "local:cloudinit"}) is None


def test_what_everybody_may_see() -> None:
    assert shown({"cipassword": HASH, "ciuser": "anna"}) == {"cipassword": MASK, "ciuser": "anna"}
    assert set(cloudinit.told({**NETS, "ciuser": "a", "ipconfig0": "ip=dhcp", "cores": "2", "name": "x"})) == {
        "ciuser",
        "ipconfig0",
        "name",
    }
