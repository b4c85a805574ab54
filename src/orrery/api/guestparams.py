# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameters that are options of a guest: of a machine or of a container, as their table says."""

from orrery.api.optionparams import OptionParams, OptionRow, option_params
from orrery.api.parameters import Params
from orrery.model.guest_options import Option, OptionTable

LISTED_BY_NUL = ("env",)
"""Options whose items a NUL separates, which nothing else may contain."""


def guest_params(name: str, extras: type[Params], table: OptionTable) -> type[OptionParams]:
    """A model with the fields of `extras` and every option of a table."""
    return option_params(name, extras, map(_row, table.values()))


def _row(option: Option) -> OptionRow:
    def canonical(text: str) -> str:
        return option.canonical(text, option.base)

    return OptionRow(
        option.name,
        option.rule,
        canonical,
        option.count,
        option.support == "yes",
        listed=(option.rule.format or "").endswith("-list"),
        raw=option.name in LISTED_BY_NUL,
    )
