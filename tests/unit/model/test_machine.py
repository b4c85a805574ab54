# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of machine options: validation, support, privileges, changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import ParameterError
from orrery.model.machine import (
    MACHINE_OPTIONS,
    Requirement,
    check_machine,
    expand_indexed,
    find_option,
    is_disk,
    privileges_for,
    reply_value,
    root_only,
    unique_tags,
    unsupported,
    validate_options,
)
from orrery.model.machine_changes import change_of, hotplug_features, needs_restart

TYPICAL = {
    "name": "web-1",
    "ostype": "l26",
    "cores": "2",
    "sockets": "1",
    "cpu": "x86-64-v2-AES,flags=+pcid;-aes",
    "memory": "2048",
    "balloon": "1024",
    "scsihw": "virtio-scsi-single",
    "scsi0": "local:32,iothread=on,ssd=1,discard=on,mbps_rd=10.5",
    "virtio0": "local:0,import-from=local:import/x.qcow2",
    "ide2": "local:iso/debian.iso,media=cdrom",
    "net0": "virtio,bridge=vmbr0,firewall=0",
    "serial0": "socket",
    "vga": "serial0",
    "rng0": "/dev/urandom",
    "boot": "order=scsi0;net0",
    "agent": "enabled=1",
    "machine": "q35",
    "efidisk0": "local:1,efitype=4m,pre-enrolled-keys=0",
    "bios": "ovmf",
    "tags": "Web;prod,web",
    "startup": "order=2,up=30",
    "smbios1": "uuid=0d4f0c7a-6f0b-4c0e-9f39-1c9b7a1c7f10",
    "description": "the web\n",
    "hotplug": "disk,network",
    "lock": "backup",
    "args": "-device x",
    "template": "0",
    "unused3": "local:100/vm-100-disk-3.raw",
}


def test_typical_machine_in_canonical_text() -> None:
    canonical = validate_options(TYPICAL)
    assert canonical["scsi0"] == "local:32,discard=on,iothread=1,mbps_rd=10.5,ssd=1"
    assert canonical["tags"] == "prod;web"
    assert canonical["startup"] == "2,up=30"
    assert canonical["agent"] == "1"
    assert canonical["description"] == "the web"
    assert canonical["hotplug"] == "disk,network"
    assert set(canonical) == set(TYPICAL)
    assert validate_options(canonical) == canonical
    assert unsupported(canonical) == {}


def test_every_fault_is_reported_by_parameter() -> None:
    with pytest.raises(ParameterError) as caught:
        validate_options(
            {"cores": "x", "net0": "virtio,foo=1", "net32": "virtio", "nonsense": "1", "memory": "8", "bios": "efi"}
            | {"name": "a b", "cpu": "kvm65", "ostype": "l26"}
        )
    assert caught.value.message == "Parameter verification failed."
    errors = caught.value.errors
    unknown = "property is not defined in schema and the schema does not allow additional properties"
    assert errors["cores"] == "type check ('integer') failed - got 'x'"
    assert errors["net0"].startswith("invalid format - format error\nnet0.foo: unknown key 'foo'")
    assert errors["net32"] == errors["nonsense"] == unknown
    assert errors["memory"] == "invalid format - format error\nmemory.current: value must have a minimum value of 16"
    assert errors["bios"] == "value 'efi' does not have a value in the enumeration 'seabios, ovmf'"
    assert errors["name"] == "invalid format - value 'a b' does not look like a valid DNS name"
    assert "unknown processor model 'kvm65'" in errors["cpu"]
    assert "ostype" not in errors


def test_cpu_flags_are_limited() -> None:
    with pytest.raises(ParameterError, match=r"verification") as caught:
        validate_options({"cpu": "host,flags=+vmx"})
    assert "flag 'vmx'" in caught.value.errors["cpu"]
    for model in ("host", "max", "kvm64", "Skylake-Server-noTSX-IBRS", "EPYC-Rome-v2", "Haswell-noTSX", "x86-64-v4"):
        assert validate_options({"cpu": model}) == {"cpu": model}


