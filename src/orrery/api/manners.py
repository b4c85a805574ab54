# SPDX-License-Identifier: AGPL-3.0-or-later
"""How single values come over the wire: which texts are a boolean, a number, a list, and what is said of the others.

A manner annotates the Python type that a handler sees: `Annotated[int, Int(minimum=1)]`. It parses the wire's value,
raises `Refused` with the text that clients know, and describes itself as a JSON schema.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from orrery.model import formats
from orrery.model.propertystring import PropertyString as Options
from orrery.model.textformats import split_list
from orrery.model.values import Scalar, Value


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
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e18 else repr(value)
    return str(int(value)) if isinstance(value, bool) else str(value)


@dataclass(frozen=True, kw_only=True)
class Flag(Manner):
    """A boolean: "1" or "0", in JSON also true and false."""

    kind: ClassVar[str] = "boolean"

    def parse(self, value: Any) -> bool:
        if isinstance(value, list | dict | float):
            raise wrong_type("boolean", value)
        return bool(_checked(Scalar(type="boolean"), plain(value)))


@dataclass(frozen=True)
class Int(Manner):
    """A whole number in decimal digits; with a named `format` of the model, only in the form that this allows."""

    kind: ClassVar[str] = "integer"

    minimum: int | None = None
    maximum: int | None = None
    format: str | None = None

    def parse(self, value: Any) -> int:
        if isinstance(value, bool | list | dict):
            raise wrong_type("integer", value)
        rule = Scalar(type="integer", minimum=self.minimum, maximum=self.maximum)
        number = int(_checked(rule, plain(value)))
        if self.format is not None:
            _formatted(self.format, plain(value))
        return number

    def schema(self) -> dict[str, Any]:
        return super().schema() | _given(minimum=self.minimum, maximum=self.maximum, format=self.format)


@dataclass(frozen=True)
class Real(Manner):
    """A decimal number."""

    kind: ClassVar[str] = "number"

    minimum: float | None = None
    maximum: float | None = None

    def parse(self, value: Any) -> float:
        if isinstance(value, bool | list | dict):
            raise wrong_type("number", value)
        rule = Scalar(type="number", minimum=self.minimum, maximum=self.maximum)
        return float(_checked(rule, plain(value)))

    def schema(self) -> dict[str, Any]:
        return super().schema() | _given(minimum=self.minimum, maximum=self.maximum)


CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Text(Manner):
    """A string; `pattern` must match all of it, `format` is one of the named formats of the model."""

    format: str | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.format is not None and not {self.format, self.format.removesuffix("-list")} & formats.format_names():
            raise TypeError(f"there is no format '{self.format}'")

    def parse(self, value: Any) -> str:
        if isinstance(value, list | dict):
            raise wrong_type("string", value)
        text = plain(value)
        if CONTROL.search(text):
            raise Refused("invalid format - value contains control characters")
        rule = Scalar(pattern=self.pattern, min_length=self.min_length, max_length=self.max_length)
        checked = str(_checked(rule, text))
        return checked if self.format is None else _formatted(self.format, checked)

    def schema(self) -> dict[str, Any]:
        return super().schema() | _given(
            format=self.format,
            pattern=self.pattern and f"^(?:{self.pattern})$",
            minLength=self.min_length,
            maxLength=self.max_length,
        )


def _checked(rule: Scalar, text: str) -> Value:
    try:
        return rule.parse(text)
    except ValueError as wrong:
        raise Refused(str(wrong)) from wrong


def _formatted(name: str, text: str) -> str:
    try:
        return formats.check_format(name, text)
    except ValueError as wrong:
        raise Refused(f"invalid format - {wrong}") from wrong


def _given(**facets: Any) -> dict[str, Any]:
    return {name: facet for name, facet in facets.items() if facet is not None}


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
        return str(_checked(Scalar(enum=self.values), plain(value)))

    def schema(self) -> dict[str, Any]:
        return super().schema() | {"enum": list(self.values)}


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
    """A comma list of key=value; `options` is its schema. The handler sees the text."""

    options: Options
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
