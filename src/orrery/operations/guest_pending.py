# SPDX-License-Identifier: AGPL-3.0-or-later
"""How what is pending takes effect in a configuration, and what becomes of volumes that no option names any more."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from orrery.errors import Failure, OrreryError
from orrery.model.cloudinit import is_volume as is_medium
from orrery.model.guest import GuestConfig
from orrery.operations.context import NodeContext
from orrery.operations.drives import drop_volume, next_unused, owned_volumes, texts
from orrery.store.guests import StoredGuest, write_guest
from orrery.tasks.operation import TaskHandle


def put(ctx: NodeContext, stored: StoredGuest, config: GuestConfig) -> StoredGuest:
    """Writes a configuration over the one that was read, without the unused disks that it uses again."""
    record = replace(stored.record, config=without_reused(stored.record.vmid, config))
    if record == stored.record:
        return stored
    return StoredGuest(record, write_guest(ctx.store, record, stored.revision))


def without_reused(vmid: int, config: GuestConfig) -> GuestConfig:
    """The configuration without those unused disks whose volume a drive names, now or from the next start on."""
    drives = [text for key, text in [*config.options.items(), *config.pending.items()] if not is_unused(key)]
    used = owned_volumes(vmid, drives)
    again = [key for key, text in config.options.items() if is_unused(key) and text in used]
    return config.with_options({}, again) if again else config


def is_unused(key: str) -> bool:
    """Whether an option is an unused disk."""
    return key.startswith("unused")


def keep_volumes(vmid: int, before: GuestConfig, after: GuestConfig) -> GuestConfig:
    """The new configuration with every volume that it would no longer name as an unused disk.

    Not so cloud-init media (`lost_media`): they can be made again, and are old by then.
    """
    lost = [v for v in owned_volumes(vmid, texts(before)) if v not in owned_volumes(vmid, texts(after))]
    for volume in lost:
        if is_medium(volume):
            continue
        after = after.with_options({next_unused(after.options): volume})
    return after


def lost_media(vmid: int, before: GuestConfig, after: GuestConfig) -> list[str]:
    """Cloud-init media that the new configuration does not name any more."""
    left = owned_volumes(vmid, texts(after))
    return [v for v in owned_volumes(vmid, texts(before)) if is_medium(v) and v not in left]


def applied(vmid: int, config: GuestConfig, key: str) -> tuple[GuestConfig, list[str]]:
    """The configuration in which what is pending for `key` holds, and the volumes that are to be removed for good."""
    if key in config.pending:
        value = config.pending[key]
        after = replace(config.revert([key]), options={**config.options, key: value})
        return keep_volumes(vmid, config, after), lost_media(vmid, config, after)
    force = config.pending_deletes[key]
    after = config.revert([key]).with_options({}, [key])
    if force or is_unused(key):
        left = owned_volumes(vmid, texts(after))
        return after, [v for v in owned_volumes(vmid, texts(config)) if v not in left]
    return keep_volumes(vmid, config, after), lost_media(vmid, config, after)


def pending_keys(config: GuestConfig) -> list[str]:
    """Keys with something pending: deletions first, so that what is freed can be used."""
    return [*sorted(config.pending_deletes), *sorted(config.pending)]


def apply_all(ctx: NodeContext, task: TaskHandle, stored: StoredGuest) -> StoredGuest:
    """Lets everything pending take effect on a machine that does not run."""
    config = stored.record.config
    removed: list[str] = []
    for key in pending_keys(config):
        config, volumes = applied(stored.record.vmid, config, key)
        removed += volumes
    return settle(ctx, task, stored, config, removed)


ApplyLive = Callable[[NodeContext, TaskHandle, int, GuestConfig, GuestConfig, str], bool]
"""Whether the change of a key from one configuration to another has taken effect on a guest that runs."""


def apply_hot(ctx: NodeContext, task: TaskHandle, stored: StoredGuest, apply_live: ApplyLive) -> None:
    """Lets take effect on a running guest what can; what cannot stays pending, with a warning when it failed."""
    for key in pending_keys(stored.record.config):
        config = stored.record.config
        after, removed = applied(stored.record.vmid, config, key)
        try:
            if not apply_live(ctx, task, stored.record.vmid, config, after, key):
                continue
        except OrreryError as error:
            task.warn(f"{key}: hotplug problem - {error.message}; the change waits for the next start")
            continue
        stored = settle(ctx, task, stored, after, removed)


@contextmanager
def put_back_on_failure(plug_old: Callable[[], None]) -> Iterator[None]:
    """Gives the guest back what was taken out to make room for something that it does not take."""
    try:
        yield
    except OrreryError as error:
        try:
            plug_old()
        except OrreryError as second:
            raise Failure(
                f"{error.message}; and what was there before could not be put back: {second.message}"
            ) from error
        raise


def settle(
    ctx: NodeContext, task: TaskHandle, stored: StoredGuest, config: GuestConfig, removed: list[str]
) -> StoredGuest:
    """Writes a configuration, then removes the volumes that it dropped for good.

    The volumes are journalled first: a kill between writing and removing leaves none behind.
    """
    for volume in removed:
        task.before("guest.drop_volume", vmid=stored.record.vmid, volume=volume)
    stored = put(ctx, stored, config)
    for volume in removed:
        drop_volume(ctx, task.log, vmid=stored.record.vmid, volume=volume)
    return stored
