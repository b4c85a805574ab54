# SPDX-License-Identifier: AGPL-3.0-or-later
"""The demonstration guest, booted for real on an emulated processor behind QEMU's user-mode network."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orrery.demo.image import Prepared

pytestmark = pytest.mark.guest

BOOT_SECONDS = 90
MEBIBYTE = 1 << 20


class Wire:
    """A socket of JSON lines: QEMU's monitor or the agent in the guest."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        eventually(lambda: self._connect(path), 10)
        self._lines = self._socket.makefile("rw")

    def _connect(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            self._socket.connect(str(path))
            return True
        return False

    def line(self) -> dict[str, Any]:
        text = self._lines.readline()
        return json.loads(text) if text else {"closed": True}

    def ask(self, command: str, **arguments: Any) -> Any:
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            reply = self.line()
            assert "error" not in reply, reply
            assert "closed" not in reply, f"{command}: the other side has gone"
            if "return" in reply:
                return reply["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def eventually(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Guest:
    """One running guest: what it prints, its monitor, its agent, a shell."""

    def __init__(self, folder: Path, image: Prepared, disk: list[str], nic: str, size: int | None) -> None:
        self.folder = folder
        self.port = free_port()
        overlay = folder / "disk.qcow2"
        backing = ["-b", str(image.image), "-F", "qcow2"]
        grown = [str(size)] if size else []
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(overlay), *grown], check=True)
        command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256", "-nodefaults"]
        command += ["-display", "none", "-serial", f"file:{folder}/serial", "-drive", f"if=none,id=d0,file={overlay}"]
        command += [*disk, "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", nic]
        command += ["-device", "pcie-root-port,id=slot1,slot=1", "-device", "pcie-root-port,id=slot2,slot=2"]
        command += [
            "-device",
            "virtio-serial-pci",
            "-chardev",
            f"socket,id=agent,path={folder}/agent,server=on,wait=off",
        ]
        command += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        command += ["-qmp", f"unix:{folder}/monitor,server=on,wait=off"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=(folder / "stderr").open("w"))
        self.password_file = image.password_file
        self.monitor = Wire(folder / "monitor")
        assert "QMP" in self.monitor.line()
        self.monitor.ask("qmp_capabilities")
        self.agent = Wire(folder / "agent")

    @property
    def printed(self) -> str:
        file = self.folder / "serial"
        return file.read_text(errors="replace") if file.exists() else ""

    def shell(self, script: str) -> str:
        command = ["sshpass", "-f", str(self.password_file), "ssh", "-q", "-p", str(self.port)]
        command += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "root@127.0.0.1", script]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def close(self) -> None:
        self.monitor.close()
        self.agent.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def booted(folder: Path, image: Prepared, disk: list[str], nic: str, size: int | None = None) -> Iterator[Guest]:
    guest = Guest(folder, image, disk, nic, size)
    try:
        eventually(lambda: "READY ip 10.0.2.15" in guest.printed, BOOT_SECONDS)
        yield guest
    finally:
        guest.close()


VIRTIO_DISK = ["-device", "virtio-blk-pci,drive=d0"]


def test_the_guest_does_what_a_machine_does(tmp_path: Path, demo_image: Prepared) -> None:
    size = 512 * MEBIBYTE
    with booted(tmp_path, demo_image, VIRTIO_DISK, "virtio-net-pci,netdev=n0", size) as guest:
        monitor, agent = guest.monitor, guest.agent

        assert guest.shell("id -u").strip() == "0"
        assert agent.ask("guest-ping") == {}
        assert agent.ask("guest-get-osinfo")["id"] == "orrery-demo"
        assert {card["name"] for card in agent.ask("guest-network-get-interfaces")} == {"lo", "eth0"}
        assert agent.ask("guest-fsfreeze-freeze") == 1
        assert agent.ask("guest-fsfreeze-thaw") == 1

        # its root file system has taken the whole of a disk that was larger than the image
        root = next(row for row in agent.ask("guest-get-fsinfo") if row["mountpoint"] == "/")
        assert root["total-bytes"] > 0.8 * size

        # a disk that grows while it runs
        monitor.ask("block_resize", device="d0", size=2 * size)
        eventually(lambda: int(guest.shell("cat /sys/block/vda/size")) * 512 == 2 * size, 10)

        # a disk and a network card that are plugged, and leave again
        monitor.ask("blockdev-add", driver="null-co", **{"node-name": "extra", "size": 64 * MEBIBYTE})
        monitor.ask("device_add", driver="virtio-blk-pci", id="disk1", drive="extra", bus="slot1")
        monitor.ask("netdev_add", type="user", id="n1", net="10.9.8.0/24")
        monitor.ask("device_add", driver="virtio-net-pci", id="nic1", netdev="n1", bus="slot2")
        eventually(lambda: "vdb" in guest.shell("ls /sys/block"), 20)
        eventually(lambda: "10.9.8.15" in guest.shell("ip -4 addr show; true"), 40)
        monitor.ask("device_del", id="nic1")
        monitor.ask("device_del", id="disk1")
        eventually(lambda: guest.shell("ls /sys/block /sys/class/net | grep -E 'vdb|eth1' || true") == "", 30)

        # the power button
        monitor.ask("system_powerdown")
        assert guest.process.wait(timeout=40) == 0


def test_the_agent_sets_a_password_and_shuts_down(tmp_path: Path, demo_image: Prepared) -> None:
    with booted(tmp_path, demo_image, ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d0"],
                "virtio-net-pci,netdev=n0") as guest:  # fmt: skip
        new = tmp_path / "new-password"
        new.write_text("something else\n")
        guest.agent.ask("guest-set-user-password", username="root", password="c29tZXRoaW5nIGVsc2U=", crypted=False)
        guest.password_file = new
        assert "sda" in guest.shell("ls /sys/block")
        guest.agent._lines.write('{"execute": "guest-shutdown"}\n')
        guest.agent._lines.flush()
        assert guest.process.wait(timeout=40) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disk", "nic"),
    [
        (["-device", "ich9-ahci,id=sata", "-device", "ide-hd,bus=sata.0,drive=d0"], "e1000,netdev=n0"),
        (["-device", "piix3-ide,id=old", "-device", "ide-hd,bus=old.0,drive=d0"], "rtl8139,netdev=n0"),
        (["-device", "lsi53c895a", "-device", "scsi-hd,drive=d0"], "vmxnet3,netdev=n0"),
    ],
)
def test_the_general_kernel_boots_from_old_hardware(
    tmp_path: Path, general_image: Prepared, disk: list[str], nic: str
) -> None:
    with booted(tmp_path, general_image, disk, nic) as guest:
        assert guest.agent.ask("guest-ping") == {}
