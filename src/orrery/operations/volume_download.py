# SPDX-License-Identifier: AGPL-3.0-or-later
"""Downloads from web servers straight into a storage."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from orrery.drivers.storage import unpack
from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.registry import require_content
from orrery.drivers.storage.usage import require_room
from orrery.errors import AlreadyExists, Failure
from orrery.operations.context import NodeContext
from orrery.operations.volume import check_checksum, check_content, exists, parse_name, volume_lock
from orrery.store.base import Store
from orrery.store.documents import read_document
from orrery.system import files
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation

if TYPE_CHECKING:
    from orrery.drivers.storage.fetch import Download

CHECKSUMS: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
COMPRESSIONS: Final = tuple(unpack.PROGRAMS)
_ROOM_EVERY: Final = 64 << 20


def hasher(algorithm: str) -> Any:
    """A hash object; md5 and sha1 are what publishers still print beside their files, not a defence."""
    if algorithm not in CHECKSUMS:
        raise Failure(f"checksum algorithm '{algorithm}' is not known")
    return hashlib.new(algorithm, usedforsecurity=False)


def proxy_of(store: Store) -> str | None:
    """The web proxy that the administrators have set for the whole installation."""
    options = read_document(store, "/cluster/options") or {}
    proxy = options.get("http_proxy")
    return str(proxy) if proxy else None


@operation
@dataclass(frozen=True)
class DownloadUrl:
    """Fetches `url` into the volume `volume`, which must not exist; unpacks it first when `compression` is set.

    The checksum is that of the file as the server sends it.
    """

    kind: ClassVar[str] = "download"

    storage: str
    volume: str
    url: str = field(metadata={"secret": True})  # may carry a password or a signature
    checksum: str | None = None
    algorithm: str | None = None
    compression: str | None = None
    verify_certificates: bool = True

    def subject(self) -> str:
        return self.volume.rpartition("/")[2]

    def locks(self) -> tuple[str, ...]:
        return (volume_lock(self.storage, self.volume),)

    def check(self, ctx: NodeContext) -> None:
        """Raises Failure for a file that is there already, and for programs that are missing."""
        driver = ctx.storages.get(self.storage)
        require_content(driver, parse_name(self.volume).content)
        if self.compression is not None:
            unpack.require_program(self.compression)
        if exists(driver, self.volume):
            raise AlreadyExists(f"refusing to override existing file '{self.subject()}'")

    def run(self, ctx: NodeContext, task: TaskHandle) -> None:
        """Downloads, verifies, unpacks, examines, publishes; a failure leaves nothing."""
        from orrery.drivers.storage import fetch  # the HTTP client's memory is for the few tasks that need it

        driver = ctx.storages.get(self.storage)
        driver.activate()
        task.before("volume.sweep", storage=self.storage)
        with contextlib.ExitStack() as leftovers:
            staged = _staged(driver, self.volume, leftovers)
            task.log(f"downloading {fetch.shown(self.url)} to {self.storage}:{self.volume}")
            with fetch.opened(self.url, verify=self.verify_certificates, proxy=proxy_of(ctx.store)) as download:
                computed = self._receive(download, driver, staged, task)
            check_checksum(self.checksum, self.algorithm, computed, task.log)
            if self.compression is not None:
                packed, staged = staged, _staged(driver, self.volume, leftovers)
                task.log(f"unpacking ({self.compression})")
                size = unpack.unpack(packed, self.compression, staged, _room(driver, task))
                task.log(f"unpacked {size} bytes")
            check_content(staged, parse_name(self.volume))
            task.step("publish")
            task.commit()
            task.before("volume.sweep", storage=self.storage)
            try:
                driver.publish(staged, self.volume)
            except AlreadyExists as error:
                raise AlreadyExists(f"refusing to override existing file '{self.subject()}'") from error
        task.log(f"download of '{self.subject()}' finished")

    def _receive(self, download: "Download", driver: StorageDriver, staged: Path, task: TaskHandle) -> str | None:
        """Writes the download into the staged file; its checksum, if one is wanted."""
        digest = hasher(self.algorithm) if self.algorithm is not None else None
        total = download.length or 0
        require_room(driver, total)
        task.log(f"size: {total} bytes" if download.length is not None else "size: not told by the server")
        done = 0
        with files_error(driver), staged.open("wb", buffering=0) as stream:

            def sink(piece: bytes) -> None:
                nonlocal done
                rest = memoryview(piece)
                while rest:
                    rest = rest[stream.write(rest) :]
                if digest is not None:
                    digest.update(piece)
                if done // _ROOM_EVERY != (done + len(piece)) // _ROOM_EVERY:
                    require_room(driver, 0)
                done += len(piece)

            download.read(sink, lambda: task.progress(done, max(total, done), "bytes", "download"))
        task.log(f"received {done} bytes")
        return None if digest is None else str(digest.hexdigest())


@contextlib.contextmanager
def files_error(driver: StorageDriver) -> Any:
    """Turns a failed write into the tree's error."""
    try:
        yield
    except OSError as error:
        raise files.failure(error, f"unable to write to storage '{driver.name}'") from error


def _staged(driver: StorageDriver, volume: str, leftovers: contextlib.ExitStack) -> Path:
    staged = driver.staging(volume)
    leftovers.callback(driver.discard, staged)
    return staged


def _room(driver: StorageDriver, task: TaskHandle) -> Callable[[int], None]:
    """Watches the space while something of unknown size grows."""
    checked = 0

    def written(done: int) -> None:
        nonlocal checked
        task.progress(done, done, "bytes", "unpack")
        if done - checked >= _ROOM_EVERY:
            checked = done
            require_room(driver, 0)

    return written
