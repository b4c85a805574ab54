# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cluster's options. What belongs to features that this version lacks is kept for them, and does nothing yet."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Format, ListOf
from orrery.api.optionparams import OptionRow, option_params
from orrery.api.parameters import NoParams, Params
from orrery.model.options import CLUSTER_OPTIONS, canonical_option, cluster_options, validate_options
from orrery.model.values import Scalar
from orrery.store.documents import read_document, update_document

KEY = "/cluster/options"
READABLE = ("console", "consent-text", "registered-tags", "tag-style", "user-tag-access", "language")
"""What every login may read, because the page needs it; the rest takes Sys.Audit on /."""


def _row(name: str) -> OptionRow:
    rule = CLUSTER_OPTIONS[name]
    scalar = rule if isinstance(rule, Scalar) else Scalar()

    def canonical(text: str) -> str:
        return canonical_option(name, text)

    return OptionRow(name, scalar, canonical)


class ChangeOptionsBase(Params):
    """What a change takes besides the options themselves."""

    delete: Annotated[list[str], ListOf(Format("pve-configid"), doc="Options to remove.")] = Field(default=[])


ChangeOptions = option_params("ChangeOptions", ChangeOptionsBase, map(_row, CLUSTER_OPTIONS))


@endpoint("GET", KEY, params=NoParams, permission=Everyone(), returns=dict[str, Any])
def read_options(call: Call, p: NoParams) -> dict[str, Any]:
    """The cluster's options; without Sys.Audit on / only those that the page needs."""
    found = cluster_options(read_document(call.services.store, KEY) or {}).reply()
    if call.allowed("/", "Sys.Audit"):
        return found
    return {name: value for name, value in found.items() if name in READABLE}


@endpoint("PUT", KEY, params=ChangeOptions, permission=Perm("/", ("Sys.Modify",)), returns=None)
def change_options(call: Call, p: Any) -> None:
    """Change the cluster's options."""
    changes = validate_options(p.options(), p.delete)

    def change(document: dict[str, str] | None) -> dict[str, str]:
        kept = {name: value for name, value in (document or {}).items() if name not in p.delete}
        return {**kept, **changes}

    update_document(call.services.store, KEY, change)
