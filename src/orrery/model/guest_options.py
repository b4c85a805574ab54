# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of a guest's options: machines and containers are two tables of one kind.

One row per option of the compatible API: its type, who may change it, what a change means for a running guest, and
whether this version acts on it. API parameters, validation, permissions, pending changes and the reference of
configuration keys all come from the tables.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from orrery.errors import ParameterError
from orrery.model.propertystring import PropertyString
from orrery.model.textformats import split_list
from orrery.model.values import UNKNOWN, Scalar, Value, print_value

Support = Literal["yes", "not-yet"]
Hotplug = Literal["stored", "live", "disk", "nic", "device", "restart"]
"""What a change means for a running guest: `stored`: nothing, it concerns Orrery alone; `live`: the guest is told, or
its limits change; `disk`, `nic`, `device`: a disk or mount point, a network card, a passed device is changed or
plugged where that can be; `restart`: it stays pending."""

CPU, MEMORY, DISK, CDROM = "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Disk", "VM.Config.CDROM"
NETWORK, HARDWARE, OPTIONS = "VM.Config.Network", "VM.Config.HWType", "VM.Config.Options"
CLOUDINIT, POWER = "VM.Config.Cloudinit", "VM.PowerMgmt"
ROOT_ONLY = ""

MASK = "**********"
"""What is shown instead of a secret."""

