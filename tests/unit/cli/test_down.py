# SPDX-License-Identifier: AGPL-3.0-or-later
from orrery.cli.down import Guest, places
from orrery.model.guest import GuestConfig, GuestRecord


def test_guests_end_in_the_reverse_of_their_order() -> None:
    order = {100: "1", 101: "order=2,up=5", 102: "2", 103: None}
    stored = {
        vmid: GuestRecord(vmid, "qemu", "n1", GuestConfig(options={"startup": text} if text else {}))
        for vmid, text in order.items()
    }
    running: list[Guest] = [("qemu", 100), ("lxc", 101), ("qemu", 102), ("lxc", 103), ("lxc", 104)]
    assert places(running, stored) == [
        [("lxc", 103), ("lxc", 104)],
        [("lxc", 101), ("qemu", 102)],
        [("qemu", 100)],
    ]
