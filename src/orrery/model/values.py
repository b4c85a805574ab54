# SPDX-License-Identifier: AGPL-3.0-or-later
"""Scalar rules: what one value may be. Parameters, options and the parts of property strings are all checked here.

The texts of the ValueErrors are those that clients of the compatible API know from the `errors` of a reply.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from orrery.model.textformats import check_text_format

Value = str | int | float | bool

UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"
"""What is said of a parameter that nothing has; clients know the text."""
ScalarType = Literal["string", "integer", "number", "boolean"]

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,18}(?:\.\d*)?|\.\d+)", re.ASCII)
_TRUE = frozenset(("1", "on", "yes", "true"))
_FALSE = frozenset(("0", "off", "no", "false"))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


def print_value(value: Value) -> str:
    """A value as configuration files and replies write it: booleans 1 and 0, numbers without needless digits."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.15f}".rstrip("0").rstrip(".")
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """What one value may be. `pattern` must match the whole value; `format` names one of the text formats."""

    type: ScalarType = "string"
    enum: tuple[str, ...] | None = None
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    format: str | None = None
    default: Value | None = None

    def parse(self, text: str, *, lenient_boolean: bool = False) -> Value:
        """Read a value from text; ValueError says what is wrong.

        `lenient_boolean`: on, yes, true and their opposites count too, as within property strings.
        """
        match self.type:
            case "string":
                return self._check_string(text)
            case "boolean":
                return _parse_boolean(text, lenient_boolean)
            case "integer":
                if not _INTEGER.fullmatch(text):
                    raise ValueError(f"type check ('integer') failed - got '{text[:80]}'")
                return self._check_number(int(text))
            case "number":
                if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
                    raise ValueError(f"type check ('number') failed - got '{text[:80]}'")
                return self._check_number(float(text))

    def check(self, value: Value, *, lenient_boolean: bool = False) -> Value:
        """Check a value that already has a type; text of a number or boolean is read like a parameter."""
        return self.parse(value if isinstance(value, str) else print_value(value), lenient_boolean=lenient_boolean)

    def canonical(self, text: str, *, lenient_boolean: bool = False) -> str:
        """The value in canonical text."""
        return print_value(self.parse(text, lenient_boolean=lenient_boolean))

    def _check_number(self, number: int | float) -> int | float:
        if self.enum is not None and str(number) not in self.enum:
            raise ValueError(_not_in(str(number), self.enum))
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"value must have a minimum value of {print_value(self.minimum)}")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"value must have a maximum value of {print_value(self.maximum)}")
        return number

    def _check_string(self, text: str) -> str:
        if self.max_length is not None and len(text) > self.max_length:
            raise ValueError(f"value may only be {self.max_length} characters long")
        if self.min_length is not None and len(text) < self.min_length:
            raise ValueError(f"value must be at least {self.min_length} characters long")
        if self.enum is not None and text not in self.enum:
            raise ValueError(_not_in(text[:80], self.enum))
        if self.pattern is not None and not _compiled(self.pattern).fullmatch(text):
            raise ValueError("value does not match the regex pattern")
        if self.format is not None:
            try:
                return check_text_format(self.format, text)
            except ValueError as error:
                raise ValueError(f"invalid format - {error}") from None
        return text


def _parse_boolean(text: str, lenient: bool) -> bool:
    word = text.lower() if lenient else text
    if word in (_TRUE if lenient else ("1",)):
        return True
    if word in (_FALSE if lenient else ("0",)):
        return False
    raise ValueError(f"type check ('boolean') failed - got '{text[:80]}'")


def _not_in(value: str, enum: tuple[str, ...]) -> str:
    return f"value '{value}' does not have a value in the enumeration '{', '.join(enum)}'"