def test_cdrom_is_ide2() -> None:
    assert validate_options({"cdrom": "none,media=cdrom"}) == {"ide2": "none,media=cdrom"}
    with pytest.raises(ParameterError):
        validate_options({"cdrom": "none", "ide2": "none"})


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("net0", ("net", 0)),
        ("net31", ("net", 31)),
        ("net32", None),
        ("net", None),
        ("net01", None),
        ("numa", None),
        ("numa7", ("numa", 7)),
        ("unused255", ("unused", 255)),
        ("efidisk0", None),
        ("foo0", None),
        ("net٣", None),
    ],
)
def test_numbered_options(key: str, found: tuple[str, int] | None) -> None:
    assert expand_indexed(key) == found


def test_looking_up() -> None:
    numa, numa0, net = find_option("numa"), find_option("numa0"), find_option("net5")
    assert numa is not None
    assert numa.rule.type == "boolean"
    assert numa0 is not None
    assert numa0.properties is not None
    assert net is MACHINE_OPTIONS["net[n]"]
    assert net is not None
    assert (net.base, net.count) == ("net", 32)
    assert find_option("net[n]") is None
    assert find_option("nonsense") is None
    assert [key for key in ("scsi30", "scsi31", "efidisk0", "unused0", "net0", "ide4") if is_disk(key)] == [
        "scsi30",
        "efidisk0",
    ]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("hugepages", "2", '"hugepages" is not supported yet'),
        ("hostpci0", "0000:01:00.0", '"hostpci0" is not supported yet'),
        ("template", "1", '"template" is not supported yet'),
        ("smp", "2", '"smp" is not supported yet'),
        ("scsi0", "local:1,wwn=0x0123456789abcdef", '"scsi0" with wwn is not supported yet'),
        ("ide2", "cdrom,media=cdrom", '"ide2" with the host\'s CD-ROM drive is not supported yet'),
        ("vga", "virtio-gl", '"vga" with type=virtio-gl is not supported yet'),
        ("hotplug", "disk,memory", '"hotplug" with memory is not supported yet'),
        ("machine", "virt", '"machine" with type=virt is not supported yet'),
        ("cpu", "custom-x", '"cpu" with a custom processor model is not supported yet'),
        ("numa0", "cpus=0-1", '"numa0" is not supported yet'),
        ("net0", "virtio,bridge=vmbr0,firewall=1", '"net0" with firewall is not supported yet'),
        ("scsi0", "local:1,shared=1", '"scsi0" with shared is not supported yet'),
        ("autostart", "1", '"autostart" is not supported yet'),
        ("migrate_downtime", "2", '"migrate_downtime" is not supported yet'),
        ("migrate_speed", "10", '"migrate_speed" is not supported yet'),
    ],
)
def test_what_is_not_supported_yet_is_refused_by_name(key: str, value: str, text: str) -> None:
    assert unsupported(validate_options({key: value})) == {key: text}


def test_defaults_of_unsupported_options_are_fine() -> None:
    values = {"template": "0", "smp": "1", "arch": "x86_64", "keephugepages": "0", "allow-ksm": "1", "ciupgrade": "1"}
    values |= {"autostart": "0", "migrate_downtime": "0.1", "migrate_speed": "0", "net0": "virtio,firewall=0"}
    assert unsupported(validate_options(values | {"ide2": "none,media=cdrom", "scsi0": "local:1,snapshot=0"})) == {}


