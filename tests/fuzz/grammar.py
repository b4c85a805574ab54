# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes the API's description one from which deep requests are generated: names of things that exist, texts that look
like what a parameter wants, and texts that nobody should send.
"""

import copy
from collections.abc import Collection
from random import Random
from typing import Any

import schemathesis
from hypothesis import strategies as st

NODE = "alpha"
MACHINES, CONTAINERS = (100, 101), (102, 103)
PRESENT = (*MACHINES, *CONTAINERS)
NEW = range(110, 150)
"""Of each kind the first is off and the second runs; the others come and go."""
TEMPLATE = "local:vztmpl/small.tar.gz"

THINGS: dict[str, tuple[str, ...]] = {
    "node": (NODE, "localhost", "elsewhere"),
    "storage": ("local", "second", "third", "nowhere"),
    "target-storage": ("local", "second"),
    "poolid": ("playground", "a/b", "new"),
    "pool": ("playground", "nothing"),
    "userid": ("fuzz@pve", "root@pam", "new@pve", "x@nowhere"),
    "username": ("fuzz@pve", "fuzz", "nobody@pam"),
    "tokenid": ("spare", "new"),
    "groupid": ("staff", "new"),
    "groups": ("staff", "staff,new", ""),
    "roleid": ("Operator", "PVEAdmin", "new"),
    "realm": ("pve", "pam", "new"),
    "path": ("/", "/vms/100", "/pool/playground", "/storage/local", "/etc", "/nodes/alpha", "vms"),
    "roles": ("PVEAuditor", "Operator", "NoAccess,PVEAdmin"),
    "privs": ("VM.Audit", "VM.Audit,VM.PowerMgmt", "Nothing.AtAll"),
    "volume": ("local:iso/medium.iso", "iso/medium.iso", "second:import/none.qcow2", "local:100/vm-100-disk-0.raw"),
    "filename": ("vm-100-disk-7.raw", "vm-102-disk-0.qcow2", "medium.iso", "../up.iso", "x.iso"),
    "url": ("http://127.0.0.1:9/x.iso", "file:///etc/passwd", "http://[::1]/x.qcow2", "https://x.invalid/y.iso"),
    "size": ("1G", "+1G", "64M", "1", "999999999T", "-1G", "+0"),
    "disk": ("scsi0", "virtio0", "unused0", "ide2", "efidisk0", "rootfs", "mp0"),
    "idlist": ("scsi0", "unused0", "scsi1,virtio3", "net0"),
    "delete": ("net0", "scsi0,unused0", "description", "memory", "nonsense", "ide2"),
    "revert": ("memory", "net0", "nonsense"),
    "type": ("dir", "nfs", "vm", "storage"),
    "command": ("ping", "true", "sh"),
    # Options of machines, by family.
    "net": (
        *("virtio,bridge=vmbr0", "virtio=BC:24:11:00:00:01,bridge=vmbr0,link_down=1", "e1000,bridge=vmbr0,rate=1.5"),
        *("name=eth0,bridge=vmbr0,ip=dhcp", "name=eth1,ip=10.9.0.2/24,gw=10.9.0.1,ip6=auto,tag=5,rate=2"),
    ),
    "scsi": ("local:0.01", "none,media=cdrom", "local:0.01,format=qcow2,iothread=1,ssd=1", "local:iso/medium.iso"),
    "virtio": ("local:0.01,cache=writeback,discard=on", "local:100/vm-100-disk-0.raw", "second:0.01"),
    "sata": ("local:0.01,serial=abc", "local:iso/medium.iso,media=cdrom"),
    "ide": ("none,media=cdrom", "local:0.01,mbps=5,iops_rd=9"),
    "unused": ("local:100/vm-100-disk-0.raw", "local:101/vm-101-disk-0.raw"),
    "efidisk0": ("local:1,efitype=4m,pre-enrolled-keys=1", "local:0"),
    "serial": ("socket", "/dev/ttyS0"),
    "cpu": ("host", "max", "x86-64-v2-AES,flags=+aes", "kvm64,hidden=1"),
    "machine": ("q35", "pc", "pc-q35-7.2", "type=q35,viommu=intel"),
    "boot": ("order=scsi0;net0", "cdn", "order=nothing0"),
    "agent": ("1", "enabled=1,type=isa", "0"),
    "vga": ("std", "none", "type=virtio,memory=64", "serial0"),
    "memory": ("64", "current=32"),
    "smbios1": ("uuid=11111111-2222-3333-4444-555555555555", "base64=1,manufacturer=QQ=="),
    "startup": ("order=1,up=2,down=3", "5"),
    "rng0": ("source=/dev/urandom,max_bytes=1024,period=1000",),
    "hotplug": ("disk,network,usb", "0", "1"),
    "tags": ("web;db", "web,db", "A b"),
    "watchdog": ("i6300esb,action=reset",),
    "name": ("machine", "web.example.net", "-bad-"),
    "description": ("one\ntwo", "#[x](y)"),
    "import-from": ("local:iso/medium.iso", "/etc/passwd"),
    "hookscript": ("local:snippets/hook.sh",),
    "args": ("-S",),
    # Options of containers that machines have not, or have otherwise.
    "ostemplate": (TEMPLATE, TEMPLATE, "local:iso/medium.iso", "/etc/passwd"),
    "rootfs": ("local:0.02", "local:0", "second:0.02,mountoptions=noatime", "local:102/vm-102-disk-0.raw"),
    "mp": ("local:0.02,mp=/srv", "local:0,mp=/srv/data,ro=1", "/etc,mp=/mnt", "local:0.02,mp=/proc", "/dev/null,mp=/a"),
    "dev": ("/dev/null", "/dev/zero,uid=1000,mode=0600", "/dev/none,deny-write=1"),
    "features": ("nesting=1", "nesting=1,keyctl=1,fuse=1", "mount=nfs;cifs", "mknod=1"),
    "idmap": ("own", "shared", "u:0:300000:65536;g:0:300000:65536", "u:0:100000:10;g:0:5:10", "u:0:0:1"),
    "env": ("A=1", "A=1\0B=2", "A"),
    "entrypoint": ("/bin/true", "/sbin/init", "sh -c 'exit 3'", "'"),
    "hostname": ("web", "web.example.net", "-bad-"),
    "nameserver": ("10.0.0.1", "fe80::1%eth0", "10.0.0.1,::1", "nobody"),
    "timezone": ("host", "Europe/Rome", "../../etc"),
    "target-volume": ("mp0", "unused1", "rootfs"),
    "digest": ("0" * 40, "abc"),
    "content": ("images", "iso", "images,iso,import", "vztmpl"),
    "nodes": (NODE, "alpha,beta"),
    "target-disk": ("scsi1", "virtio3"),
    "next-id": ("lower=100,upper=200", "lower=9,upper=1"),
    "upid": ("UPID:alpha:00000001:00000001:00000001:qmstart:100:root@pam:", "UPID:::::::"),
}
"""Values by parameter's name that lead somewhere."""

