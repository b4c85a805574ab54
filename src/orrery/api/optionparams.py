# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameters that are rows of one of the model's tables of options: of a machine, a storage, the cluster.

The table says what a value may be, so a model with its options is made from it, and there is one truth. A handler gets
the options that were sent with their canonical texts: `p.options()` is {"cores": "2", "net0": "virtio=…,bridge=vmbr0"}.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, create_model

from orrery.api.manners import CONTROL, Manner, Refused, plain, wrong_type
from orrery.api.parameters import Params
from orrery.model.values import Scalar


@dataclass(frozen=True, eq=False)
class OptionRow:
    """One option: `canonical` gives a text's canonical form or raises ValueError.

    `count`: how many a numbered one has (its name then ends in `[n]`). `listed`: a repeated parameter is a list.
    `raw`: line breaks and the like are part of the value (keys, certificates).
    """

    name: str
    rule: Scalar
    canonical: Callable[[str], str]
    count: int | None = None
    supported: bool = True
    listed: bool = False
    raw: bool = False

    @property
    def base(self) -> str:
        """The name without `[n]`."""
        return self.name.removesuffix("[n]")

    @property
    def field(self) -> str:
        """The field in the model; prefixed, since options are called `numa`, `json` or `copy`."""
        return "option_" + re.sub(r"\W+", "_", self.name)


@dataclass(frozen=True)
class OptionText(Manner):
    """The value of an option; the handler sees its canonical text."""

    row: OptionRow

    def parse(self, value: Any) -> str:
        rule = self.row.rule
        if self.row.listed and isinstance(value, list):
            value = ",".join(map(plain, value))
        if isinstance(value, list | dict) or (isinstance(value, bool) and rule.type in ("integer", "number")):
            raise wrong_type(rule.type, value)
        text = plain(value)
        if not self.row.raw and CONTROL.search(text):
            raise Refused("invalid format - value contains control characters")
        try:
            return self.row.canonical(text)
        except ValueError as wrong:
            raise Refused(str(wrong)) from wrong

    def schema(self) -> dict[str, Any]:
        rule = self.row.rule
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
        return described | ({} if self.row.supported else {"x-supported": False})


class OptionParams(Params):
    """Base of models with options from a table."""

    rows: ClassVar[tuple[OptionRow, ...]] = ()

    def options(self) -> dict[str, str]:
        """The options that were sent, by their key (`net0`, never `net[n]`), with their canonical texts."""
        found: dict[str, str] = {}
        for row in self.rows:
            value = getattr(self, row.field)
            if row.count is not None:
                found |= {f"{row.base}{index}": text for index, text in sorted(value.items())}
            elif value is not None:
                found[row.name] = value
        return found


def option_params(name: str, extras: type[Params], rows: Iterable[OptionRow]) -> type[OptionParams]:
    """A model with the fields of `extras` and these options."""
    table = tuple(rows)
    fields: dict[str, Any] = {}
    for row in table:
        manner = Annotated[str, OptionText(row)]
        text = "" if row.supported else "Not supported yet."
        if row.count is None:
            fields[row.field] = (manner | None, Field(default=None, alias=row.name, description=text))
        else:
            # `numa` is an option beside `numa0`, so a family's field carries the `[n]` in its alias.
            family: Any = Field(
                default_factory=dict, alias=row.name, description=text, json_schema_extra={"indices": row.count}
            )
            fields[row.field] = (dict[int, manner], family)
    model = cast(type[OptionParams], create_model(name, __base__=(extras, OptionParams), **fields))
    model.rows = table
    return model
