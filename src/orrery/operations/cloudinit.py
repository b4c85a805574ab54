# SPDX-License-Identifier: AGPL-3.0-or-later
"""The medium from which a machine learns what it is told: made, made anew when that changes, changed while it runs.

The volume `vm-VMID-cloudinit` holds nothing that could not be made again from the options. So it is not kept in step
by care, but written anew: at every start, and after every change that reaches the guest. What the last one said is
noted beside it in the store (`/cloudinit/VMID`), so that a difference can be seen; the password's hash is not in it.
"""

import hashlib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, get_args

from orrery.drivers.storage import iso9660
from orrery.errors import Conflict, Failure, OrreryError, ParameterError
from orrery.model import cloudinit
from orrery.model.cloudinit import Section
from orrery.model.cloudinit_formats import Medium, dump, medium
from orrery.model.disks import parse_disk
from orrery.model.guest import GuestConfig
from orrery.model.machine_properties import CLOUD_INIT_FILES
from orrery.operations.context import NodeContext
from orrery.operations.drives import CLOUDINIT_SIZE, drop_volume, make_drive, parse_drive, volume_file
from orrery.operations.guest_lock import check_lock, guest_lock
from orrery.operations.guest_pending import put
from orrery.store.base import Store
from orrery.store.documents import encode_document, read_document
from orrery.store.guests import read_guest
from orrery.system import files
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo

SECTIONS: Final[tuple[Section, ...]] = get_args(Section)
LONGEST_FILE: Final = 1 << 20
"""Bytes of one file of the user's own."""

_RESOLVER: Final = Path("/etc/resolv.conf")
_LONGEST_RESOLVER: Final = 64 << 10


# --- what it says


def custom_files(ctx: NodeContext, options: Mapping[str, str]) -> dict[Section, bytes]:
    """The files that `cicustom` names. Raises `NotFound`, or `Failure` for what is no snippet or too large."""
    said = CLOUD_INIT_FILES.parse(options.get("cicustom", ""))
    return {section: _snippet(ctx, str(said[section])) for section in SECTIONS if section in said}