TEXTS = (
    *("", "0", "1", "-1", "true", "none", "a", "a b", "x" * 300, "é", "\U0001f600", "a\nb", "a\0b", "%00", "\x1b[31m"),
    *("local:1", "local:0.001", "second:1,format=qcow2", "local:0,import-from=local:iso/medium.iso", "local:999999999"),
    *("local:0,import-from=/etc/passwd", "local:0,import-from=local:100/vm-100-disk-0.raw", "/dev/null", "/etc/shadow"),
    *("local:iso/medium.iso,media=cdrom", "none,media=cdrom", "cdrom", "local:../../etc/passwd", "local:100/../x.raw"),
    *("virtio,bridge=vmbr0", "e1000=BC:24:11:00:00:01,bridge=vmbr0,tag=5", "virtio,bridge=vmbr9", "virtio", "model="),
    *("order=scsi0;net0", "order=", "cdn", "scsi0", "enabled=1", "1,fstrim_cloned_disks=1", "type=std", "serial0"),
    *("host", "max,flags=+aes;-pcid", "kvm64", "custom-x", "socket", "/dev/ttyS0", "source=/dev/urandom", "q35"),
    *("uuid=11111111-2222-3333-4444-555555555555", "base64=1,manufacturer=QQ==", "order=1,up=2", "model=i6300esb"),
    *("cpus=0,memory=512,hostnodes=0,policy=bind", "disk,network", "a=b,a=b", ",", "=", "key=", "=value", "a=b=c"),
    *("1-3,5", "0,1", "nocloud", "ip=dhcp", "10", "10G", "2", "512", "999999999999", "1.5", "1e9", "NaN", "0x10"),
    *("lower=100,upper=200", "lower=9,upper=1", "migration=10", "secure", "shutdown_policy=freeze", "web;db", "A;a"),
    *("<script>", "' OR 1=1 --", "$(reboot)", "`id`", "../../../../etc/passwd", "..", ".", "/", "//", "\\", "{}", "[]"),
    *("UPID:alpha:00000001:00000001:00000001:qmstart:100:root@pam:", "UPID:::::::", "2026-01-01", "qcow2", "raw"),
)