def test_privileges() -> None:
    def names(key: str, value: str | None, old: str | None = None) -> list[tuple[str, ...]]:
        return [each.privileges for each in privileges_for(key, value, old)]

    assert names("cores", "2") == [("VM.Config.CPU",)]
    assert names("balloon", None, "512") == [("VM.Config.Memory",)]
    assert names("net0", "virtio") == [("VM.Config.Network",)]
    assert names("scsi0", "local:1") == [("VM.Config.Disk",)]
    assert names("ide2", "none,media=cdrom") == [("VM.Config.CDROM",)]
    assert names("ide2", "local:1", "none,media=cdrom") == [("VM.Config.CDROM",), ("VM.Config.Disk",)]
    assert names("ide2", None, "local:iso/x.iso,media=cdrom") == [("VM.Config.CDROM",)]
    assert names("ide2", "local:cloudinit") == [("VM.Config.CDROM",), ("VM.Config.Cloudinit",)]
    assert names("unused0", None) == [("VM.Config.Disk",)]
    assert names("serial0", "socket") == [("VM.Config.HWType",)]
    assert names("freeze", "1") == [("VM.PowerMgmt",)]
    assert names("tags", "a") == [("VM.Config.Options",)]
    assert names("args", "x") == []
    assert privileges_for("startup", "1")[1] == Requirement(("Sys.Modify",), "/")
    assert privileges_for("ciuser", "x") == (Requirement(("VM.Config.Cloudinit", "VM.Config.Network"), any_of=True),)
    assert privileges_for("ide2", "cdrom")[1] == Requirement(("Sys.Console",), "/")
    assert privileges_for("rng0", "/dev/hwrng")[1] == Requirement(("Mapping.Use",), "/mapping/hwrng")
    assert privileges_for("usb0", "mapping=key")[1] == Requirement(("Mapping.Use",), "/mapping/usb/key")
    assert privileges_for("virtiofs0", "share")[1] == Requirement(("Mapping.Use",), "/mapping/dir/share")


def test_what_reaches_the_host_is_for_root() -> None:
    for key in ("args", "hookscript", "lock", "affinity", "parallel0", "hugepages", "nonsense"):
        assert root_only(key, "x") == f"only root can set '{key}' config"
        assert root_only(key, None)
    assert root_only("serial0", "/dev/ttyS0") == "only root can set 'serial0' config for real devices"
    assert root_only("serial0", None, "/dev/ttyS0") == "only root can delete 'serial0' config for real devices"
    assert root_only("scsi0", "/dev/sda") == "only root can use a path of the host as 'file' of 'scsi0'"
    assert root_only("scsi0", "local:0,import-from=/etc/shadow")
    assert root_only("ide2", "/x.iso,media=cdrom")
    assert root_only("hostpci0", "0000:01:00.0")
    assert root_only("hostpci0", "mapping=gpu,romfile=x")
    assert root_only("usb0", "host=1-2")
    for key, value in [("scsi0", "local:1"), ("serial0", "socket"), ("usb0", "spice"), ("hostpci0", "mapping=gpu")]:
        assert root_only(key, value) is None
    assert root_only("scsi0", None, "/dev/sda") is None


def test_every_option_has_somebody_who_may_set_it() -> None:
    privileges = {option.privilege for option in MACHINE_OPTIONS.values()}
    assert privileges <= {"", "VM.PowerMgmt"} | {
        f"VM.Config.{kind}" for kind in ("CPU", "Memory", "Disk", "CDROM", "Network", "HWType", "Options", "Cloudinit")
    }
    for name, option in MACHINE_OPTIONS.items():
        assert option.name == name
        assert name.endswith("[n]") == (option.count is not None)
        if option.default is not None:
            assert option.canonical(option.default, name) == option.default


def test_faults_between_options() -> None:
    assert check_machine(validate_options(TYPICAL)) == {}
    errors = check_machine(
        {"balloon": "1024", "memory": "512", "cores": "200", "sockets": "2", "vcpus": "401", "boot": "order=scsi0;net0"}
    )
    assert set(errors) == {"balloon", "cores", "vcpus", "boot"}
    assert errors["boot"] == "invalid bootorder: device 'scsi0' does not exist"
    assert check_machine({"balloon": "512"}) == {}


def test_replies_carry_numbers() -> None:
    assert reply_value("cores", "2") == 2
    assert reply_value("onboot", "1") == 1
    assert reply_value("cpulimit", "0.5") == 0.5
    assert reply_value("memory", "2048") == "2048"
    assert reply_value("cores", "broken") == "broken"
    assert reply_value("nonsense", "7") == "7"


