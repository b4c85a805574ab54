# SPDX-License-Identifier: AGPL-3.0-or-later
"""/storage: which storages there are, the same for all nodes."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field, create_model

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Manner, Refused, plain, wrong_type
from orrery.api.parameters import DeleteList, Digest, Params, StorageId
from orrery.model.storage import STORAGE_OPTIONS, STORAGE_TYPES, SUPPORTED_TYPES, StorageOption
from orrery.operations.storage_configuration import StorageConfiguration

ADMINISTER = Perm("/storage", ("Datastore.Allocate",))
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRETS = frozenset(("password", "keyring", "encryption-key", "master-pubkey"))


@dataclass(frozen=True)
class OptionText(Manner):
    """One option of a storage by its name in the table; the handler sees its canonical text."""

    name: str

    @property
    def option(self) -> StorageOption:
        """Its row of the table."""
        return STORAGE_OPTIONS[self.name]

    def parse(self, value: Any) -> str:
        rule = self.option.rule
        if isinstance(value, list) and not rule.type.startswith(("int", "num", "bool")):
            value = ",".join(map(plain, value))
        if isinstance(value, list | dict) or (isinstance(value, bool) and rule.type in ("integer", "number")):
            raise wrong_type(rule.type, value)
        text = plain(value)
        if self.name not in _SECRETS and _CONTROL.search(text):
            raise Refused("invalid format - value contains control characters")
        try:
            return self.option.canonical(text)
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
        return described | ({} if _supported(self.option) else {"x-supported": False})


def _supported(option: StorageOption) -> bool:
    return option.support == "yes" and not option.types.isdisjoint(SUPPORTED_TYPES)


class OptionParams(Params):
    """Base of the models that carry a storage's options."""

    def options(self) -> dict[str, str]:
        """The options that were sent, in canonical text."""
        found = {name: getattr(self, _field(name), None) for name in STORAGE_OPTIONS}
        return {name: value for name, value in found.items() if value is not None}


def _field(name: str) -> str:
    return "option_" + re.sub(r"\W+", "_", name)


def _with_options(name: str, base: type[OptionParams], *, fixed: bool) -> type[OptionParams]:
    """A model with the options of all kinds of storage; `fixed`: also those that only a new storage takes."""
    fields: dict[str, Any] = {}
    for option in STORAGE_OPTIONS.values():
        if option.name == "type" or (option.fixed and not fixed):
            continue
        text = "" if _supported(option) else "Not supported yet."
        manner = Annotated[str, OptionText(option.name)]
        fields[_field(option.name)] = (manner | None, Field(default=None, alias=option.name, description=text))
    return cast(type[OptionParams], create_model(name, __base__=base, **fields))


class _Create(OptionParams):
    storage: StorageId
    type: Annotated[str, Enum(*STORAGE_TYPES, doc="Kind of storage; this version has `dir`.")]


class _Update(OptionParams):
    storage: StorageId
    delete: DeleteList = Field(default=[])
    digest: Digest | None = None


class ListStorages(Params):
    type: Annotated[str, Enum(*STORAGE_TYPES, doc="Only storages of this kind.")] | None = None


class OneStorage(Params):
    storage: StorageId


CreateStorage = _with_options("CreateStorage", _Create, fixed=True)
UpdateStorage = _with_options("UpdateStorage", _Update, fixed=False)


def configuration(call: Call) -> StorageConfiguration:
    """The configuration of storages, for one request."""
    services = call.services
    return StorageConfiguration(services.store, services.context.storages, services.paths, services.node)


@endpoint("GET", "/storage", params=ListStorages, permission=Everyone(), returns=list[dict[str, Any]])
def list_storages(call: Call, p: ListStorages) -> list[dict[str, Any]]:
    """Storages of which the caller may see the use, with their options."""
    return [
        row
        for row in configuration(call).describe_all(p.type)
        if call.allowed(f"/storage/{row['storage']}", "Datastore.Audit", "Datastore.AllocateSpace", any=True)
    ]


@endpoint("POST", "/storage", params=CreateStorage, permission=ADMINISTER, returns=dict[str, Any])
def create_storage(call: Call, p: Any) -> dict[str, Any]:
    """Configure a storage. Its folders are made; files that lie there already become its volumes."""
    stored = configuration(call).create(p.storage, {"type": p.type, **p.options()})
    call.services.collector.storages.refresh(p.storage)
    return {"storage": p.storage, "type": stored["type"]}


@endpoint(
    "GET",
    "/storage/{storage}",
    params=OneStorage,
    permission=Perm("/storage/{storage}", ("Datastore.Allocate",)),
    returns=dict[str, Any],
)
def read_storage(call: Call, p: OneStorage) -> dict[str, Any]:
    """The options of one storage."""
    return configuration(call).describe(p.storage)


@endpoint("PUT", "/storage/{storage}", params=UpdateStorage, permission=ADMINISTER, returns=dict[str, Any])
def update_storage(call: Call, p: Any) -> dict[str, Any]:
    """Change the options of a storage; its volumes stay."""
    stored = configuration(call).update(p.storage, p.options(), p.delete, p.digest)
    call.services.collector.storages.refresh(p.storage)
    return {"storage": p.storage, "type": stored["type"]}


@endpoint("DELETE", "/storage/{storage}", params=OneStorage, permission=ADMINISTER)
def delete_storage(call: Call, p: OneStorage) -> None:
    """Forget a storage. Nothing on it is touched."""
    configuration(call).remove(p.storage)
