# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of a container's options: validation, rules between options, privileges, typed views."""

import re
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import ParameterError
from orrery.model import idmap
from orrery.model.container import (
    check_container,
    fixed_faults,
    is_mount,
    is_mount_point,
    privileges_for,
    root_only,
    unsupported,
    validate_options,
)
from orrery.model.container_devices import (
    ContainerNic,
    Features,
    PassedDevice,
    container_view,
    mounts,
    parse_device,
    parse_features,
    parse_mount,
    parse_nic,
)
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.container_properties import CONTAINER_FORMATS
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.model.guest_options import Requirement

TYPICAL = {
    "hostname": "web1",
    "ostype": "debian",
    "arch": "amd64",
    "unprivileged": "1",
    "cores": "2",
    "cpulimit": "1.5",
    "cpuunits": "100",
    "memory": "1024",
    "swap": "0",
    "rootfs": "local:100/vm-100-disk-0.raw,size=8G,mountoptions=noatime;nodev",
    "mp0": "local:4,mp=/srv/data/,backup=1",
    "mp1": "mp=/mnt/host,volume=/srv/share,ro=1",
    "net0": "bridge=vmbr0,name=eth0,ip=10.0.0.5/24,gw=10.0.0.1,ip6=auto,tag=5,trunks=6;7,hwaddr=bc:24:11:00:00:01",
    "dev0": "/dev/ttyUSB0,uid=1000,mode=0600,deny-write=1",
    "features": "nesting=1,keyctl=1,mount=nfs;cifs",
    "nameserver": "1.1.1.1,fe80::1%eth0",
    "searchdomain": "example.org, lan",
    "startup": "order=3,up=10",
    "tags": "Web;prod,web",
    "timezone": "Europe/Rome",
    "entrypoint": "/usr/bin/app --name 'a b'",
    "env": "A=1\0B=x=y",
    "idmap": "own",
    "tty": "1",
    "console": "1",
    "cmode": "shell",
    "onboot": "1",
    "description": "the web\n",
}
OWNER = Requirement(("VM.Allocate",))


def test_typical_container_in_canonical_text() -> None:
    canonical = validate_options(TYPICAL)
    assert canonical["mp0"] == "local:4,backup=1,mp=/srv/data/"
    assert canonical["mp1"] == "/srv/share,mp=/mnt/host,ro=1"
    assert canonical["nameserver"] == "1.1.1.1 fe80::1%eth0"
    assert canonical["searchdomain"] == "example.org lan"
    assert canonical["tags"] == "prod;web"
    assert canonical["description"] == "the web"
    assert validate_options(canonical) == canonical
    assert check_container(canonical) == {}
    assert unsupported(canonical) == {}


def test_a_typical_configuration_survives_its_text_form() -> None:
    config = GuestConfig().with_options(validate_options(TYPICAL))
    assert config.options["env"] == "A=1\0B=x=y"
    record = GuestRecord(100, "lxc", "n", config)
    assert GuestRecord.decode(100, record.encode()) == record
    with pytest.raises(ParameterError):
        GuestConfig().with_options({"hostname": "a\0b"})
    with pytest.raises(ParameterError):
        GuestConfig().with_options({"env": "a=1\nlock: backup"})


def test_typed_view() -> None:
    view = container_view(GuestConfig(options=validate_options(TYPICAL)))
    assert (view.memory, view.swap, view.cores, view.cpulimit, view.cpuunits) == (1024, 0, 2, 1.5, 100)
    assert view.idmap == "own"
    assert view.rootfs is not None
    assert (view.rootfs.mp, view.rootfs.size, view.rootfs.mountoptions) == ("/", 8 << 30, ("noatime", "nodev"))
    assert [mount.key for mount in view.mounts] == ["mp0", "mp1"]
    assert view.nics == (
        ContainerNic(
            index=0,
            name="eth0",
            bridge="vmbr0",
            hwaddr="BC:24:11:00:00:01",
            tag=5,
            trunks=((6, 6), (7, 7)),
            ip="10.0.0.5/24",
            gw="10.0.0.1",
            ip6="auto",
        ),
    )
    assert view.devices == (PassedDevice(path="/dev/ttyUSB0", uid=1000, mode=0o600, deny_write=True),)
    assert view.features == Features(nesting=True, keyctl=True, mount=("nfs", "cifs"))
    assert view.nameservers == ("1.1.1.1", "fe80::1%eth0")
    assert view.searchdomains == ("example.org", "lan")
    assert view.entrypoint == ("/usr/bin/app", "--name", "a b")
    assert view.environment == {"A": "1", "B": "x=y"}