def test_tags() -> None:
    assert unique_tags("b;A,b c") == "a;b;c"
    assert unique_tags("b;A,b", sort=False) == "b;a"
    assert unique_tags("b;A", case_sensitive=True) == "A;b"
    assert validate_options({"tags": "b;a"}, sort_tags=False) == {"tags": "b;a"}


ALL = frozenset(("disk", "network"))


@pytest.mark.parametrize(
    ("key", "old", "new", "change"),
    [
        ("cores", "1", "2", "restart"),
        ("cores", "1", "1", "none"),
        ("acpi", None, "1", "stored"),
        ("acpi", "1", None, "stored"),
        ("name", "a", "b", "stored"),
        ("unknown", "a", "b", "stored"),
        ("cpulimit", None, "2", "live"),
        ("balloon", None, "512", "live"),
        ("shares", None, "0", "live"),
        ("balloon", "512", "0", "restart"),
        ("balloon", "0", None, "restart"),
        ("scsi0", None, "local:1", "plug"),
        ("scsi0", "local:1", None, "unplug"),
        ("sata0", None, "local:1", "restart"),
        ("ide2", None, "none,media=cdrom", "restart"),
        ("ide2", "none,media=cdrom", "local:iso/x.iso,media=cdrom", "media"),
        ("scsi0", "local:1", "local:1,mbps=5", "throttle"),
        ("scsi0", "local:1", "local:1,backup=0", "stored"),
        ("scsi0", "local:1", "local:1,cache=none", "restart"),
        ("scsi0", "local:1", "local:2", "replace"),
        ("efidisk0", None, "local:1", "restart"),
        ("unused0", "local:1", None, "stored"),
        ("net0", None, "virtio", "plug"),
        ("net0", "virtio,bridge=a", "virtio,bridge=b,link_down=1", "link"),
        ("net0", "virtio", "e1000", "replace"),
        ("net0", "virtio", None, "unplug"),
        ("net0", "virtio", "model=virtio", "none"),
        ("agent", None, "1", "restart"),
        ("agent", "1", "1,freeze-fs=0", "stored"),
        ("agent", "0", None, "stored"),
        ("agent", "0", "0,type=isa", "stored"),
    ],
)
def test_changes(key: str, old: str | None, new: str | None, change: str) -> None:
    assert change_of(key, old, new, ALL) == change
    assert needs_restart(key, old, new, ALL) == (change == "restart")


def test_hotplug_off_makes_devices_wait() -> None:
    none: frozenset[str] = frozenset()
    for key, old, new in [("scsi0", None, "local:1"), ("net0", "virtio", None), ("net0", "virtio", "e1000")]:
        assert needs_restart(key, old, new, none)
    assert not needs_restart("net0", "virtio", "virtio,link_down=1", none)
    assert hotplug_features({}) == {"network", "disk", "usb"}
    assert hotplug_features({"hotplug": "0"}) == none
    assert hotplug_features({"hotplug": "disk"}) == {"disk"}


keys = st.sampled_from(sorted(name.replace("[n]", "0") for name in MACHINE_OPTIONS))


@given(st.dictionaries(keys, st.text(max_size=30) | st.sampled_from([*TYPICAL.values(), "1", "0"]), max_size=5))
def test_any_options_are_read_or_refused(options: dict[str, str]) -> None:
    canonical: dict[str, str] = {}
    try:
        canonical = validate_options(options)
    except ParameterError as refused:
        faults = refused.errors
    else:
        faults = {}
    assert faults.keys() <= options.keys()
    if faults:
        return
    assert validate_options(canonical) == canonical
    assert unsupported(canonical).keys() <= canonical.keys()
    for key, value in canonical.items():
        assert root_only(key, value) or privileges_for(key, value) or not value
        reply_value(key, value)
        assert change_of(key, None, value, ALL) != "none"