_NUMBERED = re.compile(r"([a-z]+)(0|[1-9]\d{0,2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Requirement:
    """Privileges that a change needs: all of them, or any of them, on a path (None: on the guest itself)."""

    privileges: tuple[str, ...]
    path: str | None = None
    any_of: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. `name` ends in `[n]` for numbered ones, of which there are `count`.

    `privilege`: what a user needs on the guest; empty means root alone. Some options need more or less depending on
    the value (`privileges_for` of `orrery.model.machine` and `orrery.model.container`). `secret`: nobody sees it.
    """

    name: str
    rule: Scalar
    privilege: str
    hotplug: Hotplug = "restart"
    support: Support = "yes"
    properties: PropertyString | None = None
    count: int | None = None
    later_values: tuple[str, ...] = ()
    secret: bool = False

    @property
    def base(self) -> str:
        """The name without `[n]`."""
        return self.name.removesuffix("[n]")

    @property
    def default(self) -> str | None:
        """The value that holds when the option is absent, in canonical text; None when there is none."""
        return None if self.rule.default is None else print_value(self.rule.default)

    @property
    def root_only(self) -> bool:
        """Whether no privilege is enough to change it, only being root@pam."""
        return self.privilege == ROOT_ONLY

    def canonical(self, text: str, key: str) -> str:
        """The value in canonical text; ValueError with the text for the parameter `key`."""
        text = self.rule.canonical(text)
        if self.properties is None:
            return text
        try:
            return self.properties.canonical(text, key)
        except ValueError as error:
            raise ValueError(f"invalid format - {error}") from None


class OptionTable(Mapping[str, Option]):
    """All options of a kind of guest by name; numbered ones as `net[n]`."""

    def __init__(self, rows: tuple[Option, ...]) -> None:
        self._rows = {option.name: option for option in rows}

    def __getitem__(self, name: str) -> Option:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def expand(self, key: str) -> tuple[str, int] | None:
        """`net3` is ("net", 3); None for a key that is no numbered option's or whose number is too high."""
        match = _NUMBERED.fullmatch(key)
        option = self._rows.get(f"{match[1]}[n]") if match else None
        if match is None or option is None or option.count is None or int(match[2]) >= option.count:
            return None
        return match[1], int(match[2])

    def find(self, key: str) -> Option | None:
        """The option that a key belongs to (`net3` to `net[n]`), or None."""
        option = self._rows.get(key)
        if option is not None:
            return option if option.count is None else None
        indexed = self.expand(key)
        return self._rows[f"{indexed[0]}[n]"] if indexed else None

    def each(self, options: Mapping[str, str], base: str) -> Iterator[tuple[str, int, str]]:
        """Key, number and text of every option `base[n]` that is set, by number."""
        found = [(indexed[1], key) for key in options if (indexed := self.expand(key)) and indexed[0] == base]
        for index, key in sorted(found):
            yield key, index, options[key]

    def validate(
        self,
        options: Mapping[str, str],
        *,
        check: Callable[[str, str], None] | None = None,
        sort_tags: bool = True,
        case_sensitive_tags: bool = False,
    ) -> dict[str, str]:
        """Values in canonical text; ParameterError with all faults by parameter.

        `check` is asked about each key and its canonical text and raises ValueError for what the table cannot know.
        How tags are written follows the cluster's tag style, which the caller passes.
        """
        errors: dict[str, str] = {}
        canonical: dict[str, str] = {}
        for key, text in options.items():
            option = self.find(key)
            if option is None:
                errors[key] = UNKNOWN
                continue
            try:
                value = option.canonical(text, key)
                if check is not None:
                    check(key, value)
            except ValueError as error:
                errors[key] = str(error)
                continue
            if key == "tags":
                value = unique_tags(value, sort=sort_tags, case_sensitive=case_sensitive_tags)
            elif key == "description":
                value = value.rstrip()
            canonical[key] = value
        if errors:
            raise ParameterError(errors)
        return canonical

    def unsupported(
        self, options: Mapping[str, str], more: Callable[[str, Mapping[str, Value]], list[str]] | None = None
    ) -> dict[str, str]:
        """What this version knows but does not act on, by parameter; values that equal the default are fine.

        The options must have passed `validate`. `more` names further values of a property string that are refused.
        """
        found: dict[str, str] = {}
        for key, text in options.items():
            option = self.find(key)
            if option is None or not text:
                continue
            if option.support != "yes":
                if text != option.default:
                    found[key] = f'"{key}" is not supported yet'
                continue
            parts = [word for word in split_list(text) if word in option.later_values] if option.later_values else []
            if option.properties is not None:
                values = option.properties.parse(text)
                parts = option.properties.unsupported(values) + (more(key, values) if more is not None else [])
            if parts:
                found[key] = f'"{key}" with {", ".join(parts)} is not supported yet'
        return found

    def reply_value(self, key: str, text: str) -> str | int | float:
        """A value as replies carry it: numbers for options whose type is a number or boolean, else the text.

        Secret ones are masked.
        """
        option = self.find(key)
        if option is None or option.rule.type == "string":
            return MASK if option is not None and option.secret and text else text
        try:
            value = option.rule.parse(text)
        except ValueError:
            return text
        return int(value) if isinstance(value, bool) or float(value) == int(value) else value


def unique_tags(text: str, *, sort: bool = True, case_sensitive: bool = False) -> str:
    """Tags without repetition, joined with `;`: lower case unless case counts, sorted unless their order counts."""
    tags = dict.fromkeys(tag if case_sensitive else tag.lower() for tag in split_list(text))
    return ";".join(sorted(tags) if sort else tags)


# Rows -----------------------------------------------------------------------------------------------------------------


def option(
    name: str,
    rule: Scalar | PropertyString,
    privilege: str,
    hotplug: Hotplug = "restart",
    support: Support = "yes",
    *,
    count: int | None = None,
    max_length: int | None = None,
    later_values: tuple[str, ...] = (),
    secret: bool = False,
) -> Option:
    """A row of a table."""
    schema = rule if isinstance(rule, PropertyString) else None
    scalar = Scalar(max_length=max_length) if isinstance(rule, PropertyString) else rule
    return Option(
        name=name + ("[n]" if count else ""),
        rule=scalar,
        privilege=privilege,
        hotplug=hotplug,
        support=support,
        properties=schema,
        count=count,
        later_values=later_values,
        secret=secret,
    )


def later(name: str, rule: Scalar | PropertyString, privilege: str, *, count: int | None = None) -> Option:
    """A row of an option that this version knows, checks and then refuses where it is not the default."""
    return option(name, rule, privilege, support="not-yet", count=count)


def text(format_: str | None = None, *, pattern: str | None = None, longest: int | None = None) -> Scalar:
    """The rule of a text."""
    return Scalar(format=format_, pattern=pattern, max_length=longest)


def word(*words: str, default: str | None = None) -> Scalar:
    """The rule of one of a few words."""
    return Scalar(enum=words, default=default)


def flag(default: bool | None = False) -> Scalar:
    """The rule of a boolean."""
    return Scalar(type="boolean", default=default)


def integer(low: int, high: int | None = None, default: int | None = None) -> Scalar:
    """The rule of a whole number."""
    return Scalar(type="integer", minimum=low, maximum=high, default=default)