def test_a_view_of_nothing_has_the_defaults() -> None:
    view = container_view(GuestConfig())
    assert (view.memory, view.swap, view.cores, view.tty, view.console, view.cmode) == (512, 512, None, 2, True, "tty")
    assert (view.unprivileged, view.idmap, view.rootfs, view.entrypoint) == (False, None, None, None)
    assert container_view(GuestConfig(options={"unprivileged": "1"})).idmap == "shared"


def test_a_broken_stored_option_is_named() -> None:
    for key, text in (("mp3", "local:1"), ("memory", "x"), ("net1", "bridge=vmbr0"), ("dev0", "x"), ("rootfs", "x")):
        with pytest.raises(ParameterError) as refused:
            container_view(GuestConfig(options={key: text}))
        assert list(refused.value.errors) == [key]


def test_mount_sources() -> None:
    new = parse_mount("rootfs", "local:0.5")
    assert (new.source, new.storage, new.new, new.backup) == ("volume", "local", 1 << 29, True)
    assert parse_mount("rootfs", "local:0").new == 0
    known = parse_mount("mp1", "local:100/vm-100-disk-1.raw,mp=/a//b/,size=4G,acl=0")
    assert (known.new, known.mp, known.size, known.acl, known.backup) == (None, "/a/b", 4 << 30, False, False)
    bind = parse_mount("mp1", "/srv/x,mp=/x")
    assert (bind.source, bind.path, bind.volume, bind.storage) == ("bind", "/srv/x", None, None)
    assert parse_mount("mp1", "/dev/sdb1,mp=/x").source == "device"


