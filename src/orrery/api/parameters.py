# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parameters of an endpoint as a pydantic model, in the manners of the wire.

    class Shutdown(GuestParams):
        timeout: Annotated[int, Int(minimum=0)] | None = None
        force_stop: Boolean = Field(default=False, alias="forceStop")

Wire names are the Python names with hyphens for underscores, or the explicit alias. Every field carries a manner
(`orrery.api.manners`); a model with a bare `int` is refused when its endpoint is declared. `sent` tells which
parameters were sent.
"""

import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from orrery.api.manners import Flag, Format, Int, ListOf, Manner, Pattern, Real, Text
from orrery.errors import ParameterError
from orrery.model.values import UNKNOWN

Boolean = Annotated[bool, Flag()]
Integer = Annotated[int, Int()]
Number = Annotated[float, Real()]
String = Annotated[str, Text()]

Node = Annotated[str, Format("pve-node", doc="Name of the node.")]
# Only in its plain form: permissions are judged on the path as it was sent, and `/vms/0100` is not `/vms/100`.
Vmid = Annotated[int, Int(minimum=100, maximum=999999999, format="pve-vmid", doc="Number of the guest.")]
StorageId = Annotated[str, Format("pve-storage-id", doc="Name of the storage.")]
UserIdText = Annotated[str, Format("pve-userid", max_length=64, doc="User, as name@realm.")]
Digest = Annotated[str, Text(max_length=64, doc="Refuse when the configuration no longer has this digest.")]
DeleteList = Annotated[list[str], ListOf(Format("pve-configid"), doc="Settings to remove.")]

PATH_PARAMETERS: dict[str, Any] = {
    "node": Node,
    "vmid": Vmid,
    "storage": StorageId,
    "userid": UserIdText,
    "tokenid": Annotated[str, Pattern(r"[A-Za-z][A-Za-z0-9.\-_]+", doc="Name of the token.")],
    "groupid": Annotated[str, Format("pve-groupid", doc="Name of the group.")],
    "roleid": Annotated[str, Format("pve-roleid", doc="Name of the role.")],
    "realm": Annotated[str, Format("pve-realm", max_length=32, doc="Name of the realm.")],
    "poolid": Annotated[str, Format("pve-poolid", doc="Name of the pool.")],
    "upid": Annotated[str, Text(max_length=512, doc="Identifier of the task.")],
    "volume": Annotated[str, Text(max_length=1024, doc="Volume, with or without its storage's name.")],
}
"""Path parameters that mean the same everywhere, for endpoints that take nothing else."""

MISSING = "property is missing and it is not optional"


@dataclass(frozen=True)
class Declared:
    """One parameter as it is described: `indices` is how many an indexed one has (`net[n]`), else None.

    `alias` is what pydantic knows the field by.
    """

    alias: str
    manner: Manner
    required: bool
    default: Any
    description: str
    indices: int | None = None

    def schema(self) -> dict[str, Any]:
        """JSON schema with default and description."""
        described = self.manner.schema()
        if self.default is not None and not self.required and self.indices is None:
            described["default"] = self.default
        if self.description:
            described["description"] = self.description
        return described


class Params(BaseModel):
    """Base of all parameter models."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"), protected_namespaces=()
    )

    @classmethod
    def declared(cls) -> Mapping[str, Declared]:
        """Every parameter by its wire name. Raises TypeError for a field without manner."""
        return _declared(cls)

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> Self:
        """Validates what a client sent. Raises `ParameterError` that names every fault, not only the first."""
        given = {name: value for name, value in raw.items() if value is not None}
        folded, faults = _fold(cls.declared(), given)
        faults = _missing_companions(cls.declared(), given) | faults
        try:
            model = cls.model_validate(folded)
        except ValidationError as wrong:
            for error in wrong.errors(include_url=False, include_input=False):
                faults.setdefault(_wire_name(error["loc"]), _text(error))
            raise ParameterError(faults) from wrong
        if faults:
            raise ParameterError(faults)
        return model

    def sent(self, name: str) -> bool:
        """Whether the client sent the field (by its Python name)."""
        return name in self.model_fields_set


class NoParams(Params):
    """A method without parameters."""


class NodeParams(Params):
    """Methods of a node."""

    node: Node


class GuestParams(NodeParams):
    """Methods of a guest."""

    vmid: Vmid


class StorageParams(NodeParams):
    """Methods of a storage on a node."""

    storage: StorageId


def indexed(count: int, *, description: str = "") -> Any:
    """Default of a field that stands for name0 to name{count-1}: `net: dict[int, Annotated[str, …]] = indexed(32)`."""
    return Field(default_factory=dict, description=description, json_schema_extra={"indices": count})


@functools.cache
def path_params(names: tuple[str, ...]) -> type[Params]:
    """A model of just these path parameters. Raises TypeError for names without a well-known meaning."""
    if unknown := [name for name in names if name not in PATH_PARAMETERS]:
        raise TypeError(f"path parameters {unknown} need a parameter model of their own")
    fields: dict[str, Any] = {name: (PATH_PARAMETERS[name], ...) for name in names}
    return cast(type[Params], create_model("PathParams", __base__=Params, **fields))


@functools.cache
def _declared(model: type[Params]) -> Mapping[str, Declared]:
    found = {}
    for python_name, info in model.model_fields.items():
        manner = _manner(info)
        if manner is None:
            raise TypeError(f"{model.__name__}.{python_name} has no manner of the wire (see orrery.api.manners)")
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        indices = cast("int | None", extra.get("indices"))
        name = info.alias or python_name
        default = None if info.default_factory or info.is_required() else info.default
        text = info.description or manner.doc
        shown = f"{name.removesuffix('[n]')}[n]" if indices is not None else name
        found[shown] = Declared(name, manner, info.is_required(), default, text, indices)
    return found


def _manner(info: FieldInfo) -> Manner | None:
    for mark in info.metadata:
        if isinstance(mark, Manner):
            return mark
    return _manner_in(info.annotation)


def _manner_in(annotation: Any) -> Manner | None:
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, Manner):
            return mark
    for part in typing.get_args(annotation):
        if found := _manner_in(part):
            return found
    return None


_INDEXED = re.compile(r"([a-z_-]+)(0|[1-9][0-9]{0,3})")


def _fold(declared: Mapping[str, Declared], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Gathers net0, net1, … into the field of `net[n]`; and what is wrong with the names that nothing has."""
    folded: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    for name, value in given.items():
        found = _INDEXED.fullmatch(name)
        family = declared.get(f"{found[1]}[n]") if found else None
        if name in declared and declared[name].indices is None:
            folded[name] = value
        elif found and family and int(found[2]) < (family.indices or 0):
            folded.setdefault(family.alias, {})[int(found[2])] = value
        else:
            unknown[name] = UNKNOWN
    return folded, unknown


def _missing_companions(declared: Mapping[str, Declared], given: Mapping[str, Any]) -> dict[str, str]:
    return {
        parameter.manner.requires: f"missing property - '{name}' requires this property"
        for name, parameter in declared.items()
        if parameter.manner.requires and name in given and parameter.manner.requires not in given
    }


def _wire_name(location: tuple[int | str, ...]) -> str:
    """The parameter at fault: net0 for what lies at 0 in the field of `net[n]`."""
    name = str(location[0]).removesuffix("[n]")
    return name + str(location[1]) if len(location) > 1 and isinstance(location[1], int) else name


def _text(error: Any) -> str:
    return MISSING if error["type"] == "missing" else str(error["msg"])
