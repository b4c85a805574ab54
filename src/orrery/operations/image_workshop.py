# SPDX-License-Identifier: AGPL-3.0-or-later
"""The workshop in which a task makes an image: the web, private files on the target storage, and unpacking in a jail.

Every private file is a staged one of the storage; whatever happens, none outlives the task.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from orrery.drivers.images.base import IMAGE, SMALL, Digest, Reply
from orrery.drivers.storage import unpack
from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.usage import require_room
from orrery.errors import Failure
from orrery.model.images import Sources
from orrery.operations.context import NodeContext
from orrery.operations.volume_download import files_error, proxy_of
from orrery.store.base import Store
from orrery.store.documents import read_document
from orrery.tasks.operation import TaskHandle

OPTIONS: Final = "/cluster/images"
_ROOM_EVERY: Final = 64 << 20
_SECONDS: Final = 12 * 3600.0
"""However slowly it trickles, no download takes longer."""


def sources_of(store: Store) -> Sources:
    """Where this installation gets its images from. Raises Failure for options that somebody has damaged."""
    try:
        return Sources.parse(read_document(store, OPTIONS) or {})
    except ValueError as error:
        raise Failure(f"the options of images are damaged: {error}; set them anew with PUT /cluster/images") from error


class Web:
    """Small answers from web servers, by the installation's mirrors and proxy."""

    def __init__(self, store: Store) -> None:
        self.sources = sources_of(store)
        self.proxy = proxy_of(store)

    def ask(self, url: str, headers: Mapping[str, str] | None = None, *, limit: int = SMALL) -> Reply:
        """See `drivers.images.base.Workshop`."""
        from orrery.drivers.storage import fetch  # the HTTP client's memory is for the few that need it

        where = self.sources.mirrored(url)
        answer = fetch.ask(where, verify=True, limit=limit, proxy=self.proxy, headers=headers)
        return Reply(answer.status, answer.headers, answer.body)

    # What needs a storage does not exist here.

    def download(
        self,
        url: str,
        digest: Digest | None,
        *,
        headers: Mapping[str, str] | None = None,
        size: int | None = None,
        what: str = "",
    ) -> Path:
        raise Failure("nothing is downloaded while only asking")

    def unpacked(self, packed: Path, compression: str) -> Path:
        raise Failure("nothing is unpacked while only asking")

    def blank(self) -> Path:
        raise Failure("no file is made while only asking")

    def room(self, size: int) -> None:
        raise Failure("no file is made while only asking")

    def discard(self, file: Path) -> None:
        raise Failure("no file is made while only asking")

    def log(self, text: str) -> None:
        """Nobody listens."""

    def progress(self, done: int, total: int, step: str) -> None:
        """Nobody watches."""


class ImageWorkshop(Web):
    """See `drivers.images.base.Workshop`. Open it by `workshop`."""

    def __init__(self, ctx: NodeContext, task: TaskHandle, driver: StorageDriver, volume: str) -> None:
        super().__init__(ctx.store)
        self.task = task
        self.driver = driver
        self.volume = volume
        self.files: set[Path] = set()

    def download(
        self,
        url: str,
        digest: Digest | None,
        *,
        headers: Mapping[str, str] | None = None,
        size: int | None = None,
        what: str = "",
    ) -> Path:
        from orrery.drivers.storage import fetch

        where = self.sources.mirrored(url)
        self.task.log(f"downloading {fetch.shown(where)}")
        target = self.blank()
        computed = hashlib.new(digest.algorithm, usedforsecurity=False) if digest is not None else None
        with fetch.opened(where, verify=True, proxy=self.proxy, headers=headers) as download:
            if size is not None and download.length not in (None, size):
                raise Failure(f"the server has {download.length} bytes for the {what}, not {size}")
            most = size if size is not None else IMAGE
            self.room(min(download.length or size or 0, most))
            write = self._writer(target, most, computed.update if computed is not None else lambda piece: None, what)
            with write as sink:
                download.read(sink.take, lambda: sink.tick(download.length or size or 0))
        if digest is not None and computed is not None:
            found = computed.hexdigest()
            if found != digest.value:
                raise Failure(f"checksum mismatch: got '{found}' != expect '{digest.value}' ({digest.algorithm})")
            self.task.log(f"{digest.algorithm} checksum is as expected")
        return target

    def unpacked(self, packed: Path, compression: str) -> Path:
        target = self.blank()
        checked = 0

        def written(done: int) -> None:
            nonlocal checked
            self.progress(done, done, "unpack")
            if done > IMAGE:
                raise Failure(f"what is unpacked is larger than {IMAGE} bytes")
            if done - checked >= _ROOM_EVERY:
                checked = done
                self.room(0)

        unpack.unpack(packed, compression, target, written)
        return target

    def blank(self) -> Path:
        file = self.driver.staging(self.volume)
        self.files.add(file)
        return file

    def room(self, size: int) -> None:
        require_room(self.driver, size)

    def discard(self, file: Path) -> None:
        self.files.discard(file)
        self.driver.discard(file)

    def log(self, text: str) -> None:
        self.task.log(text)

    def progress(self, done: int, total: int, step: str) -> None:
        self.task.progress(done, total, "bytes", step)

    @contextlib.contextmanager
    def _writer(self, target: Path, most: int, update: Callable[[bytes], None], what: str) -> Iterator["_Sink"]:
        with files_error(self.driver), target.open("wb", buffering=0) as stream:
            yield _Sink(self, stream.write, most, update, what)


class _Sink:
    """Takes a download's pieces: writes and digests them, and watches size, space and time."""

    def __init__(
        self,
        shop: ImageWorkshop,
        write: Callable[[memoryview], int | None],
        most: int,
        update: Callable[[bytes], None],
        what: str,
    ) -> None:
        self.shop, self.write, self.most, self.update, self.what = shop, write, most, update, what
        self.done = 0
        self.deadline = time.monotonic() + _SECONDS

    def take(self, piece: bytes) -> None:
        before, self.done = self.done, self.done + len(piece)
        if self.done > self.most:
            raise Failure(f"the server sends more than the {self.most} bytes that the {self.what} may have")
        if before // _ROOM_EVERY != self.done // _ROOM_EVERY:
            self.shop.room(0)
        rest = memoryview(piece)
        while rest:
            rest = rest[self.write(rest) or 0 :]
        self.update(piece)

    def tick(self, total: int) -> None:
        if time.monotonic() > self.deadline:
            raise Failure(f"the download took longer than {_SECONDS / 3600:g} hours")
        self.shop.progress(self.done, max(total, self.done), f"download {self.what}".strip())


@contextlib.contextmanager
def workshop(ctx: NodeContext, task: TaskHandle, driver: StorageDriver, volume: str) -> Iterator[ImageWorkshop]:
    """A workshop for making `volume`; its files are gone when the block ends, and when the task is undone."""
    driver.activate()
    task.before("volume.sweep", storage=driver.name)
    shop = ImageWorkshop(ctx, task, driver, volume)
    try:
        yield shop
    finally:
        for file in shop.files:
            driver.discard(file)