def test_outer_mounts_come_first() -> None:
    options = {"mp0": "local:1,mp=/a/b/c", "mp1": "local:1,mp=/a", "mp10": "local:1,mp=/a/b", "rootfs": "local:1"}
    assert [mount.key for mount in mounts(options)] == ["rootfs", "mp1", "mp10", "mp0"]


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("rootfs", "", "volume"),
        ("rootfs", "local", "STORAGE:NAME"),
        ("rootfs", "/", "root folder"),
        ("rootfs", "/a/../b", "absolute path"),
        ("rootfs", "local:../../etc", "plain path"),
        ("rootfs", "local:99999999999", "too large"),
        ("rootfs", "local:8,mp=/x", "unknown key 'mp'"),
        ("rootfs", "local:8,size=8GB", "size"),
        ("rootfs", "local:8,mountoptions=suid", "regex pattern"),
        ("mp0", "local:8", "mp"),
        ("mp0", "local:8,mp=/", "nothing can be mounted at '/'"),
        ("mp0", "local:8,mp=//", "nothing can be mounted at '/'"),
        ("mp0", "local:8,mp=/proc/", "nothing can be mounted at '/proc'"),
        ("mp0", "local:8,mp=/sys/fs//cgroup", "nothing can be mounted at '/sys/fs/cgroup'"),
        ("mp0", "local:8,mp=/a/../proc", "absolute path"),
        ("mp0", "local:8,mp=a", "absolute path"),
        ("mp0", "local:8,mp=/a\nlxc.hook=x", "control|absolute"),
        ("mp256", "local:8,mp=/a", "not defined"),
        ("net0", "bridge=vmbr0", "name"),
        ("net0", "name=lo", "'lo'"),
        ("net0", "name=..", "cannot be the name"),
        ("net0", "name=abcdefghijklmnop", "cannot be the name"),
        ("net0", "name=eth0,ip=10.0.0.1", "network"),
        ("net0", "name=eth0,gw=10.0.0.1", "needs an address"),
        ("net0", "name=eth0,mtu=63", "minimum"),
        ("net0", "name=eth0,tag=4095", "maximum"),
        ("net0", "name=eth0,trunks=5000", "not a VLAN"),
        ("net0", "name=eth0,hwaddr=01:00:00:00:00:00", "multicast"),
        ("net0", "name=eth0,type=macvlan", "enumeration"),
        ("net0", "name=eth0,rate=-1", "minimum"),
        ("net32", "name=eth0", "not defined"),
        ("dev0", "/etc/passwd", "path of a device"),
        ("dev0", "/dev/", "path of a device"),
        ("dev0", "/dev/../etc/shadow", "absolute path"),
        ("dev0", "/dev/x,mode=0999", "regex pattern"),
        ("dev0", "uid=1", "path"),
        ("features", "nesting", "no key"),
        ("features", "mount=", "no value"),
        ("features", "mount=;", "no file system"),
        ("features", "root=1", "unknown key"),
        ("unused0", "/dev/sda", "volume id"),
        ("hostname", "my host", "DNS name"),
        ("nameserver", "1.1.1.1;x", "IP address"),
        ("nameserver", "10.0.0.1%eth0", "IPv6"),
        ("nameserver", "2001:db8::1%eth0", "link-local"),
        ("timezone", "../../etc/passwd", "time zone"),
        ("timezone", "Europe/../x", "time zone"),
        ("entrypoint", "/bin/sh 'x", "quotation"),
        ("entrypoint", "  ", "must name a program"),
        ("entrypoint", "/bin/sh\nx", "regex pattern"),
        ("env", "A", "regex pattern"),
        ("env", "A=1\0", "regex pattern"),
        ("env", "A=1\nlxc.init.cmd=x", "regex pattern"),
        ("idmap", "u:0:0:1;g:0:1:1", "privileged"),
        ("idmap", "mine", "not an entry"),
        ("memory", "15", "minimum"),
        ("tty", "7", "maximum"),
        ("cores", "0", "minimum"),
        ("cpulimit", "nan", "number"),
        ("ostype", "windows", "enumeration"),
        ("bios", "ovmf", "not defined"),
    ],
)
def test_refuses(key: str, text: str, reason: str) -> None:
    with pytest.raises(ParameterError) as refused:
        validate_options({key: text})
    assert list(refused.value.errors) == [key]
    assert re.search(reason, refused.value.errors[key]), refused.value.errors[key]


@pytest.mark.parametrize(
    ("key", "text", "what"),
    [
        ("net0", "name=eth0,firewall=1", "firewall"),
        ("net0", "name=eth0,host-managed=1", "host-managed"),
        ("rootfs", "local:8,quota=1", "quota"),
        ("mp0", "/srv,mp=/srv,shared=1", "shared"),
        ("mp0", "local:8,mp=/srv,keepattrs=1", "keepattrs"),
        ("features", "mknod=1", "mknod"),
        ("features", "force_rw_sys=1", "force_rw_sys"),
        ("template", "1", "template"),
    ],
)
def test_what_comes_later_is_refused_by_name(key: str, text: str, what: str) -> None:
    refused = unsupported(validate_options({key: text}))
    assert list(refused) == [key]
    assert what in refused[key]


def test_defaults_of_what_comes_later_are_fine() -> None:
    options = {
        "net0": "name=eth0,firewall=0,host-managed=0",
        "rootfs": "local:8,quota=0,shared=0,replicate=0",
        "features": "mknod=0,force_rw_sys=0",
        "template": "0",
        "arch": "i386",
        "debug": "1",
    }
    assert unsupported(validate_options(options)) == {}


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ({}, {"rootfs": "property is missing and it is not optional"}),
        ({"rootfs": "local:8", "idmap": "own"}, {"idmap": "privileged"}),
        ({"rootfs": "local:8", "mp0": "local:1,mp=/a", "mp1": "local:1,mp=/a/"}, {"mp1": "mount path of 'mp0'"}),
        (
            {"rootfs": "local:100/vm-100-disk-0.raw", "mp7": "local:100/vm-100-disk-0.raw,mp=/a"},
            {"rootfs": "that of 'mp7'"},
        ),
        ({"rootfs": "local:8", "net0": "name=eth0", "net3": "name=eth0"}, {"net3": "name 'eth0' is that of 'net0'"}),
        ({"rootfs": "local:8", "dev0": "/dev/a", "dev1": "/dev/a,uid=1"}, {"dev1": "path '/dev/a' is that of 'dev0'"}),
    ],
)
def test_rules_between_options(options: dict[str, str], faults: dict[str, str]) -> None:
    found = check_container(validate_options(options))
    assert set(found) == set(faults)
    for key, text in faults.items():
        assert text in found[key]


