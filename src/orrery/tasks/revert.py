# SPDX-License-Identifier: AGPL-3.0-or-later
"""Undo actions by name, and how a task's undo records are carried out backwards.

A record is a name and plain data, journalled before the act that it undoes; so it may be carried out though the act
never happened, happened by half, or was undone before: actions are idempotent.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from orrery.errors import Failure, OrreryError

_log = structlog.get_logger("orrery.tasks")

Log = Callable[[str], None]


class UndoAction(Protocol):
    """`ctx` is the node's context, `log` writes a line to the task's log; the rest is the record's plain data."""

    def __call__(self, ctx: Any, log: Log, **arguments: Any) -> None: ...


_registered: dict[str, Callable[..., None]] = {}

Action = TypeVar("Action", bound=Callable[..., None])


def undo(name: str) -> Callable[[Action], Action]:
    """Registers the undo action `name`, such as `volume.free`. Two actions of one name raise TypeError."""

    def register(action: Action) -> Action:
        other = _registered.setdefault(name, action)
        if (other.__module__, other.__qualname__) != (action.__module__, action.__qualname__):
            raise TypeError(f"two undo actions are named {name}")
        _registered[name] = action
        return action

    return register


def known(name: str) -> bool:
    """Whether there is an undo action of this name: asked before a record is journalled."""
    return name in _registered


@dataclass(frozen=True, slots=True)
class UndoRecord:
    """What is to be undone."""

    id: int
    name: str
    arguments: dict[str, Any]


def unwind(records: Iterable[UndoRecord], ctx: Any, log: Log, done: Callable[[int], None]) -> list[UndoRecord]:
    """Carries out `records` in the given order (newest first) and tells `done` of each that is; returns the others.

    No failure keeps the remaining records from being carried out. What is not an OrreryError is a mistake in the
    program: the log of the task names it, the daemon's log tells where.
    """
    failed = []
    for record in records:
        try:
            action = _registered.get(record.name)
            if action is None:
                raise Failure("this version does not know how")
            action(ctx, log, **record.arguments)
            done(record.id)
        except OrreryError as error:
            log(f"could not undo {record.name}: {error.message}")
            failed.append(record)
        except Exception as error:  # noqa: BLE001  (the other records still have to be carried out)
            _log.exception("an undo action failed unexpectedly", action=record.name)
            log(f"could not undo {record.name}: internal error ({type(error).__name__}), see the log of the node")
            failed.append(record)
    return failed
