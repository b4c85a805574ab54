# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cluster's options. What belongs to features that this version lacks is kept for them, and does nothing yet."""

from typing import Annotated, Any, cast

from pydantic import Field, create_model

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Flag, Format, Int, ListOf, Manner, PropertyString, Text, plain
from orrery.api.parameters import Params
from orrery.api.routes.version import NoParams
from orrery.model.options import CLUSTER_OPTIONS, cluster_options, validate_options
from orrery.model.values import Scalar
from orrery.store.documents import read_document, update_document

KEY = "/cluster/options"
READABLE = ("console", "consent-text", "registered-tags", "tag-style", "user-tag-access", "language")
"""What every login may read, because the page needs it; the rest takes Sys.Audit on /."""


def _manner(name: str) -> Manner:
    rule = CLUSTER_OPTIONS[name]
    if not isinstance(rule, Scalar):
        return PropertyString(options=rule)
    if rule.enum:
        return Enum(*rule.enum)
    if rule.type == "boolean":
        return Flag()
    if rule.type == "integer":
        return Int(minimum=None if rule.minimum is None else int(rule.minimum))
    return Text(format=rule.format, pattern=rule.pattern, max_length=rule.max_length)


class ChangeOptionsBase(Params):
    """What a change takes besides the options themselves."""

    delete: Annotated[list[str], ListOf(Format("pve-configid"), doc="Options to remove.")] = Field(default=[])

    def options(self) -> dict[str, str]:
        """The options that were sent, as text."""
        values = {name: getattr(self, _field(name)) for name in CLUSTER_OPTIONS}
        return {name: plain(value) for name, value in values.items() if value is not None}


def _field(name: str) -> str:
    return "option_" + name.replace("-", "_")


_fields: dict[str, Any] = {
    _field(name): (Annotated[Any, _manner(name)], Field(default=None, alias=name)) for name in CLUSTER_OPTIONS
}
ChangeOptions = cast(type[ChangeOptionsBase], create_model("ChangeOptions", __base__=ChangeOptionsBase, **_fields))


@endpoint("GET", KEY, params=NoParams, permission=Everyone(), returns=dict[str, Any])
def read_options(call: Call, p: NoParams) -> dict[str, Any]:
    """The cluster's options; without Sys.Audit on / only those that the page needs."""
    found = cluster_options(read_document(call.services.store, KEY) or {}).reply()
    if call.allowed("/", "Sys.Audit"):
        return found
    return {name: value for name, value in found.items() if name in READABLE}


@endpoint("PUT", KEY, params=ChangeOptions, permission=Perm("/", ("Sys.Modify",)), returns=None)
def change_options(call: Call, p: ChangeOptionsBase) -> None:
    """Change the cluster's options."""
    changes = validate_options(p.options(), p.delete)

    def change(document: dict[str, str] | None) -> dict[str, str]:
        kept = {name: value for name, value in (document or {}).items() if name not in p.delete}
        return {**kept, **changes}

    update_document(call.services.store, KEY, change)
