# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cloud-init drives among a machine's drives, and what becomes of their media."""

from pathlib import Path

import pytest

from orrery.errors import ParameterError
from orrery.model.guest import GuestConfig
from orrery.operations import cloudinit
from orrery.operations.drives import parse_drive
from orrery.operations.guest_pending import applied, keep_volumes, lost_media

MEDIUM = "local:100/vm-100-cloudinit.raw"
DRIVE = f"{MEDIUM},media=cdrom,size=4M"


def test_a_new_drive_and_one_with_its_medium() -> None:
    new = parse_drive("ide2", "local:cloudinit,media=cdrom,format=qcow2")
    assert (new.storage, new.volume, new.cloudinit, new.is_cdrom, new.is_new) == ("local", None, True, True, True)
    there = parse_drive("scsi1", DRIVE)
    assert (there.storage, str(there.volume), there.cloudinit, there.is_cdrom) == (None, MEDIUM, True, True)


@pytest.mark.parametrize(("key", "text"), [("virtio0", "local:cloudinit"), ("ide0", f"{MEDIUM},media=disk")])
def test_where_it_cannot_be(key: str, text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_drive(key, text)
    assert list(caught.value.errors) == [key]


@pytest.mark.parametrize("delete", [True, False])
def test_a_medium_goes_with_its_drive_and_is_no_unused_disk(delete: bool) -> None:
    config = GuestConfig(options={"ide2": DRIVE, "scsi0": "local:100/vm-100-disk-0.raw,size=1G"})
    wanted = {} if delete else {"ide2": "none,media=cdrom"}
    after, removed = applied(100, config.with_pending(wanted, {"ide2": False} if delete else {}), "ide2")
    assert removed == [MEDIUM]
    assert not [key for key in after.options if key.startswith("unused")]


def test_a_medium_that_never_came_to_be_used_goes_too() -> None:
    config = GuestConfig(options={"scsi0": "local:100/vm-100-disk-0.raw,size=1G"}).with_pending({"ide2": DRIVE}, {})
    after = config.revert(["ide2"])
    assert keep_volumes(100, config, after) == after
    assert lost_media(100, config, after) == [MEDIUM]
    assert lost_media(100, config, config) == []


def test_name_servers_that_a_guest_could_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(cloudinit, "_RESOLVER", file)
    assert cloudinit.host_nameservers() == ()
    lines = [
        "# a comment",
        "nameserver 127.0.0.53",
        "nameserver 192.0.2.53",
        "nameserver fe80::1%eth0",
        "nameserver ::1",
    ]
    file.write_text("\n".join([*lines, "nameserver 2001:db8::53", "nameserver nonsense", "nameserver", "search lan"]))
    assert cloudinit.host_nameservers() == ("192.0.2.53", "2001:db8::53")


def test_the_notes_hold_no_hash() -> None:
    told = cloudinit.telling({"cipassword": "$6$salt$hash", "ciuser": "anna", "cores": "2"})
    assert told["ciuser"] == "anna"
    assert "hash" not in told["cipassword"]
    assert "cores" not in told
