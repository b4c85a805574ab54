# SPDX-License-Identifier: AGPL-3.0-or-later
"""/storage: which storages there are, the same for all nodes."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum
from orrery.api.optionparams import OptionParams, OptionRow, option_params
from orrery.api.parameters import DeleteList, Digest, Params, StorageId
from orrery.model.storage import STORAGE_OPTIONS, STORAGE_TYPES, SUPPORTED_TYPES, StorageOption
from orrery.operations.storage_configuration import StorageConfiguration

ADMINISTER = Perm("/storage", ("Datastore.Allocate",))
_SECRETS = frozenset(("password", "keyring", "encryption-key", "master-pubkey"))


def _row(option: StorageOption) -> OptionRow:
    supported = option.support == "yes" and not option.types.isdisjoint(SUPPORTED_TYPES)
    raw = option.name in _SECRETS
    return OptionRow(option.name, option.rule, option.canonical, supported=supported, listed=True, raw=raw)


def _with_options(name: str, base: type[Params], *, fixed: bool) -> type[OptionParams]:
    """A model with the options of all kinds of storage; `fixed`: also those that only a new storage takes."""
    wanted = (each for each in STORAGE_OPTIONS.values() if each.name != "type" and (fixed or not each.fixed))
    return option_params(name, base, map(_row, wanted))


class _Create(Params):
    storage: StorageId
    type: Annotated[str, Enum(*STORAGE_TYPES, doc="Kind of storage; this version has `dir`.")]


class _Update(Params):
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
