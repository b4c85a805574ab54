# SPDX-License-Identifier: AGPL-3.0-or-later
"""The configured storages and their drivers.

A storage is the JSON under `/storage/ID` in the store. `local` is built in: without an entry of its own it is a folder
of the node's state, so that a fresh node can keep disks and media at once.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.btrfs import open_storage
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.drivers.storage.options import flag
from orrery.errors import Failure, NotFound, NotSupported
from orrery.model.volume import VolumeId
from orrery.store.base import Store
from orrery.store.documents import read_document, read_documents
from orrery.system.paths import Paths

PREFIX: Final = "/storage/"
BUILT_IN: Final = "local"
LOCAL_CONTENT: Final = "backup,images,import,iso,rootdir,snippets,vztmpl"

DRIVERS: Final[Mapping[str, Callable[[str, Mapping[str, Any], str], StorageDriver]]] = MappingProxyType(
    {"btrfs": open_storage, "dir": DirectoryStorage}
)


class StorageRegistry:
    """Drivers by storage name. Cheap to make and to ask; reads the store every time, so it is never out of date."""

    def __init__(self, store: Store, paths: Paths, node: str) -> None:
        self._store = store
        self._paths = paths
        self._node = node

    def built_in(self) -> dict[str, Any]:
        """Options of `local` where nobody has configured others; its path is this node's own."""
        return {"type": "dir", "path": str(self._paths.local_storage), "content": LOCAL_CONTENT}

    def definitions(self) -> dict[str, dict[str, Any]]:
        """The options of every storage by name, also of those that are disabled or belong to other nodes."""
        return self.complete_all(read_documents(self._store, PREFIX))

    def definition(self, name: str) -> dict[str, Any]:
        """The options of one storage. Raises NotFound."""
        options = read_document(self._store, PREFIX + name)
        if options is None and name != BUILT_IN:
            raise NotFound(f"storage '{name}' does not exist")
        return self.complete(name, options or {})

    def complete(self, name: str, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Stored options with what they leave to the node."""
        return {**(self.built_in() if name == BUILT_IN else {}), **stored}

    def complete_all(self, stored: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The options of every storage by name, given all that is stored."""
        found = {BUILT_IN: {}, **stored}
        return {name: self.complete(name, options) for name, options in sorted(found.items())}

    def configured(self) -> dict[str, dict[str, Any]]:
        """The options of the storages that this node uses."""
        return {name: options for name, options in self.definitions().items() if self._refusal(name, options) is None}

    def names(self) -> list[str]:
        """Names of the storages that this node uses."""
        return list(self.configured())

    def get(self, name: str) -> StorageDriver:
        """The driver of a storage that this node uses. Raises NotFound, NotSupported, Failure."""
        options = self.definition(name)
        refusal = self._refusal(name, options)
        if refusal is not None:
            raise Failure(refusal)
        return build(name, options, self._node)

    def volume(self, volid: str) -> tuple[StorageDriver, str]:
        """The storage of a volume id, and the volume's name there. Raises as `get`, and Failure for no volume id."""
        try:
            parsed = VolumeId.parse(volid)
        except ValueError as error:
            raise Failure(f"unable to parse volume ID '{volid}': {error}") from error
        return self.get(parsed.storage), parsed.name

    def content_allowed(self, name: str, content: str) -> StorageDriver:
        """The driver of a storage that may hold such content. Raises as `get`, and Failure when it may not."""
        driver = self.get(name)
        require_content(driver, content)
        return driver

    def _refusal(self, name: str, options: Mapping[str, Any]) -> str | None:
        if flag(options.get("disable"), False):
            return f"storage '{name}' is disabled"
        nodes = node_names(options)
        if nodes and self._node not in nodes:
            return f"storage '{name}' is not available on node '{self._node}'"
        return None


def build(name: str, options: Mapping[str, Any], node: str) -> StorageDriver:
    """The driver for stored options. Raises NotSupported for types that this version does not have, Failure."""
    kind = str(options.get("type", ""))
    make = DRIVERS.get(kind)
    if make is None:
        raise NotSupported(f"storage type '{kind}' is not supported yet")
    return make(name, options, node)


def require_content(driver: StorageDriver, content: str) -> None:
    """Raises Failure unless the storage is configured for this content type."""
    if content not in driver.contents:
        raise Failure(f"storage '{driver.name}' does not support content-type '{content}'")


def node_names(options: Mapping[str, Any]) -> Collection[str]:
    """The nodes that a storage is limited to; empty for all."""
    nodes = options.get("nodes") or ""
    return frozenset(str(nodes).replace(",", " ").split() if not isinstance(nodes, list) else map(str, nodes))
