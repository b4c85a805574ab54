# SPDX-License-Identifier: AGPL-3.0-or-later
"""What tests with real containers need: a small system made of busybox alone, and the options that start it."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orrery.drivers.lxc.driver import LxcDriver
from orrery.model.guest import GuestConfig
from orrery.system import cgroup, livemounts, process
from orrery.system.mounts import ContainerMount, Folder, LoopImage, Source
from orrery.system.process import Completed

BUSYBOX = Path("/bin/busybox")
INITTAB = "::sysinit:/bin/true\n::respawn:/bin/sleep 100000\n"
APPLETS = (
    *("sh", "cat", "chroot", "date", "dd", "df", "echo", "env", "false", "grep", "head", "id", "insmod", "ip", "kill"),
    *("ls", "mkdir", "mknod", "mount", "nproc", "poweroff", "ps", "reboot", "rm", "sleep", "stat", "touch", "true"),
    *("umount", "wc", "yes", "ping", "tail", "pidof", "seq", "tr", "init"),
)
CONFIG = {"hostname": "lab", "memory": "128", "swap": "0", "unprivileged": "1", "ostype": "unmanaged", "cores": "1"}


def make_tree(folder: Path) -> Path:
    """A system whose init is busybox's."""
    for name in ("bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "mnt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("/bin/busybox")
    (folder / "sbin/init").symlink_to("/bin/busybox")
    (folder / "etc/inittab").write_text(INITTAB)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return folder


def make_image(path: Path, tree: Path | None = None, size: int = 24 << 20) -> Path:
    """A file system, filled with a tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        handle.truncate(size)
    filled = ["-d", str(tree)] if tree else []
    process.run(["mke2fs", "-q", "-t", "ext4", "-F", *filled, str(path)], timeout=30)
    path.chmod(0o600)
    return path


@dataclass
class Lab:
    """One driver, and the folder in which its volumes lie."""

    driver: LxcDriver
    folder: Path
    logged: list[str] = field(default_factory=list)

    def tree(self, vmid: int) -> Path:
        """A container's root as a folder."""
        path = self.folder / "volumes" / str(vmid)
        return path if path.exists() else make_tree(path)

    def image(self, vmid: int) -> Path:
        """A container's root as an image."""
        path = self.folder / f"{vmid}.raw"
        return path if path.exists() else make_image(path, self.tree(vmid))

    def start(
        self,
        vmid: int,
        source: Source | None = None,
        *more: ContainerMount,
        pairs: Mapping[int, object] | None = None,
        **options: str,
    ) -> None:
        """Start a container from an image, with these options beside the usual ones; '-' leaves one out."""
        chosen = {key: value for key, value in {**CONFIG, **options}.items() if value != "-"}
        root = source or LoopImage(self.image(vmid))
        mounts = {mount.key: mount for mount in (ContainerMount("rootfs", root), *more)}
        config = GuestConfig(options=chosen)
        plan = self.driver.plan(vmid, config, mounts, pairs)  # type: ignore[arg-type]
        self.driver.launch(plan, self.logged.append)

    def run(self, vmid: int, *argv: str, **options: object) -> Completed:
        """Run a program inside."""
        return self.driver.execute(vmid, argv, timeout=60, **options)  # type: ignore[arg-type]

    def out(self, vmid: int, script: str) -> str:
        """What a shell script inside says; it must end well."""
        done = self.run(vmid, "sh", "-c", script)
        assert done.returncode == 0, (script, done)
        return done.text.strip()

    def traces(self) -> list[str]:
        """What is left of containers that have ended: groups, loop devices, mounts, run folders."""
        name = cgroup.root_group_name(self.driver.paths.root_hash)
        tops = [mount / name for mount in cgroup.hierarchies(everything=True).mounts.values()]
        found = [str(path) for top in tops if top.is_dir() for path in top.iterdir() if path.is_dir()]
        until_free = (str(path) for path in self.folder.glob("*.raw") if not livemounts.wait_unused(path))
        found += [f"loop device over {path}" for path in until_free]
        found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.folder) in line]
        return [*found, *map(str, self.driver.paths.guests_run.iterdir())]

    def folder_root(self, vmid: int) -> Folder:
        return Folder(self.tree(vmid), recursive=False)


def until(what: str, probe: Callable[[], object], seconds: float = 40.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end, f"not within {seconds} seconds: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def measured(title: str) -> Iterator[None]:
    """Print how long something took, for people."""
    begin = time.monotonic()
    yield
    print(f"{title}: {time.monotonic() - begin:.3f} s")
