# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameters that are options of a virtual machine: made from the table of options, so that there is one truth.

CreateMachine = machine_params("CreateMachine", CreateExtras)
gives a model with the fields of CreateExtras and all options; in the handler, `p.options()` has those that were sent:
{"cores": "2", "net0": "virtio=BC:24:11:…,bridge=vmbr0"}
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field, create_model

from orrery.api.manners import Manner, Refused, plain, wrong_type
from orrery.api.parameters import Params
from orrery.model.machine_options import MACHINE_OPTIONS, Option

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class MachineOption(Manner):
    """One option by its name in the table; the handler sees its text in canonical form."""

    name: str

    @property
    def option(self) -> Option:
        """Its row of the table."""
        return MACHINE_OPTIONS[self.name]

    def parse(self, value: Any) -> str:
        rule = self.option.rule
        if isinstance(value, list | dict) or (isinstance(value, bool) and rule.type in ("integer", "number")):
            raise wrong_type(rule.type, value)
        text = plain(value)
        if _CONTROL.search(text):
            raise Refused("invalid format - value contains control characters")
        try:
            return self.option.canonical(text, self.option.base)
        except ValueError as wrong:
            raise Refused(str(wrong)) from wrong

    def schema(self) -> dict[str, Any]:
        rule = self.option.rule
        facets = {
            "enum": rule.enum and list(rule.enum),
            "pattern": rule.pattern and f"^(?:{rule.pattern})$",
            "format": rule.format,
            "minimum": rule.minimum,
            "maximum": rule.maximum,
            "minLength": rule.min_length,
            "maxLength": rule.max_length,
            "default": rule.default,
        }
        described = {"type": rule.type} | {name: facet for name, facet in facets.items() if facet is not None}
        return described | ({"x-supported": False} if self.option.support != "yes" else {})


class MachineParams(Params):
    """Base of models with a machine's options."""

    def options(self) -> dict[str, str]:
        """The options that were sent, by their key (`net0`, never `net[n]`), in canonical text."""
        found: dict[str, str] = {}
        for option in MACHINE_OPTIONS.values():
            value = getattr(self, _field(option))
            if option.count is not None:
                found |= {f"{option.base}{index}": text for index, text in sorted(value.items())}
            elif value is not None:
                found[option.name] = value
        return found


def machine_params(name: str, extras: type[Params]) -> type[MachineParams]:
    """A model with the fields of `extras` and every option of a machine."""
    fields: dict[str, Any] = {}
    for option in MACHINE_OPTIONS.values():
        manner = Annotated[str, MachineOption(option.name)]
        text = "Not supported yet." if option.support != "yes" else ""
        if option.count is None:
            fields[_field(option)] = (manner | None, Field(default=None, alias=option.name, description=text))
        else:
            # `numa` is an option beside `numa0`, so a family's field carries the `[n]` in its alias.
            family: Any = Field(
                default_factory=dict, alias=option.name, description=text, json_schema_extra={"indices": option.count}
            )
            fields[_field(option)] = (dict[int, manner], family)
    return cast(type[MachineParams], create_model(name, __base__=(extras, MachineParams), **fields))


def _field(option: Option) -> str:
    return "option_" + re.sub(r"\W+", "_", option.name)
