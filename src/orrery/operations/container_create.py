# SPDX-License-Identifier: AGPL-3.0-or-later
"""Creating a container: its number is taken, volumes are made, the template is unpacked, its inside is written.

Last of all the configuration is written whole.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from orrery.drivers.lxc.setup import detect
from orrery.drivers.lxc.tree import Tree
from orrery.drivers.storage.copy_tree import copy_tree
from orrery.drivers.storage.unpack_tree import unpack
from orrery.errors import NotFound, NotSupported, OrreryError, ParameterError
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.container_properties import CONTAINER_NIC
from orrery.model.guest import GuestConfig
from orrery.operations.container_mounts import (
    ROOT_SIZE,
    check_mount,
    make_mount,
    mounted,
    names_volume,
    own_mounts,
    place_of,
    read_mount,
)
from orrery.operations.container_power import StartContainer, discard_container
from orrery.operations.container_setup import wishes, write_inside
from orrery.operations.context import NodeContext
from orrery.operations.guest_lock import guest_lock
from orrery.operations.guest_number import check_new, enter_pool, new_mac, reserve
from orrery.operations.image_records import oci_options
from orrery.store.guests import write_guest
from orrery.system import kernel, mounts
from orrery.system.mounts import ContainerMount, Folder
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation

DEFAULT_STORAGE = "local"


@operation
@dataclass(frozen=True)
class CreateContainer:
    """Creates container `vmid` from the volume `template` with validated, canonical `options`.

    `storage` is where the root lies when the options do not say. `password_hash` (crypt(5)) and `ssh_keys` are root's.
    It enters `pool`, and is started if asked. `bwlimit` of unpacking in KiB/s.
    """

    kind: ClassVar[str] = "vzcreate"

    vmid: int
    options: dict[str, str] = field(default_factory=dict)
    template: str = ""
    storage: str | None = None
    password_hash: str | None = field(default=None, metadata={"secret": True})
    ssh_keys: str | None = None
    pool: str | None = None
    start: bool = False
    ignore_unpack_errors: bool = False
    bwlimit: int | None = None

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def wanted(self) -> dict[str, str]:
        """The options with a root file system in any case."""
        root = f"{self.storage or DEFAULT_STORAGE}:{ROOT_SIZE}"
        return {"rootfs": root, **self.options}

    def check(self, ctx: NodeContext) -> None:
        """Raises `AlreadyExists`, `NotFound` for the pool, or `ParameterError` for volumes that cannot be."""
        check_new(ctx, self.vmid, self.pool)
        check_template(ctx, self.template)
        if self.ignore_unpack_errors:
            raise NotSupported("'ignore-unpack-errors' is not supported: an archive is unpacked whole or not at all")
        options = self.wanted()
        for key, text in options.items():
            if names_volume(key):
                check_mount(ctx, self.vmid, key, text)
        root = read_mount("rootfs", options["rootfs"])
        if root.new is None:
            raise ParameterError({"rootfs": "the root of a new container is a new volume: STORAGE:SIZE in GiB"})

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Makes the container; a failure leaves neither volume nor number behind."""
        self.check(ctx)
        reserved, revision = reserve(ctx, task, self.vmid, "lxc")
        wanted = {**oci_options(ctx, self.template), **self.wanted()}
        options = complete(wanted, self.vmid, ctx)
        for key in sorted(key for key in wanted if names_volume(key)):
            options[key] = make_mount(ctx, task, self.vmid, key, wanted[key])
        config = self._fill(ctx, task, GuestConfig(options=options))
        enter_pool(ctx, task, self.vmid, self.pool)
        task.step("configuration")
        write_guest(ctx.store, replace(reserved, config=config), revision)
        task.commit()
        if self.start:
            start_new(ctx, task, self.vmid)

    def _fill(self, ctx: NodeContext, task: TaskHandle, config: GuestConfig) -> GuestConfig:
        """Unpacks the template into the new root and writes the inside; the configuration with what was found out."""
        storage, name = ctx.storages.volume(self.template)
        archive = storage.path(name)
        task.step("unpack")
        whole = own_mounts(ctx, config.options)
        root_alone = {"rootfs": whole["rootfs"]}
        with mounted(ctx, root_alone) as root:
            task.log(f"unpacking {self.template}")
            unpack(
                archive,
                root,
                progress=lambda done, total: task.progress(done, total, "bytes", "unpack"),
                log=task.log,
                rate=None if self.bwlimit is None else self.bwlimit * 1024,
            )
            if whole == root_alone:
                return self._furnish(task, config, root)
            for mount in whole.values():
                if mount.target != "/":
                    distribute(ctx, task, root, mount)
        with mounted(ctx, whole) as root:
            return self._furnish(task, config, root)

    def _furnish(self, task: TaskHandle, config: GuestConfig, root: Path) -> GuestConfig:
        if "ostype" not in config.options:
            with Tree(root) as tree:
                config = config.with_options({"ostype": detect(tree)})
            task.log(f"it is a container of type '{config.options['ostype']}'")
        task.step("set-up")
        setup = wishes(self.vmid, config, fresh=True, password_hash=self.password_hash, keys=self.ssh_keys)
        write_inside(root, setup, task.warn)
        return config


