# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cache of usage tells the truth, and never waits long."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orrery.drivers.storage.base import StorageDriver, Usage
from orrery.drivers.storage.directory import DirectoryStorage
from orrery.drivers.storage.usage import StorageUsageCache, require_room
from orrery.errors import NoSpace, NotFound


class Fake:
    """A registry of real folders, whose `usage` can be made to hang."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known = {"a": {"type": "dir"}, "b": {"type": "dir"}}
        self.hang = threading.Event()
        self.hang.set()
        self.asked = 0

    def configured(self) -> dict[str, dict[str, Any]]:
        return dict(self.known)

    def get(self, name: str) -> StorageDriver:
        if name not in self.known:
            raise NotFound(f"storage '{name}' does not exist")
        if name == "b":
            self.asked += 1
            self.hang.wait()
        return DirectoryStorage(name, {"path": str(self.folder / name), "mkdir": name != "missing"}, "n1")


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_refresh(fake: Fake) -> None:
    cache = StorageUsageCache(fake)
    assert cache.get("a") is None
    cache.refresh()
    state = cache.get("a")
    assert state is not None
    assert state.active
    assert state.usage is not None
    assert state.usage.total > 0
    assert (fake.folder / "a" / "images").is_dir()
    del fake.known["a"]
    cache.refresh()
    assert cache.get("a") is None


def test_trouble_is_told(fake: Fake) -> None:
    fake.known = {"missing": {}}
    cache = StorageUsageCache(fake)
    cache.refresh()
    state = cache.get("missing")
    assert state is not None
    assert (state.active, state.usage) == (False, None)
    assert "does not exist" in (state.trouble or "")
    (fake.folder / "missing").mkdir()
    cache.refresh("missing")
    state = cache.get("missing")
    assert state is not None
    assert state.active


def test_a_storage_that_hangs_holds_up_nobody(fake: Fake) -> None:
    cache = StorageUsageCache(fake, patience=0.2)
    cache.refresh()
    fake.hang.clear()
    started = time.monotonic()
    for _ in range(3):
        cache.refresh()
    assert time.monotonic() - started < 2
    assert fake.asked == 2, "it is not asked again while it hangs"
    hanging, other = cache.get("b"), cache.get("a")
    assert hanging is not None
    assert other is not None
    assert (hanging.active, other.active) == (False, True)
    assert "no answer" in (hanging.trouble or "")
    fake.hang.set()
    cache.refresh()
    hanging = cache.get("b")
    assert hanging is not None
    assert hanging.active


def test_room_keeps_a_reserve(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = fake.get("a")
    mib = 1 << 20
    monkeypatch.setattr(DirectoryStorage, "usage", lambda self: Usage(100 * mib, 40 * mib, 60 * mib))
    require_room(driver, 55 * mib)
    with pytest.raises(NoSpace, match="storage 'a'"):
        require_room(driver, 56 * mib)
    monkeypatch.setattr(DirectoryStorage, "usage", lambda self: Usage(1 << 40, 0, 1 << 39))
    require_room(driver, (1 << 39) - 256 * mib)
    with pytest.raises(NoSpace):
        require_room(driver, (1 << 39) - 256 * mib + 1)
