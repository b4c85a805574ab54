# SPDX-License-Identifier: AGPL-3.0-or-later
"""What tests with real machines need: images, taps in a network of their own, and the machine's console."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.golden.qemu_cases import volumes_of

from orrery.drivers.qemu.devices import firmware
from orrery.drivers.qemu.plan import TapFds, VolumeFile
from orrery.model.devices import machine_devices
from orrery.model.guest import GuestConfig
from orrery.system import process, sockets

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100

LINUX = """\
agent: 1
boot: order=scsi0
memory: 128
name: lab
net0: virtio=BC:24:11:00:00:01,bridge=lab0
ostype: l26
scsi0: local:100/vm-100-disk-0.qcow2,size=128M
scsihw: virtio-scsi-single
serial0: socket
"""


def image(path: Path, size: int = 8 << 20) -> Path:
    """An empty disk image of the format that its name ends in; an existing file is left alone."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        process.run(["qemu-img", "create", "-q", "-f", path.suffix[1:], str(path), str(size)], timeout=30)
        path.chmod(0o600)
    return path


def volumes(config: GuestConfig, folder: Path) -> dict[str, VolumeFile]:
    """Real volumes for a configuration, made where they are missing."""
    found = volumes_of(config, folder)
    efi = machine_devices(config).efi
    for key, volume in found.items():
        if key == "efidisk0" and efi is not None:
            source = firmware.variables_template(efi.type, pre_enrolled_keys=efi.pre_enrolled_keys)
            volume.path.parent.mkdir(parents=True, exist_ok=True)
            process.run(["qemu-img", "convert", "-O", volume.format, str(source), str(volume.path)], timeout=30)
        elif volume.path.suffix == ".iso":
            volume.path.parent.mkdir(parents=True, exist_ok=True)
            volume.path.write_bytes(b"\0" * (1 << 20))
        else:
            image(volume.path)
    return found


def open_tap(name: str, queues: int = 1) -> TapFds:
    """A tap in a network namespace that holds nothing else; it goes with its descriptors."""
    opened: list[int] = []
    problem: list[OSError] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:  # for this thread alone
            problem.append(OSError(ctypes.get_errno(), "unshare"))
            return
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
        for _ in range(queues):
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            opened.append(tap)
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return TapFds(tuple(opened))


@contextlib.contextmanager
def taps(config: GuestConfig) -> Iterator[dict[int, TapFds]]:
    """Taps for all cards of a configuration that are on a bridge."""
    cards = [card for card in machine_devices(config).nics if card.bridge]
    found = {card.index: open_tap(f"lab{card.index}", card.queues or 1) for card in cards}
    try:
        yield found
    finally:
        for tap in found.values():
            for fd in tap.fds:
                os.close(fd)


def until(what: str, probe: Callable[[], object], seconds: float = 40.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end, f"not within {seconds} seconds: {what}"
        time.sleep(0.05)


def read_console(path: Path, marker: bytes, seconds: float = 60.0) -> bytes:
    """What comes from a serial socket up to a marker."""
    found = b""
    with sockets.connect_unix(path, seconds) as console:
        while marker not in found:
            try:
                piece = console.recv(4096)
            except TimeoutError:
                piece = b""
            assert piece, f"the console ended or fell silent: {found[-500:]!r}"
            found += piece
    return found


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o600)
    return target
