# SPDX-License-Identifier: AGPL-3.0-or-later
"""The configuration of a guest over the API, whatever its family: reading it, what is pending, judging a change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.guestfamily import GuestFamily
from orrery.api.guestrights import check_options
from orrery.api.manners import Format, ListOf
from orrery.api.parameters import Boolean, Digest, GuestParams
from orrery.errors import Failure, NotFound, NotSupported, ParameterError
from orrery.model.guest import GuestConfig
from orrery.model.options import cluster_options
from orrery.store.documents import read_document
from orrery.store.guests import StoredGuest, read_guest
from orrery.tasks.operation import Operation

AUDIT = Perm("/vms/{vmid}", ("VM.Audit",))
DISK = Perm("/vms/{vmid}", ("VM.Config.Disk",))

SYNCHRONOUS_SECONDS = 30
"""How long a synchronous change may take before its client is told to look at the task instead."""


class ReadConfig(GuestParams):
    """Which configuration."""

    current: Boolean = Field(default=False, description="What holds now, without what is pending.")
    snapshot: (
        Annotated[str, Format("pve-configid", max_length=40, doc="The configuration of this snapshot.")] | None
    ) = None


class ChangeExtras(GuestParams):
    """What a change takes besides the guest's options."""

    delete: Annotated[list[str], ListOf(Format("pve-configid"), doc="Options to remove.")] = Field(default=[])
    revert: Annotated[list[str], ListOf(Format("pve-configid"), doc="Options whose pending change to drop.")] = Field(
        default=[]
    )
    digest: Digest | None = None


@dataclass(frozen=True)
class Change:
    """A change after every judgement of it: options to set, in canonical text, and to delete."""

    options: dict[str, str]
    deletes: tuple[str, ...]
    reverts: tuple[str, ...]


def stored_guest(call: Call, family: GuestFamily, vmid: int) -> StoredGuest:
    """A guest of this family on this node. Raises `NotFound`."""
    services = call.services
    return read_guest(services.store, vmid, kind=family.kind, node=services.node)


def config_of(call: Call, family: GuestFamily, vmid: int) -> GuestConfig:
    """Its configuration. Raises `NotFound`."""
    return stored_guest(call, family, vmid).record.config


def checked_options(call: Call, family: GuestFamily, options: Mapping[str, str]) -> dict[str, str]:
    """Options in canonical form. Raises `ParameterError`, or `NotSupported` naming what is not acted on yet."""
    style = cluster_options(read_document(call.services.store, "/cluster/options") or {})
    canonical = family.validate(options, style)
    if refused := family.unsupported(canonical):
        raise NotSupported("; ".join(refused[key] for key in sorted(refused)))
    return canonical


def refuse_faults(faults: Mapping[str, str]) -> None:
    """Raises `ParameterError` when there are any."""
    if faults:
        raise ParameterError(dict(faults))


def shown_config(call: Call, family: GuestFamily, p: ReadConfig) -> dict[str, Any]:
    """The configuration as it will be at the next start, as it is now, or as a snapshot has it; with its digest."""
    config = config_of(call, family, p.vmid)
    digest = config.digest()
    if p.snapshot is not None:
        if p.snapshot not in config.snapshots:
            raise NotFound(f"snapshot '{p.snapshot}' does not exist")
        section = config.snapshots[p.snapshot]
        config = GuestConfig(options=section.options, description=section.description)
    elif not p.current:
        config = config.apply_pending()
    shown = {key: family.table.reply_value(key, text) for key, text in config.current().items()}
    return {**shown, "digest": digest}


def pending_rows(call: Call, family: GuestFamily, vmid: int) -> list[dict[str, Any]]:
    """Every option with its current value, and what waits for the next start."""
    config = config_of(call, family, vmid)
    current = config.current()
    shown = family.table.reply_value
    rows: list[dict[str, Any]] = []
    for key in sorted({*current, *config.pending, *config.pending_deletes}):
        row: dict[str, Any] = {"key": key}
        if key in current:
            row["value"] = shown(key, current[key])
        if key in config.pending:
            row["pending"] = shown(key, config.pending[key])
        if key in config.pending_deletes:
            row["delete"] = 2 if config.pending_deletes[key] else 1
        rows.append(row)
    return [*rows, {"key": "digest", "value": config.digest()}]


def snapshot_rows(call: Call, family: GuestFamily, vmid: int) -> list[dict[str, Any]]:
    """The guest's snapshots, and last its present state, as clients expect it."""
    config = config_of(call, family, vmid)
    rows: list[dict[str, Any]] = []
    for name, section in sorted(config.snapshots.items()):
        row: dict[str, Any] = {"name": name, "description": section.description}
        if section.taken is not None:
            row["snaptime"] = section.taken
        if section.parent is not None:
            row["parent"] = section.parent
        if "vmstate" in section.options:
            row["vmstate"] = 1
        rows.append(row)
    current: dict[str, Any] = {
        "name": "current",
        "description": "You are here!",
        "digest": config.digest(),
        "running": int(call.services.collector.sample(vmid) is not None),
    }
    if parent := config.get("parent"):
        current["parent"] = parent
    return [*rows, current]


def judged_change(
    call: Call, family: GuestFamily, config: GuestConfig, p: Any, aliases: Mapping[str, str] | None = None
) -> Change:
    """The change that a request (of `ChangeExtras` with options) asks for, after every judgement of its parts.

    `aliases`: other names of options that `delete` may use. Raises `ParameterError`, `NotSupported`, `Forbidden`.
    """
    options = checked_options(call, family, p.options())
    deletes = [(aliases or {}).get(key, key) for key in p.delete]
    if unknown := [key for key in deletes if family.table.find(key) is None and config.get(key) is None]:
        raise ParameterError({"delete": f"unknown option '{unknown[0]}'"})
    if both := sorted({*deletes} & {*options}):
        raise ParameterError({"delete": f"you can't use '{both[0]}' and -delete {both[0]} at the same time"})
    changes = {**options, **dict.fromkeys(deletes)}
    check_options(call, family, p.vmid, None, changes, config.current())
    check_options(call, family, p.vmid, None, dict.fromkeys(p.revert), {**config.current(), **config.pending})
    refuse_faults(family.fixed(changes, config.current()))
    return Change(options, tuple(deletes), tuple(p.revert))


def changed_options(config: GuestConfig, change: Change) -> dict[str, str]:
    """All options as they will be after a change."""
    after = {**config.apply_pending().options, **change.options}
    return {key: text for key, text in after.items() if key not in change.deletes}


def finish(call: Call, operation: Operation) -> None:
    """Carries out a change and waits for its end. Raises `Failure` naming the task when it takes too long."""
    upid = call.start(operation, background_delay=SYNCHRONOUS_SECONDS)
    if upid is not None:
        raise Failure(f"the change is not done after {SYNCHRONOUS_SECONDS} seconds and goes on; look at task {upid}")