def test_two_new_volumes_of_one_size_are_two() -> None:
    assert check_container({"rootfs": "local:8", "mp0": "local:8,mp=/a"}) == {}


def test_what_holds_for_life() -> None:
    current = {"unprivileged": "1", "rootfs": "local:100/vm-100-disk-0.raw,size=8G"}
    assert fixed_faults({"unprivileged": "1", "rootfs": current["rootfs"] + ",ro=1"}, current) == {}
    assert "unprivileged" in fixed_faults({"unprivileged": "0"}, current)
    assert "unprivileged" in fixed_faults({"unprivileged": None}, current)
    assert "unprivileged" in fixed_faults({"unprivileged": "1"}, {})
    assert fixed_faults({"unprivileged": "0"}, {}) == {}
    assert "delete" in fixed_faults({"rootfs": None}, current)
    assert "rootfs" in fixed_faults({"rootfs": "local:100/vm-100-disk-1.raw"}, current)
    assert "rootfs" in fixed_faults({"rootfs": "local:8"}, current)


@pytest.mark.parametrize(
    ("key", "value", "old"),
    [
        ("hookscript", "local:snippets/x.sh", None),
        ("hookscript", None, "local:snippets/x.sh"),
        ("lock", None, "backup"),
        ("affinity", "0", None),
        ("dev0", "/dev/kvm", None),
        ("dev0", None, "/dev/kvm"),
        ("rootfs", "/srv/root", None),
        ("mp0", "/srv/a,mp=/a", None),
        ("mp0", "/dev/sdb,mp=/a", None),
        ("mp0", None, "/srv/a,mp=/a"),
        ("mp0", "local:8,mp=/a", "/srv/a,mp=/a"),
        ("features", "keyctl=1", None),
        ("features", "nesting=1", "fuse=1,nesting=1"),
        ("features", None, "keyctl=1"),
        ("idmap", "u:0:300000:65536;g:0:300000:65536", None),
        ("idmap", "shared", "u:0:300000:65536;g:0:300000:65536"),
        ("idmap", None, "u:0:300000:65536;g:0:300000:65536"),
        ("snaptime", "1", None),
    ],
)
def test_reserved_for_root(key: str, value: str | None, old: str | None) -> None:
    assert root_only(key, value, old)


def test_features_of_a_privileged_container_are_roots() -> None:
    assert root_only("features", "nesting=1", unprivileged=False)
    assert root_only("features", "nesting=1") is None


@pytest.mark.parametrize(
    ("key", "value", "old", "needs"),
    [
        ("cores", "2", None, (Requirement(("VM.Config.CPU",)),)),
        ("swap", "0", None, (Requirement(("VM.Config.Memory",)),)),
        ("rootfs", "local:8", None, (Requirement(("VM.Config.Disk",)),)),
        ("mp0", None, "local:100/vm-100-disk-1.raw,mp=/a", (Requirement(("VM.Config.Disk",)),)),
        ("hostname", "a", None, (Requirement(("VM.Config.Network",)),)),
        ("net0", "name=eth0", None, (Requirement(("VM.Config.Network",)),)),
        ("features", "nesting=1", None, (OWNER,)),
        ("features", "keyctl=1", "keyctl=1,nesting=1", (OWNER,)),
        ("features", "keyctl=1,nesting=0", "keyctl=1", ()),
        ("tags", "a", None, (Requirement(("VM.Config.Options",)),)),
        ("idmap", "own", None, (Requirement(("VM.Config.Options",)),)),
        ("startup", "1", None, (Requirement(("VM.Config.Options",)), Requirement(("Sys.Modify",), "/"))),
        ("unprivileged", "1", None, (Requirement(("VM.Config.Options",)),)),
        ("unprivileged", "0", None, (Requirement(("VM.Config.Options",)), Requirement(("Sys.Modify",), "/"))),
    ],
)
def test_privileges(key: str, value: str | None, old: str | None, needs: tuple[Requirement, ...]) -> None:
    assert root_only(key, value, old) is None
    assert privileges_for(key, value, old) == needs