def start_new(ctx: NodeContext, task: TaskHandle, vmid: int) -> None:
    """Starts a container that was created just now. If it does not start that is a warning, and leaves no trace."""
    try:
        StartContainer(vmid).start(ctx, task, prepared=True)
    except OrreryError as error:
        discard_container(ctx, task.log, vmid=vmid)
        task.warn(f"the container was created, but could not be started: {error.message}")


def distribute(ctx: NodeContext, task: TaskHandle, root: Path, mount: ContainerMount) -> None:
    """Copies what the template has where a volume will be mounted into that volume; for use within `mounted`."""
    with Tree(root) as tree:
        if not tree.is_dir(mount.target) or not tree.list(mount.target):
            return
    task.log(f"{mount.key}: copying what the template has in '{mount.target}'")
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        held = kernel.open_inside(top, mount.target, os.O_PATH | os.O_DIRECTORY)
        try:
            part = Folder(Path(f"/proc/self/fd/{held}"), recursive=False)
            old = mounts.assemble({"rootfs": ContainerMount("rootfs", part)}, place_of(ctx, "old"))
        finally:
            os.close(held)
    finally:
        os.close(top)
    copy_tree(old, mounts.assemble({"rootfs": ContainerMount("rootfs", mount.source)}, place_of(ctx, "new")))


def check_template(ctx: NodeContext, volume: str) -> None:
    """Raises `ParameterError` for what is no template."""
    try:
        storage, name = ctx.storages.volume(volume)
        found = storage.info(name)
    except NotFound as error:
        raise ParameterError({"ostemplate": error.message}) from error
    if found.content != "vztmpl":
        raise ParameterError({"ostemplate": f"'{volume}' is no template of containers"})


def complete(options: Mapping[str, str], vmid: int, ctx: NodeContext) -> dict[str, str]:
    """The options with what a new container gets by itself: a name, MAC addresses, the word that it is unprivileged."""
    result = {key: with_hwaddr(ctx, key, text) for key, text in options.items()}
    result.setdefault("hostname", f"CT{vmid}")
    result.setdefault("arch", "amd64")
    result.setdefault("unprivileged", "1")
    return result


def with_hwaddr(ctx: NodeContext, key: str, text: str) -> str:
    """A network card's option with a MAC address, drawn at random when it has none; other options as they are."""
    expanded = CONTAINER_OPTIONS.expand(key)
    if expanded is None or expanded[0] != "net":
        return text
    values = CONTAINER_NIC.parse(text, key)
    if "hwaddr" not in values:
        values["hwaddr"] = new_mac(ctx)
    return CONTAINER_NIC.print({"type": "veth", **values})
