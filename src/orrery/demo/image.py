# SPDX-License-Identifier: AGPL-3.0-or-later
"""Builds the demonstration guest: a bootable disk image of some 20 MB, made of Debian's packages.

A kernel, busybox, dropbear (SSH), the QEMU guest agent and the scripts in `guest/`. The guest takes an address by DHCP,
prints `READY ip ADDRESS` on its console, lets root in by SSH and console, answers the agent, obeys the power button,
takes up devices that are plugged while it runs, and at boot grows into the disk that it finds.

    python -m orrery.demo.image --output demo.qcow2
"""

import argparse
import hashlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from orrery.demo.archive import initial_ramdisk
from orrery.demo.bootdisk import BootDisk
from orrery.demo.modules import DEVICES, STORAGE, KernelModules
from orrery.demo.packages import DebianPackages
from orrery.demo.tree import add_programs, find, overlay, skeleton
from orrery.drivers.images.bootdisk import MEBIBYTE
from orrery.errors import OrreryError
from orrery.system.files import FileLock, sync_dir, write_atomic
from orrery.system.process import run

# Debian's kernel for clouds unpacks fastest; the general one also knows SATA, e1000 and old SCSI controllers.
CLOUD_KERNEL = "cloud-amd64"
GENERAL_KERNEL = "amd64"
DEFAULT_SIZE = 128 * MEBIBYTE

_GUEST = Path(__file__).parent / "guest"
_PROGRAMS = ("usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/qemu-ga", "sbin/resize2fs")
_PROGRAM_PACKAGES = ("dropbear-bin", "qemu-guest-agent", "e2fsprogs")
_BUSYBOX_PACKAGE = "busybox-static"
_KERNEL_ARGUMENTS = "rw quiet loglevel=3 cryptomgr.notests memhp_default_state=online console=tty0 console=ttyS0,115200"
_TOOL_TIMEOUT = 30.0
_BUILD_TIMEOUT = 900.0


@dataclass(frozen=True, slots=True)
class Login:
    """How to get into the guest as root: a password, and public keys in the format of authorized_keys."""

    password: str
    authorized_keys: Sequence[str] = ()


def build(output: Path, *, cache: Path, login: Login, kernel: str = CLOUD_KERNEL, size: int = DEFAULT_SIZE) -> None:
    """Write the image (qcow2, mode 0600) to `output`, which appears whole or not at all.

    `cache` keeps packages between builds; builds that share it wait for each other. `size` is in bytes and a multiple
    of a MiB. Raises Failure when packages cannot be had or a tool fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock", timeout=_BUILD_TIMEOUT), tempfile.TemporaryDirectory(dir=cache) as folder:
        work = Path(folder)
        disk = _assemble(work, DebianPackages(cache), login, kernel, size)
        partial = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
        try:
            disk.write(partial, work)
            partial.chmod(0o600)
            _flush(partial)
            partial.replace(output)
            sync_dir(output.parent)
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image that is ready to use, and the file (0600) with the password of its root."""

    image: Path
    password_file: Path

    @property
    def password(self) -> str:
        return self.password_file.read_text().strip()


def prepared(cache: Path, *, kernel: str = CLOUD_KERNEL) -> Prepared:
    """The image for this version of the guest: built when it is not in the cache, with a password made up for it.

    Raises Failure as `build` does.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stem = f"guest-{kernel}-{_version()}"
    ready = Prepared(cache / f"{stem}.qcow2", cache / f"{stem}.password")
    with FileLock(cache / "prepared.lock", timeout=_BUILD_TIMEOUT):
        if not ready.image.exists():
            write_atomic(ready.password_file, f"{secrets.token_urlsafe(9)}\n".encode())
            build(ready.image, cache=cache, login=Login(ready.password), kernel=kernel)
    return ready


def _version() -> str:
    """Changes with everything that an image is made by, but for the packages' versions."""
    digest = hashlib.sha256()
    own = Path(__file__).parent
    programs = (path for path in own.glob("*.py") if path.name not in ("run.py", "template.py"))
    for path in sorted([*programs, *_GUEST.rglob("*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _assemble(work: Path, packages: DebianPackages, login: Login, kernel: str, size: int) -> BootDisk:
    kernel_package, *programs = packages.needed(kernel, _PROGRAM_PACKAGES)
    trees = packages.unpack([kernel_package, _BUSYBOX_PACKAGE, *programs])
    kernel_tree = next(tree for tree in trees if tree.name.startswith(kernel_package))
    modules = KernelModules(kernel_tree)
    busybox = find(trees, "bin/busybox")

    root = work / "root"
    skeleton(root, busybox)
    add_programs(root, trees, _PROGRAMS)
    modules.install((*STORAGE, *DEVICES), root)
    overlay(_GUEST / "root", root)
    _add_login(root, login)

    ramdisk = work / "ramdisk"
    skeleton(ramdisk, busybox)
    modules.install(STORAGE, ramdisk)
    overlay(_GUEST / "initramfs", ramdisk)

    boot = root / "boot"
    shutil.copy(kernel_tree / "boot" / f"vmlinuz-{modules.version}", boot / "vmlinuz")
    (boot / "initrd").write_bytes(initial_ramdisk(ramdisk))
    return BootDisk(root, "/boot/vmlinuz", "/boot/initrd", str(uuid.uuid4()), _KERNEL_ARGUMENTS, size)


def _add_login(root: Path, login: Login) -> None:
    command = ["openssl", "passwd", "-6", "-stdin"]
    hashed = run(command, input=f"{login.password}\n".encode(), timeout=_TOOL_TIMEOUT).text.strip()
    write_atomic(root / "etc/shadow", f"root:{hashed}:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n".encode())
    (root / "etc/dropbear").mkdir(mode=0o700)
    if login.authorized_keys:
        (root / "root/.ssh").mkdir(mode=0o700)
        text = "".join(f"{key.strip()}\n" for key in login.authorized_keys)
        write_atomic(root / "root/.ssh/authorized_keys", text.encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> int:
    """The command line; a random password is printed, a given one is not."""
    parser = argparse.ArgumentParser(
        prog="orrery.demo.image", description="Build the demonstration guest's disk image."
    )
    parser.add_argument("--output", type=Path, required=True, help="where to write the qcow2 image")
    parser.add_argument("--cache", type=Path, default=Path("build/demo"), help="folder for packages (%(default)s)")
    parser.add_argument("--password-file", type=Path, help="file with root's password; without it one is made up")
    parser.add_argument("--authorized-keys", type=Path, help="file with public keys that may log in as root")
    parser.add_argument("--kernel", choices=(CLOUD_KERNEL, GENERAL_KERNEL), default=CLOUD_KERNEL)
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE // MEBIBYTE, help="disk size in MiB (%(default)s)")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given: Path | None = arguments.password_file
    keys: Path | None = arguments.authorized_keys
    try:
        password = given.read_text().splitlines()[0] if given else secrets.token_urlsafe(9)
        lines = [line for line in keys.read_text().splitlines() if line.strip()] if keys else []
        login = Login(password, lines)
        build(
            arguments.output.absolute(),
            cache=arguments.cache.absolute(),
            login=login,
            kernel=arguments.kernel,
            size=arguments.size * MEBIBYTE,
        )
    except (OrreryError, OSError, IndexError) as error:
        print(f"cannot build the demonstration guest: {error}", file=sys.stderr)
        return 1
    print(f"image: {arguments.output}")
    print("user: root")
    if not given:
        print(f"password: {password}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