def _snippet(ctx: NodeContext, volume: str) -> bytes:
    storage, name = ctx.storages.volume(volume)
    if storage.info(name).content != "snippets":
        raise Failure(f"cicustom: '{volume}' is not a snippet")
    try:
        descriptor = os.open(storage.path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise files.failure(error, f"cicustom: unable to read '{volume}'") from error
    if len(content) > LONGEST_FILE:
        raise Failure(f"cicustom: '{volume}' is larger than {LONGEST_FILE >> 20} MiB")
    return content


def host_nameservers() -> tuple[str, ...]:
    """The host's name servers, as far as a guest could ask them too."""
    try:
        with _RESOLVER.open("rb") as file:
            lines = file.read(_LONGEST_RESOLVER).decode(errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for words in (line.split() for line in lines):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = ipaddress.ip_address(words[1])
            except ValueError:
                continue
            if not address.is_loopback and not address.is_link_local:
                found.append(str(address))
    return tuple(found)


def content(ctx: NodeContext, vmid: int, options: Mapping[str, str]) -> Medium:
    """The medium that the options ask for. Raises `Failure` naming what is in the way."""
    try:
        return medium(cloudinit.seed(vmid, options), custom_files(ctx, options), host_nameservers())
    except ValueError as error:
        raise Failure(f"the cloud-init medium of VM {vmid} cannot be made: {error}") from error


def part(ctx: NodeContext, vmid: int, options: Mapping[str, str], section: Section) -> str:
    """One part of it as text, without the password. Raises as `content`."""
    try:
        return dump(cloudinit.seed(vmid, options), section, custom_files(ctx, options), host_nameservers())
    except ValueError as error:
        raise Failure(f"the cloud-init medium of VM {vmid} cannot be made: {error}") from error


# --- what it said last


def _note(vmid: int) -> str:
    return f"/cloudinit/{vmid}"


def forget(ctx: NodeContext, vmid: int) -> None:
    """Drops the note of a machine that goes."""
    ctx.store.delete(_note(vmid))


@undo("cloudinit.forget")
def forget_again(ctx: NodeContext, log: Log, *, vmid: int) -> None:
    """Drops the note of a machine that did not come to be."""
    forget(ctx, vmid)


def noted(store: Store, vmid: int) -> dict[str, str] | None:
    """The options that the medium was last made from, with a fingerprint for the password; None before the first."""
    document = read_document(store, _note(vmid))
    return None if document is None else dict(document["options"])


def telling(options: Mapping[str, str]) -> dict[str, str]:
    """The options that reach the guest, with a fingerprint instead of the password's hash."""
    found = cloudinit.told(options)
    if "cipassword" in found:
        found["cipassword"] = hashlib.sha256(found["cipassword"].encode()).hexdigest()
    return found


# --- the volume


def refresh(ctx: NodeContext, task: TaskHandle, vmid: int, config: GuestConfig, *, always: bool = False) -> None:
    """Makes the medium of a machine that has a drive for it anew, `always` or when it would say something else.

    A running machine gets the new one into its drive. Raises what keeps it from being made.
    """
    key = cloudinit.drive_of(config.options)
    if key is None:
        return
    wanted = content(ctx, vmid, config.options)
    volume = str(parse_drive(key, config.options[key]).volume)
    digest = _digest(wanted)
    before = read_document(ctx.store, _note(vmid)) or {}
    if not always and (before.get("volume"), before.get("digest")) == (volume, digest):
        return
    write(ctx, volume, iso9660.image(wanted.label, wanted.files))
    task.log(f"{key}: made {volume} anew ({wanted.label})")
    if ctx.machines.find(vmid) is not None:
        text = config.options[key]
        with ctx.machines.live(vmid, config) as live:
            live.change_medium(parse_disk(key, text), volume_file(ctx, parse_drive(key, text)))
        task.log(f"{key}: medium changed")
    # Last: until the guest can see it, what it is told is still pending.
    note = {"volume": volume, "digest": digest, "options": telling(config.options)}
    ctx.store.put(_note(vmid), encode_document(note))


def _digest(wanted: Medium) -> str:
    digest = hashlib.sha256(wanted.label.encode())
    for name, data in sorted(wanted.files.items()):
        digest.update(f"\0{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def write(ctx: NodeContext, volume: str, image: bytes) -> None:
    """Puts an image into a volume's place. A kill in between leaves none, and the next start makes it."""
    if len(image) > CLOUDINIT_SIZE:
        raise Failure(
            f"what the machine is to be told takes {len(image) >> 10} KiB, and the medium has {CLOUDINIT_SIZE >> 10}; "
            "make the files of cicustom smaller"
        )
    storage, name = ctx.storages.volume(volume)
    staged = storage.staging(name)
    try:
        with staged.open("wb") as file:
            file.write(image)
            file.truncate(CLOUDINIT_SIZE)
        storage.free(name)
        storage.copy_in(staged, "raw", name, trusted=True, rate=0)
    except OSError as error:
        raise files.failure(error, f"unable to write '{volume}'") from error
    finally:
        storage.discard(staged)


# --- verbs


@operation
@dataclass(frozen=True)
class RegenerateCloudinit:
    """Makes the machine's cloud-init medium anew, also while it runs."""

    kind: ClassVar[str] = "qmcloudinit"

    vmid: int

    def subject(self) -> str:
        return str(self.vmid)

    def locks(self) -> tuple[str, ...]:
        return (guest_lock(self.vmid),)

    def check(self, ctx: NodeContext) -> None:
        """Raises `NotFound`, `Locked`, or `Failure` for machines without such a drive."""
        config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
        check_lock(config)
        if cloudinit.drive_of(config.options) is None:
            raise Failure(f"VM {self.vmid} has no cloud-init drive; add one, such as ide2=local:cloudinit")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Raises what keeps the medium from being made."""
        self.check(ctx)
        config = read_guest(ctx.store, self.vmid, kind="qemu", node=ctx.node).record.config
        task.step("regenerate")
        task.commit()
        refresh(ctx, task, self.vmid, config, always=True)


def check_move(ctx: NodeContext, config: GuestConfig, key: str, target: str, digest: str | None) -> None:
    """Raises what keeps a cloud-init drive's medium from being made on another storage instead."""
    if digest is not None and digest != config.digest():
        raise Conflict
    check_lock(config)
    if key in config.pending or key in config.pending_deletes:
        raise Failure(f"'{key}' has pending changes: apply or revert them first")
    if "images" not in ctx.storages.get(target).contents:
        raise ParameterError({"storage": f"storage '{target}' does not support content type 'images'"})


def move(ctx: NodeContext, task: TaskHandle, vmid: int, key: str, target: str, format_: str | None) -> None:
    """Makes the medium on another storage, and removes the one that it had."""
    stored = read_guest(ctx.store, vmid, kind="qemu", node=ctx.node)
    before = parse_drive(key, stored.record.config.options[key])
    asked = f"{target}:{cloudinit.DRIVE},media=cdrom" + (f",format={format_}" if format_ else "")
    text = make_drive(ctx, task, vmid, parse_drive(key, asked))
    if parse_drive(key, text).volume == before.volume:
        raise Failure("you can't move to the same storage with same format")
    task.step("switch")
    old = str(before.volume)
    task.before("guest.drop_volume", vmid=vmid, volume=old)
    stored = put(ctx, stored, stored.record.config.with_options({key: text}))
    drop_volume(ctx, task.log, vmid=vmid, volume=old)
    task.commit()
    refresh(ctx, task, vmid, stored.record.config, always=True)


def refresh_or_warn(ctx: NodeContext, task: TaskHandle, vmid: int) -> None:
    """After a change that stands already: what keeps the medium from being made is a warning."""
    try:
        refresh(ctx, task, vmid, read_guest(ctx.store, vmid, kind="qemu", node=ctx.node).record.config)
    except OrreryError as error:
        task.warn(f"the cloud-init medium is not up to date: {error.message}")
