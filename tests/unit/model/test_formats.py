# SPDX-License-Identifier: AGPL-3.0-or-later
"""Named formats and disk sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.disksize import format_size, parse_resize, parse_size
from orrery.model.formats import PROPERTY_STRINGS, check_format, format_names
from orrery.model.textformats import TEXT_FORMATS, split_list

GOOD: dict[str, list[str]] = {
    "CIDR": ["10.0.0.0/8", "10.0.0.1/8", "fd00::/64"],
    "address": ["10.0.0.1", "::1", "nas.example.org", "nas"],
    "bridge-pair": ["vmbr0:vmbr1", "vmbr0", "1"],
    "disk-size": ["32", "32G", "1.5T", "4194304K"],
    "dns-name": ["vm1", "vm-1.example.org", "a." * 60 + "b"],
    "email-opt": ["", "a.b+c@example.org"],
    "ldap-simple-attr": ["uid", "sAMAccountName"],
    "mac-addr": ["BC:24:11:00:00:01", "bc:24:11:aa:bb:cc"],
    "mac-prefix": ["BC:24:11", "BC", "BC:24:11:"],
    "pve-bridge-id": ["vmbr0", "br-lan.5"],
    "pve-configid": ["net0", "ab", "My_id-1"],
    "pve-cpuset": ["0", "0,5,8-11"],
    "pve-dir-override": ["iso=isos", "images=a/b"],
    "pve-groupid": ["admins", "a.b-c_d"],
    "pve-hotplug-features": ["0", "1", "network,disk"],
    "pve-node": ["pve1", "a", "node-1"],
    "pve-poolid": ["x", "a/b/c", "P.1"],
    "pve-priv": ["VM.Audit", "VM.Snapshot.Rollback"],
    "pve-realm": ["pve", "ldap.example"],
    "pve-roleid": ["Operator"],
    "pve-storage-content": ["images", "none"],
    "pve-storage-id": ["local", "nfs-1.a"],
    "pve-storage-options": ["vers=4.2,soft"],
    "pve-storage-path": ["/mnt/x", "/"],
    "pve-storage-portal-dns": ["10.0.0.1:3260", "nas", "[fd00::1]:3260", "fd00::1"],
    "pve-storage-server": ["nas.example", "10.0.0.1"],
    "pve-storage-vgname": ["vg0", "vg-data"],
    "pve-tag": ["web", "_a+b.c-d", "A1"],
    "pve-task-status-type": ["ok", "error"],
    "pve-tokenid": ["a@pve!ci"],
    "pve-userid": ["a@pve"],
    "pve-vmid": ["100", "999999999"],
    "pve-volume-id": ["local:iso/x.iso"],
    "pve-volume-id-or-qm-path": ["none", "cdrom", "/dev/sda", "local:32", "local:100/vm-100-disk-0.raw"],
    "storage-pair": ["a1:b1", "local", "1"],
    "urlencoded": ["a%20b", ""],
}
BAD: dict[str, list[str]] = {
    "CIDR": ["10.0.0.1", "10.0.0.1/33", "10.0.0.0/255.0.0.0", "x/8", "::%1/8"],
    "address": ["", "a b", "-x", "10.0.0.1\n", "fe80::1%eth0"],
    "bridge-pair": ["a:b c", "1:", ":b"],
    "disk-size": ["", "G", "1GB", "-1G", "1,5G", "9" * 19 + "T"],
    "dns-name": ["", "My VM", "-a", "a-", "a_b", "a..b", "x" * 64],
    "email-opt": ["a", "a@", "@b", "a b@c"],
    "mac-addr": ["01:24:11:00:00:01", "BC:24:11:00:00", "BC-24-11-00-00-01", ""],
    "mac-prefix": ["BD", "BC:24:11:00"],
    "pve-bridge-id": ["", "a b", "x" * 16, "a/b"],
    "pve-configid": ["a", "1a", "a b", "a\n"],
    "pve-cpuset": ["", "a", "3-1", "1,,2", "1-"],
    "pve-dir-override": ["iso", "iso=../x", "iso=", "foo=bar", "iso=a//b"],
    "pve-hotplug-features": ["2", "disk,foo"],
    "pve-node": ["", "a_b", "-a", "a.b"],
    "pve-poolid": ["", "a/b/c/d", "a//b", "..", "a/."],
    "pve-priv": ["VM", "", "VM Audit"],
    "pve-storage-content": ["image", ""],
    "pve-storage-id": ["1a", "a", "a-", "a b", "x" * 101],
    "pve-storage-options": ["", "a b", "\0", "soft,\x7f"],
    "pve-storage-path": ["mnt", "/a/../b", "/a\n", ""],
    "pve-storage-portal-dns": ["nas:0", "nas:70000", "a b:1"],
    "pve-tag": ["", "-a", "a b", "ä"],
    "pve-userid": ["a", "a@b"],
    "pve-vmid": ["99", "0100", "1000000000", "abc"],
    "pve-volume-id": ["none", "/dev/sda", "local"],
    "pve-volume-id-or-qm-path": ["local", "/dev/../x", "floppy"],
    "urlencoded": ["a b", "a+b", "a,b"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_accepts(name: str, value: str) -> None:
    assert check_format(name, value).rstrip("/") == value.rstrip("/")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_refuses(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_format(name, value)


def test_lists() -> None:
    assert check_format("pve-vmid-list", "100; 101,,102\t103\x00104") == "100,101,102,103,104"
    assert check_format("pve-tag-list", "b;a,b") == "b;a"
    with pytest.raises(ValueError, match="VM ID"):
        check_format("pve-vmid-list", "100,x")
    assert split_list("") == []


def test_property_strings_are_formats_too() -> None:
    assert check_format("pve-startup-order", "up=5,order=1") == "1,up=5"
    with pytest.raises(ValueError, match="keep-all"):
        check_format("prune-backups", "keep-all=1,keep-last=2")


def test_unknown_format_is_a_mistake_of_ours() -> None:
    with pytest.raises(LookupError):
        check_format("pve-nonsense", "x")
    assert not set(TEXT_FORMATS) & set(PROPERTY_STRINGS)


@given(st.sampled_from(sorted(format_names())), st.text(max_size=40))
def test_canonical_form_is_stable(name: str, text: str) -> None:
    try:
        canonical = check_format(name, text)
    except ValueError:
        return
    assert check_format(name, canonical) == canonical
    assert "\n" not in canonical
    assert "\0" not in canonical


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (512, "512"),
        (1024, "1K"),
        (34359738368, "32G"),
        (4 << 20, "4M"),
        (1 << 40, "1T"),
        (1536 << 20, "1536M"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size


def test_more_sizes() -> None:
    assert parse_size("4194304K") == 4 << 30
    assert parse_size("1.5G") == 1536 << 20
    assert parse_resize("+5G") == (True, 5 << 30)
    assert parse_resize("40G") == (False, 40 << 30)
    for text in ("", "+", "++1G", "-1G", "1 G", "1g", "1e3", "٣G"):
        with pytest.raises(ValueError, match=r"."):
            parse_resize(text)


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_sizes_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size
