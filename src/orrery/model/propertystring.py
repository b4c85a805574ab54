# SPDX-License-Identifier: AGPL-3.0-or-later
"""Property strings: several named values in one text, `virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1`.

A schema names the keys. One key may be the default key: its value may stand bare, as the first part. An alias is
another name of a key; with `key_alias` the alias' own name is the value of a second key as well (`virtio=MAC` says
`model=virtio` and `macaddr=MAC`). A value cannot contain a comma. Printing sorts the keys, the default key first.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from orrery.model.values import Scalar, Value, print_value

_FORBIDDEN = re.compile(r"[,\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Property(Scalar):
    """One key of a property string.

    `alias`: this key is only another name for that key. `key_alias`: and its own name is the value of that key.
    `requires`: this key makes sense only beside that key. `support`: `not-yet` marks a key that is known, checked and
    then refused where its value is not the default; `later_values` are single words of which the same is true.
    """

    optional: bool = True
    default_key: bool = False
    alias: str | None = None
    key_alias: str | None = None
    requires: str | None = None
    support: str = "yes"
    later_values: tuple[str, ...] = ()


class PropertyStringError(ValueError):
    """A text that does not fit its schema; `errors` maps `path.key` to what is wrong there."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("format error\n" + "\n".join(f"{key}: {text}" for key, text in errors.items()))
        self.errors = dict(errors)


@dataclass(frozen=True)
class PropertyString:
    """The schema of a property string."""

    properties: Mapping[str, Property]
    rule: Callable[[Mapping[str, Value]], None] | None = None
    """Rules between the keys; raises ValueError."""
    default_key: str | None = field(init=False)
    compound: tuple[str, str] | None = field(init=False)
    """The two keys that print as one part, `model` and `macaddr`."""

    def __post_init__(self) -> None:
        defaults = [key for key, rule in self.properties.items() if rule.default_key]
        pairs = {(rule.key_alias, rule.alias) for rule in self.properties.values() if rule.key_alias and rule.alias}
        if len(defaults) > 1 or len(pairs) > 1:
            raise ValueError("a property string has at most one default key and one pair of compound keys")
        object.__setattr__(self, "default_key", defaults[0] if defaults else None)
        object.__setattr__(self, "compound", next(iter(pairs), None))

    def parse(self, text: str, path: str = "") -> dict[str, Value]:
        """Read a text; aliases are resolved, values typed, absent keys absent.

        `path` is the option's name, for the texts of the PropertyStringError that a bad text raises.
        """
        raw: dict[str, str] = {}
        for position, part in enumerate(part for part in text.split(",") if part.strip()):
            key, equals, value = part.partition("=")
            if not equals:
                key, value = self._bare(part, position, path), part
            self._collect(raw, key, value, path)
        return self._check(raw, path)

    def print(self, values: Mapping[str, Value]) -> str:
        """Write values as text; ValueError for keys or values that the schema does not allow."""
        checked = self._check({key: print_value(value) for key, value in values.items()}, "")
        parts: list[str] = []
        done: set[str] = set()
        if self.compound and self.compound[0] in checked:
            name, other = self.compound
            bare = print_value(checked[name])
            parts.append(f"{bare}={print_value(checked[other])}" if other in checked else self._one(name, bare))
            done = {name, other}
        elif self.default_key is not None and self.default_key in checked:
            parts.append(self._one(self.default_key, print_value(checked[self.default_key])))
            done = {self.default_key}
        parts += [f"{key}={print_value(checked[key])}" for key in sorted(checked) if key not in done]
        return ",".join(parts)

    def canonical(self, text: str, path: str = "") -> str:
        """The text in canonical form."""
        return self.print(self.parse(text, path))

    def unsupported(self, values: Mapping[str, Value]) -> list[str]:
        """What is known but not acted on: `key` where its value is not the default, `key=word` for single words."""
        found: list[str] = []
        for key, value in values.items():
            rule = self.properties[key]
            if rule.support != "yes" and value != rule.default:
                found.append(key)
            elif value in rule.later_values:
                found.append(f"{key}={value}")
        return found

    def _one(self, key: str, value: str) -> str:
        return value if key == self.default_key and "=" not in value else f"{key}={value}"

    def _bare(self, part: str, position: int, path: str) -> str:
        if self.default_key is None:
            raise PropertyStringError({path: f"'{part[:80]}' has no key, and there is no default key"})
        if position:
            raise PropertyStringError({path: f"'{part[:80]}' has no key; only the first part may go without"})
        return self.default_key

    def _collect(self, raw: dict[str, str], key: str, value: str, path: str) -> None:
        rule = self.properties.get(key)
        if rule is None:
            name = f"{path}.{key[:80]}" if path else key[:80]
            raise PropertyStringError({name: f"unknown key '{key[:80]}'; known are {', '.join(self._primary_keys())}"})
        if not value:
            raise PropertyStringError({f"{path}.{key}" if path else key: f"key '{key}' has no value"})
        found = {rule.alias or key: value}
        if rule.key_alias is not None:
            found[rule.key_alias] = key
        for name, content in found.items():
            if name in raw:
                raise PropertyStringError({f"{path}.{name}" if path else name: f"duplicate key '{name}'"})
            raw[name] = content

    def _check(self, raw: Mapping[str, str], path: str) -> dict[str, Value]:
        prefix = f"{path}." if path else ""
        errors: dict[str, str] = {}
        values: dict[str, Value] = {}
        for key, text in raw.items():
            rule = self.properties.get(key)
            try:
                if rule is None or rule.alias:
                    raise ValueError(f"unknown key '{key}'")
                if _FORBIDDEN.search(text):
                    raise ValueError("a value cannot contain a comma or control characters")
                values[key] = rule.parse(text, lenient_boolean=True)
            except ValueError as error:
                errors[prefix + key] = str(error)
        for key, rule in self.properties.items():
            if not rule.optional and not rule.alias and key not in raw:
                errors[prefix + key] = "property is missing and it is not optional"
            if rule.requires and key in raw and rule.requires not in raw:
                errors[prefix + rule.requires] = f"missing property - '{key}' requires this property"
        if errors:
            raise PropertyStringError(errors)
        if self.rule is not None:
            try:
                self.rule(values)
            except ValueError as error:
                raise PropertyStringError({path or "value": str(error)}) from None
        return values

    def _primary_keys(self) -> Iterable[str]:
        return sorted(key for key, rule in self.properties.items() if not rule.alias)


def schema(*parts: Mapping[str, Property], rule: Callable[[Mapping[str, Value]], None] | None = None) -> PropertyString:
    """A schema from one or more tables of keys; later tables override earlier ones."""
    merged: dict[str, Property] = {}
    for part in parts:
        merged.update(part)
    return PropertyString(merged, rule)