def test_every_option_has_a_known_privilege() -> None:
    known = {f"VM.Config.{what}" for what in ("CPU", "Memory", "Disk", "Network", "Options")}
    assert {option.privilege for option in CONTAINER_OPTIONS.values()} == known | {""}


def test_lookups() -> None:
    assert CONTAINER_OPTIONS.expand("mp255") == ("mp", 255)
    assert CONTAINER_OPTIONS.expand("mp256") is None
    assert CONTAINER_OPTIONS.find("mp[n]") is None
    assert is_mount("rootfs")
    assert is_mount("mp0")
    assert not is_mount("unused0")
    assert not is_mount_point("rootfs")
    assert CONTAINER_OPTIONS.reply_value("onboot", "1") == 1
    assert CONTAINER_OPTIONS.reply_value("cpulimit", "1.5") == 1.5
    assert CONTAINER_OPTIONS.reply_value("hostname", "1") == "1"
    assert list(CONTAINER_OPTIONS.each({"net10": "b", "net2": "a", "network": "x"}, "net")) == [
        ("net2", 2, "a"),
        ("net10", 10, "b"),
    ]


def judged(options: dict[str, str]) -> tuple[dict[str, str], Collection[str]]:
    """The options in canonical text, or the keys at fault."""
    try:
        return validate_options(options), ()
    except ParameterError as refused:
        return {}, refused.errors


parts = st.lists(
    st.one_of(
        st.sampled_from(
            ["volume", "mp", "name", "path", "size", "ip", "gw", "acl", "nesting", "mount", "uid", "trunks"]
        ),
        st.sampled_from(["local:8", "/dev/x", "/srv", "local:100/vm-100-disk-0.raw", "10.0.0.1/24", "1", "eth0", "8G"]),
        st.text(max_size=8),
    ),
    max_size=6,
)
READERS: dict[str, Callable[[str], object]] = {
    "rootfs": lambda text: parse_mount("rootfs", text),
    "mp0": lambda text: parse_mount("mp0", text),
    "net0": parse_nic,
    "dev0": parse_device,
    "features": parse_features,
    "unused0": str,
}


@given(st.sampled_from(sorted(READERS)), parts, st.sampled_from([",", "=", ",=", ", "]))
def test_any_property_string_is_read_or_refused(key: str, words: list[str], joint: str) -> None:
    text = "".join(
        word + ("=" if index % 2 == 0 else ",") if "," in joint else word + joint for index, word in enumerate(words)
    )
    canonical, faults = judged({key: text})
    assert set(faults) <= {key}
    if faults:
        return
    assert validate_options(canonical) == canonical
    READERS[key](canonical[key])
    check_container(canonical)
    unsupported(canonical)
    root_only(key, canonical[key])
    GuestConfig().with_options(canonical)


@given(
    st.dictionaries(
        st.sampled_from(sorted(name.replace("[n]", "1") for name in CONTAINER_OPTIONS)), st.text(max_size=30)
    )
)
def test_any_options_are_canonical_or_refused(options: dict[str, str]) -> None:
    canonical, faults = judged(options)
    assert set(faults) <= options.keys()
    if faults:
        return
    assert validate_options(canonical) == canonical
    GuestConfig().with_options(canonical)
    check_container(canonical)
    for key, value in canonical.items():
        privileges_for(key, value)


def test_formats_are_the_schemas_of_the_options() -> None:
    schemas = [option.properties for option in CONTAINER_OPTIONS.values() if option.properties is not None]
    assert all(schema in schemas for schema in CONTAINER_FORMATS.values())


def test_own_map_in_a_view() -> None:
    text = "u:0:300000:65536;g:0:300000:65536"
    view = container_view(GuestConfig(options={"unprivileged": "1", "idmap": text}))
    assert view.idmap == idmap.IdMap.parse(text)
