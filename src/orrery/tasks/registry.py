# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operations by their kind, and their way into another process and back as JSON."""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from orrery.errors import Failure, NotSupported
from orrery.tasks.operation import Operation

_registered: dict[str, type[Any]] = {}
_adapters: dict[type[Any], TypeAdapter[Any]] = {}

OperationType = TypeVar("OperationType", bound=type[Any])


def operation(cls: OperationType) -> OperationType:
    """Registers a frozen dataclass of plain data as the operation of its `kind`. Programming mistakes raise TypeError.

    Fields may be numbers, texts, booleans, None, enumerations, tuples, lists, dictionaries and dataclasses of these.
    A field with `metadata={"secret": True}` is handed to the task, but never written to the journal.
    """
    kind = getattr(cls, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise TypeError(f"{cls.__name__} has no kind")
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"{cls.__name__} is not a frozen dataclass")
    other = _registered.setdefault(kind, cls)
    if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"{cls.__name__} and {other.__name__} are both of kind {kind}")
    _registered[kind] = cls
    return cls


def lookup(kind: str) -> type[Any]:
    """The operation class of a kind. Raises NotSupported."""
    try:
        return _registered[kind]
    except KeyError:
        raise NotSupported(f"this version has no operation '{kind}'") from None


def kinds() -> Iterator[str]:
    """The kinds of all registered operations."""
    yield from sorted(_registered)


def encode(value: Operation) -> dict[str, Any]:
    """The operation's fields as JSON values."""
    return dict(_adapter(lookup(value.kind)).dump_python(value, mode="json"))


def public(value: Operation) -> dict[str, Any]:
    """The operation's fields as JSON values, without those that are secret: what the journal may keep."""
    secret = {field.name for field in dataclasses.fields(value) if field.metadata.get("secret")}  # type: ignore[arg-type]
    return {name: content for name, content in encode(value).items() if name not in secret}


def decode(kind: str, data: dict[str, Any]) -> Operation:
    """The operation of `kind` from what `encode` made of it. Raises NotSupported; Failure when data do not fit."""
    try:
        result: Operation = _adapter(lookup(kind)).validate_python(data)
    except ValidationError as error:
        raise Failure(f"the data do not fit the operation '{kind}': {error}") from error
    return result


def warm() -> int:
    """Builds every decoder, so that no task has to; returns their number."""
    for cls in _registered.values():
        _adapter(cls)
    return len(_registered)


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]
