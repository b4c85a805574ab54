# SPDX-License-Identifier: AGPL-3.0-or-later
"""How single values come over the wire: which texts are a boolean, a number, a list, and what is said of the others.

A manner annotates the Python type that a handler sees: `Annotated[int, Int(minimum=1)]`. It parses the wire's value,
raises `Refused` with the text that clients know, and describes itself as a JSON schema.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from orrery.model import formats


class Refused(ValueError):
    """The value is not what the manner takes; the message is the text for the parameter."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """Base: how one kind of value is read. `requires` names another parameter that must come along."""

    kind: ClassVar[str] = "string"
    """The JSON schema's type."""

    requires: str | None = None
    doc: str = ""

    def parse(self, value: Any) -> Any:
        """The value that the handler sees. Raises `Refused`."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON schema of the value as it is on the wire."""
        return {"type": self.kind}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> Any:
            try:
                return self.parse(value)
            except Refused as refused:
                raise PydanticCustomError("wire", "{text}", {"text": str(refused)}) from refused

        return core_schema.no_info_plain_validator_function(validate)


def wrong_type(kind: str, value: Any) -> Refused:
    """The refusal of a value that is not of the type `kind`."""
    got = "ARRAY" if isinstance(value, list) else "HASH" if isinstance(value, dict) else f"'{plain(value)}'"
    return Refused(f"type check ('{kind}') failed - got {got}")


def plain(value: Any) -> str:
    """A scalar in its wire form: booleans are 1 and 0."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


@dataclass(frozen=True, kw_only=True)
class Flag(Manner):
    """A boolean: "1" or "0", in JSON also true and false."""

    kind: ClassVar[str] = "boolean"

    def parse(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str | int) and str(value) in ("0", "1"):
            return str(value) == "1"
        raise wrong_type("boolean", value)


_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class _Bounded(Manner):
    minimum: float | None = None
    maximum: float | None = None

    def bounded(self, value: float) -> None:
        if self.minimum is not None and value < self.minimum:
            raise Refused(f"value must have a minimum value of {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise Refused(f"value must have a maximum value of {self.maximum}")

    def schema(self) -> dict[str, Any]:
        limits = {"minimum": self.minimum, "maximum": self.maximum}
        return super().schema() | {name: limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class Int(_Bounded):
    """A whole number in decimal digits."""

    kind: ClassVar[str] = "integer"

    def parse(self, value: Any) -> int:
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not _INTEGER.fullmatch(text):
            raise wrong_type("integer", value)
        self.bounded(int(text))
        return int(text)


@dataclass(frozen=True)
class Real(_Bounded):
    """A decimal number."""

    kind: ClassVar[str] = "number"

    def parse(self, value: Any) -> float:
        text = str(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not _NUMBER.fullmatch(text):
            raise wrong_type("number", value)
        self.bounded(float(text))
        return float(text)


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Text(Manner):
    """A string; `pattern` must match all of it, `format` is a name in `orrery.model.formats`."""

    format: str | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None

    def parse(self, value: Any) -> str:
        if isinstance(value, list | dict):
            raise wrong_type("string", value)
        text = plain(value)
        if self.min_length is not None and len(text) < self.min_length:
            raise Refused(f"value must be at least {self.min_length} characters long")
        if self.max_length is not None and len(text) > self.max_length:
            raise Refused(f"value may only be {self.max_length} characters long")
        if _CONTROL.search(text):
            raise Refused("invalid format - value contains control characters")
        if self.format is not None:
            check_format(self.format, text)
        if self.pattern is not None and not re.fullmatch(self.pattern, text):
            raise Refused("value does not match the regex pattern")
        return text

    def schema(self) -> dict[str, Any]:
        limits = {
            "format": self.format,
            "pattern": self.pattern and f"^(?:{self.pattern})$",
            "minLength": self.min_length,
            "maxLength": self.max_length,
        }
        return super().schema() | {name: limit for name, limit in limits.items() if limit is not None}


def check_format(name: str, text: str) -> None:
    """Raises `Refused` when the text is not of the named format."""
    try:
        formats.check(name, text)
    except ValueError as wrong:
        raise Refused(f"invalid format - {wrong}") from wrong


def Format(  # noqa: N802 - reads as a type in the annotations where it stands
    name: str, *, max_length: int | None = None, requires: str | None = None, doc: str = ""
) -> Text:
    """A string of a named format."""
    return Text(format=name, max_length=max_length, requires=requires, doc=doc)


def Pattern(  # noqa: N802 - as above
    regex: str, *, max_length: int | None = None, requires: str | None = None, doc: str = ""
) -> Text:
    """A string that a regular expression matches as a whole."""
    return Text(pattern=regex, max_length=max_length, requires=requires, doc=doc)


@dataclass(frozen=True, init=False)
class Enum(Manner):
    """One of a few words."""

    values: tuple[str, ...]

    def __init__(self, *values: str, requires: str | None = None, doc: str = "") -> None:
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "requires", requires)
        object.__setattr__(self, "doc", doc)

    def parse(self, value: Any) -> str:
        if isinstance(value, list | dict):
            raise wrong_type("string", value)
        text = plain(value)
        if text not in self.values:
            raise Refused(f"value '{text}' does not have a value in the enumeration '{', '.join(self.values)}'")
        return text

    def schema(self) -> dict[str, Any]:
        return super().schema() | {"enum": list(self.values)}


_SEPARATORS = re.compile(r"[,;\s\0]+")


def split_list(text: str) -> list[str]:
    """The items of a list in one string: commas, semicolons, white space and NUL separate."""
    return [item for item in _SEPARATORS.split(text) if item]


@dataclass(frozen=True)
class ListOf(Manner):
    """A list in one string (the wire's `*-list` formats); the handler sees a list of texts."""

    item: Manner = Text()
    max_length: int | None = None

    def parse(self, value: Any) -> list[Any]:
        if isinstance(value, dict):
            raise wrong_type("string", value)
        text = ",".join(map(plain, value)) if isinstance(value, list) else plain(value)
        if self.max_length is not None and len(text) > self.max_length:
            raise Refused(f"value may only be {self.max_length} characters long")
        return [self.item.parse(item) for item in split_list(text)]

    def schema(self) -> dict[str, Any]:
        name = self.item.schema().get("format")
        described = super().schema() | ({"format": f"{name}-list"} if name else {})
        return described | ({"maxLength": self.max_length} if self.max_length is not None else {})


@dataclass(frozen=True)
class Array(Manner):
    """A real array; a single value counts as an array of one."""

    kind: ClassVar[str] = "array"
    item: Manner = Text()

    def parse(self, value: Any) -> list[Any]:
        if isinstance(value, dict):
            raise wrong_type("array", value)
        return [self.item.parse(item) for item in (value if isinstance(value, list) else [value])]

    def schema(self) -> dict[str, Any]:
        return super().schema() | {"items": self.item.schema()}


@dataclass(frozen=True)
class PropertyString(Manner):
    """A comma list of key=value; `options` is a schema of `orrery.model.propertystring`. The handler sees the text."""

    options: Any = None
    name: str | None = None
    """The format's name in the description."""

    def parse(self, value: Any) -> str:
        text = Text().parse(value)
        try:
            self.options.parse(text)
        except ValueError as wrong:
            raise Refused(f"invalid format - {wrong}") from wrong
        return text

    def schema(self) -> dict[str, Any]:
        return super().schema() | ({"format": self.name} if self.name else {})


Schema = Mapping[str, Any]
