# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameters that are options of a virtual machine."""

from orrery.api.optionparams import OptionParams, OptionRow, option_params
from orrery.api.parameters import Params
from orrery.model.guest_options import Option
from orrery.model.machine_options import MACHINE_OPTIONS


def machine_params(name: str, extras: type[Params]) -> type[OptionParams]:
    """A model with the fields of `extras` and every option of a machine."""
    return option_params(name, extras, map(_row, MACHINE_OPTIONS.values()))


def _row(option: Option) -> OptionRow:
    def canonical(text: str) -> str:
        return option.canonical(text, option.base)

    return OptionRow(option.name, option.rule, canonical, option.count, option.support == "yes")
