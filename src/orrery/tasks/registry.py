# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operations by their kind, and their way into another process and back as JSON."""

import dataclasses
import enum
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from orrery.errors import Failure, NotSupported
from orrery.tasks.operation import Operation

_registered: dict[str, type[Any]] = {}

OperationType = TypeVar("OperationType", bound=type[Any])


def operation(cls: OperationType) -> OperationType:
    """Registers a frozen dataclass of plain data as the operation of its `kind`. Programming mistakes raise TypeError.

    Fields may be numbers, texts, booleans, None, enumerations, tuples, lists, dictionaries and dataclasses of these.
    A field with `metadata={"secret": True}` is handed to the task, but never written to the journal. Kinds are words of
    the wire, and some mean different operations on different things: all but one of those have a name of their own,
    the class variable `registered_as`.
    """
    kind = getattr(cls, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise TypeError(f"{cls.__name__} has no kind")
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"{cls.__name__} is not a frozen dataclass")
    name = name_of(cls)
    other = _registered.setdefault(name, cls)
    if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"{cls.__name__} and {other.__name__} are both of kind {name}; one needs `registered_as`")
    _registered[name] = cls
    return cls


def name_of(value: Operation | type[Any]) -> str:
    """The name by which an operation is found again: its kind, unless it has a name of its own."""
    return str(getattr(value, "registered_as", value.kind))


def lookup(name: str) -> type[Any]:
    """The operation class of that name. Raises NotSupported."""
    try:
        return _registered[name]
    except KeyError:
        raise NotSupported(f"this version has no operation '{name}'") from None


def kinds() -> Iterator[str]:
    """The names of all registered operations."""
    yield from sorted(_registered)


def encode(value: Operation) -> dict[str, Any]:
    """The operation's fields as JSON values."""
    lookup(name_of(value))
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}  # type: ignore[arg-type]


def public(value: Operation) -> dict[str, Any]:
    """The operation's fields as JSON values, without those that are secret: what the journal may keep."""
    secret = {field.name for field in dataclasses.fields(value) if field.metadata.get("secret")}  # type: ignore[arg-type]
    return {name: content for name, content in encode(value).items() if name not in secret}


def decode(kind: str, data: dict[str, Any]) -> Operation:
    """The operation of `kind` from what `encode` made of it. Raises NotSupported; Failure when data do not fit."""
    try:
        result: Operation = _restored(lookup(kind), data)
    except (TypeError, ValueError) as error:
        raise Failure(f"the data do not fit the operation '{kind}': {error}") from error
    return result


def warm() -> int:
    """Reads the types of every operation's fields, so that no task has to; returns their number."""
    for cls in _registered.values():
        _hints(cls)  # type: ignore[arg-type]
    return len(_registered)


# Why not pydantic, which reads everything else: the zygote would carry seven megabytes of it for these few lines.


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _restored(hint: Any, value: Any) -> Any:
    """A JSON value as what the type says. Raises TypeError or ValueError when it is none."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _restored_union(parts, value)
    if origin in (list, tuple):
        _require(isinstance(value, list | tuple), hint, value)
        return origin(_restored(parts[0], each) for each in value)
    if origin is dict:
        _require(isinstance(value, dict), hint, value)
        return {key: _restored(parts[1], each) for key, each in value.items()}
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, dict), hint, value)
        hints = _hints(hint)  # type: ignore[arg-type]
        _require(value.keys() <= hints.keys(), hint, value)
        return hint(**{name: _restored(hints[name], each) for name, each in value.items()})  # type: ignore[operator]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole if hint is int else isinstance(value, hint) or (hint is float and whole), hint, value)
    return value


def _restored_union(parts: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        _require(types.NoneType in parts, parts, value)
        return None
    faults = []
    for part in parts:
        if part is not types.NoneType:
            try:
                return _restored(part, value)
            except (TypeError, ValueError) as error:
                faults.append(str(error))
    raise TypeError("; ".join(faults))


def _require(fits: bool, hint: Any, value: Any) -> None:
    if not fits:
        raise TypeError(f"a value of type {type(value).__name__} where {getattr(hint, '__name__', hint)} is meant")