wild = st.one_of(st.sampled_from(TEXTS), st.text(max_size=40))
any_text = {name: st.one_of(st.sampled_from(known), st.sampled_from(known), wild) for name, known in THINGS.items()}


def learn_formats() -> None:
    """Tells the generator what our made-up formats mean."""
    schemathesis.openapi.format("fuzz-any", wild)
    for name, strategy in any_text.items():
        schemathesis.openapi.format(f"fuzz-{name}", strategy)


def deepened(description: dict[str, Any]) -> dict[str, Any]:
    """The description with those formats, numbers of guests that exist, and indexed parameters by real names."""
    found = copy.deepcopy(description)
    for item in found["paths"].values():
        for operation in item.values():
            operation["parameters"] = [
                {**parameter, "name": name, "schema": _deepened(name, parameter["schema"])}
                for parameter in operation["parameters"]
                for name in _names(parameter["name"], parameter)
            ]
    for schema in found["components"]["schemas"].values():
        if "properties" in schema:
            schema["properties"] = {
                name: _deepened(name, property_)
                for family, property_ in schema["properties"].items()
                for name in _names(family, property_)
            }
    return found


def _names(family: str, described: dict[str, Any]) -> list[str]:
    """The members of an indexed parameter that are worth sending: the first ones."""
    base = family.removesuffix("[n]")
    count = described.get("x-indices")
    return [family] if count is None else [f"{base}{index}" for index in range(min(2, count))]


def _deepened(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name == "vmid":
        return {"type": "integer", "enum": [*PRESENT, NEW[0], 99]}
    if schema.get("type") != "string" or "enum" in schema:
        return schema
    known = name if name in THINGS else name.rstrip("0123456789")
    return {"type": "string", "format": f"fuzz-{known}" if known in THINGS else "fuzz-any"}


def aimed(case: Any, random: Random) -> Any:
    """Makes a generated request one that is likely to get through to its handler: it is about things that exist, and
    sends few parameters beside those that are required. One in ten stays as it is.
    """
    if random.random() < 0.1:
        return case
    path = case.path_parameters or {}
    guests = CONTAINERS if "/lxc/" in case.path else MACHINES
    for name, known in (("node", [NODE]), ("vmid", guests), ("storage", ["local", "second"])):
        if name in path and random.random() < 0.95:
            path[name] = random.choice(known)
    if isinstance(case.query, dict):
        case.query = _few(case.query, (), random)
    if isinstance(case.body, dict):
        required = {name for body in case.operation.body for name in _required(body)}
        case.body = _few(case.body, required, random)
        if "vmid" in case.body and random.random() < 0.7:
            case.body["vmid"] = random.choice(NEW)
    return case


def _required(body: Any) -> list[str]:
    schema = body.definition.get("schema", {})
    return list(schema.get("required", ()))


def _few(sent: dict[str, Any], required: Collection[str], random: Random) -> dict[str, Any]:
    optional = [name for name in sent if name not in required]
    kept = {*required, *random.sample(optional, min(len(optional), random.randint(0, 3)))}
    return {name: value for name, value in sent.items() if name in kept}
