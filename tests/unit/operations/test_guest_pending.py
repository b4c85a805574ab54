# SPDX-License-Identifier: AGPL-3.0-or-later
"""What becomes of volumes when options change: none is ever lost from sight, and none is named twice."""

from hypothesis import given
from hypothesis import strategies as st

from orrery.model.guest import GuestConfig
from orrery.operations.drives import owned_volumes, texts
from orrery.operations.guest_pending import applied, keep_volumes, pending_keys, without_reused

A, B = "local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.raw"


def config(**options: str) -> GuestConfig:
    return GuestConfig(options=options)


def test_a_deleted_disk_becomes_an_unused_one() -> None:
    before = config(scsi0=f"{A},size=1G").with_pending({}, {"scsi0": False})
    after, removed = applied(100, before, "scsi0")
    assert after.options == {"unused0": A}
    assert removed == []
    assert not after.has_pending()


def test_a_deleted_disk_goes_for_good_when_forced() -> None:
    before = config(scsi0=f"{A},size=1G").with_pending({}, {"scsi0": True})
    after, removed = applied(100, before, "scsi0")
    assert after.options == {}
    assert removed == [A]


def test_deleting_an_unused_disk_removes_its_volume() -> None:
    after, removed = applied(100, config(unused0=A).with_pending({}, {"unused0": False}), "unused0")
    assert after.options == {}
    assert removed == [A]


def test_a_replaced_volume_becomes_an_unused_disk() -> None:
    before = config(scsi0=f"{A},size=1G", unused0="local:100/vm-100-disk-9.raw").with_pending({"scsi0": f"{B},size=2G"})
    after, removed = applied(100, before, "scsi0")
    assert after.options["scsi0"] == f"{B},size=2G"
    assert after.options["unused1"] == A
    assert removed == []


def test_what_is_used_elsewhere_is_not_removed() -> None:
    before = config(scsi0=A, unused0=A).with_pending({}, {"unused0": True})
    after, removed = applied(100, before, "unused0")
    assert after.options == {"scsi0": A}
    assert removed == []


def test_a_reverted_new_disk_is_kept_as_an_unused_one() -> None:
    before = config().with_pending({"scsi1": f"{A},size=1G"})
    after = keep_volumes(100, before, before.revert(["scsi1"]))
    assert after.options == {"unused0": A}


def test_an_unused_disk_that_is_used_again_is_no_longer_unused() -> None:
    assert without_reused(100, config(scsi0=f"{A},size=1G", unused0=A, unused3=B)).options == {
        "scsi0": f"{A},size=1G",
        "unused3": B,
    }
    pending = config(unused0=A).with_pending({"scsi0": f"{A},size=1G"})
    again = without_reused(100, pending)
    assert again.options == {}
    assert keep_volumes(100, again, again.revert(["scsi0"])).options == {"unused0": A}


def test_other_guests_volumes_and_media_are_not_ours() -> None:
    found = owned_volumes(
        100, ["local:101/vm-101-disk-0.raw", "local:iso/a.iso,media=cdrom", "/dev/sda", "none", f"file={A},size=1G"]
    )
    assert found == [A]


keys = st.sampled_from(["scsi0", "scsi1", "virtio0", "unused0", "unused3", "memory"])
volumes = st.integers(0, 5).map(lambda number: f"local:100/vm-100-disk-{number}.raw")


@given(st.dictionaries(keys, volumes), st.dictionaries(keys, volumes), st.dictionaries(keys, st.booleans()))
def test_no_volume_is_lost(options: dict[str, str], wanted: dict[str, str], deletes: dict[str, bool]) -> None:
    """After everything pending took effect, each volume is named by the configuration or was removed on purpose."""
    start = GuestConfig(options=options).with_pending(wanted, deletes)
    everything = set(owned_volumes(100, texts(start)))
    now, gone = start, set[str]()
    for key in pending_keys(start):
        now, removed = applied(100, now, key)
        gone |= set(removed)
    assert not now.has_pending()
    named = set(owned_volumes(100, texts(now)))
    assert named | gone == everything
    assert not named & gone
