# SPDX-License-Identifier: AGPL-3.0-or-later
# ruff: noqa: PTH103, PTH120, PTH123
# Why not pathlib: see `orrery.system.kernel`.
"""A child's own view of the file system: the host's, and mounts that nobody else sees and that go with it.

The list of mounts is made by `orrery.system.mounts`. What the host unmounts later goes from the child's view too, so
that nothing of the host's is held by it; what is mounted in the view never shows on the host.

    {"kind": "image", source, target, fstype, flags, options, read_only}    a file-system image, by a loop device
    {"kind": "device", source, target, fstype, flags, options, read_only}   a file system on a block device
    {"kind": "folder", source, target, flags, recursive, read_only}         a folder or file of the host
    {"kind": "nodes", target, nodes: [[name, mode, device number, uid, gid]]}   device nodes in a tmpfs
    {"kind": "memory", target, size, mode}                                  an empty tmpfs
    {"kind": "spot", root, target, folder}      no mount: a place to mount at in a stranger's tree, made if missing
"""

import errno
import os
from typing import Any, Final

from orrery.system.kernel import (
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
    StepError,
    attach_loop,
    attributes_of,
    clone_tree,
    make_inside,
    mount,
    move_tree,
    unshare,
)

_PROBE_BYTES: Final = 65536 + 128
_MAGIC: Final = {
    "ext4": (1024 + 56, b"\x53\xef"),  # include/uapi/linux/magic.h, little endian; ext2 and ext3 mount as ext4
    "xfs": (0, b"XFSB"),
    "btrfs": (65536 + 64, b"_BHRfS_M"),
}


def show(mounts: list[dict[str, Any]]) -> None:
    """Leave the host's mount namespace for an own one, with these mounts. Raises StepError."""
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_SLAVE)
    os.umask(0o022)  # what is made on the way must be open to a container's root, whom the host does not know
    for each in mounts:
        place(each)


def place(each: dict[str, Any]) -> None:
    """Make one mount in the present namespace; its target is made where it is missing. Raises StepError."""
    target = each["target"]
    flags = each.get("flags", 0) | (MS_RDONLY if each.get("read_only") else 0)
    if each["kind"] == "folder":
        _bind(each, flags)
        return
    if each["kind"] == "spot":
        _spot(each["root"], target, folder=each["folder"])
        return
    os.makedirs(target, mode=0o755, exist_ok=True)
    match each["kind"]:
        case "image":
            _image(each, flags)
        case "device":
            fstype = each["fstype"] or _probe(each["source"])
            mount(each["source"], target, fstype, flags, each["options"] or None)
        case "nodes":
            mount("orrery", target, "tmpfs", MS_NOSUID | MS_NOEXEC, "size=1m,mode=0755")
            for name, mode, number, uid, gid in each["nodes"]:
                _node(f"{target}/{name}", mode, number, uid, gid)
        case "memory":
            options = f"size={each['size']},mode={each['mode']:o}"
            mount("orrery", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
        case kind:
            raise ValueError(kind)


def _bind(each: dict[str, Any], flags: int) -> None:
    source, target = each["source"], each["target"]
    tree = clone_tree(source, attributes_of(flags), recursive=each["recursive"])
    try:
        if os.path.isdir(source):  # noqa: PTH112
            os.makedirs(target, mode=0o755, exist_ok=True)
        elif not os.path.exists(target):  # noqa: PTH110
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        move_tree(tree, target)
    finally:
        os.close(tree)


def _spot(root: str, target: str, *, folder: bool) -> None:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(make_inside(top, target, folder=folder, links=False))
    except (StepError, OSError) as error:
        code = error.code if isinstance(error, StepError) else error.errno or errno.EIO
        raise StepError(f"make the mount point '{target}' in the container", code) from error
    finally:
        os.close(top)


def _image(each: dict[str, Any], flags: int) -> None:
    source, read_only = each["source"], each["read_only"]
    fstype = each["fstype"] or _probe(source)
    image = os.open(source, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        device, path = attach_loop(image, read_only=read_only)
    finally:
        os.close(image)
    try:
        mount(path, each["target"], fstype, flags, each["options"] or None)
    except StepError as error:
        raise StepError(f"mount '{source}'", error.code) from error
    finally:
        os.close(device)  # the mount holds it from here on, or nobody, and it goes


def _probe(path: str) -> str:
    """The file system in a file or on a device: the kinds that containers may have. Raises StepError."""
    with open(path, "rb") as handle:
        head = handle.read(_PROBE_BYTES)
    for name, (offset, magic) in _MAGIC.items():
        if head[offset : offset + len(magic)] == magic:
            return name
    raise StepError(f"find an ext4, XFS or btrfs file system in '{path}'", errno.EINVAL)


def _node(path: str, mode: int, number: int, uid: int, gid: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mknod(path, mode, number)
    os.chmod(path, mode & 0o7777)  # noqa: PTH101
    os.chown(path, uid, gid)
