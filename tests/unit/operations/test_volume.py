# SPDX-License-Identifier: AGPL-3.0-or-later
"""Uploads are published, volumes copied and removed; what fails is undone by its records."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orrery.drivers.storage.directory import DirectoryStorage
from orrery.drivers.storage.registry import StorageRegistry
from orrery.errors import AlreadyExists, Cancelled, Failure, NotFound, NotSupported, OrreryError
from orrery.model.guest import GuestConfig, GuestRecord
from orrery.operations import volume
from orrery.operations.volume import CopyVolume, DeleteVolume, PublishUpload
from orrery.store.documents import encode_document
from orrery.store.guests import add_guest
from orrery.store.memory import MemoryStore
from orrery.system.paths import Paths
from orrery.tasks import registry, revert

MIB = 1 << 20


@dataclass
class Task:
    """A task that keeps its records in memory, and can be asked to stop."""

    lines: list[str] = field(default_factory=list)
    records: dict[int, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    stop: bool = False
    committed: bool = False
    steps: list[tuple[int, int]] = field(default_factory=list)

    def log(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"WARN: {text}")

    def progress(self, done: int, total: int, unit: str = "bytes", step: str = "") -> None:
        self.steps.append((done, total))
        self.step(step)

    def before(self, undo: str, /, **arguments: Any) -> int:
        assert revert.known(undo)
        self.records[len(self.records)] = (undo, arguments)
        return len(self.records) - 1

    def step(self, name: str, /, **data: Any) -> None:
        if self.stop and not self.committed:
            raise Cancelled

    def kept(self, record: int) -> None:
        del self.records[record]

    def commit(self) -> None:
        self.step("commit")
        self.records.clear()
        self.committed = True

    def end(self) -> None:
        """As the journal does at the end: what can still be undone is, if that was asked for."""
        if self.records:
            self.commit()


@dataclass
class Node:
    ctx: Any
    store: MemoryStore
    root: Path
    task: Task | None = None

    def run(self, operation: Any, *, stop: bool = False) -> Task:
        """Carries out an operation as a task would, through JSON and with its undo."""
        operation = registry.decode(registry.name_of(operation), registry.encode(operation))
        task = Task(stop=stop)
        operation.check(self.ctx)
        self.task = task
        try:
            operation.run(self.ctx, task)
            task.end()
        except OrreryError:
            self.undo(task)
            raise
        return task

    def undo(self, task: Task) -> None:
        records = [revert.UndoRecord(n, *task.records[n]) for n in sorted(task.records, reverse=True)]
        for _ in range(2):
            assert revert.unwind(records, self.ctx, task.log, lambda number: None) == []

    def guest(self, vmid: int, **options: str) -> None:
        add_guest(self.store, GuestRecord(vmid, "qemu", "n1", GuestConfig(options=options)))

    def everything(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    def staged(self, name: str, data: bytes) -> str:
        driver = self.ctx.storages.get("local")
        path: Path = driver.staging(name)
        path.write_bytes(data)
        return str(path)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    store = MemoryStore()
    paths = Paths.of(tmp_path / "node")
    storages = StorageRegistry(store, paths, "n1")
    store.put(
        "/storage/media",
        encode_document({"type": "dir", "path": str(tmp_path / "media"), "content": "iso,images", "format": "qcow2"}),
    )
    for name in ("local", "media"):
        storages.get(name).activate()
    ctx = SimpleNamespace(paths=paths, node="n1", store=store, storages=storages)
    return Node(ctx, store, paths.local_storage)


# --- uploads


def test_publish(node: Node) -> None:
    staged = node.staged("iso/x.iso", b"cd")
    task = node.run(PublishUpload("local", "iso/x.iso", staged, 2, "AB", "md5", "ab"))
    assert node.everything() == {"template/iso/x.iso"}
    assert any("checksum" in line for line in task.lines)
    assert node.ctx.storages.get("local").info("iso/x.iso").size == 2


def test_publish_replaces(node: Node) -> None:
    for data in (b"one", b"two"):
        node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", data), 3))
    assert (node.root / "template/iso/x.iso").read_bytes() == b"two"
    assert len(node.everything()) == 1


@pytest.mark.parametrize("computed", ["cd", None, ""])
def test_wrong_checksum_removes_the_upload(node: Node, computed: str | None) -> None:
    staged = node.staged("iso/x.iso", b"cd")
    with pytest.raises(Failure, match="checksum mismatch"):
        node.run(PublishUpload("local", "iso/x.iso", staged, 2, "ab", "md5", computed))
    assert node.everything() == set()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("iso/x.iso", b"QFI\xfb" + bytes(100)),
        ("vztmpl/x.tar.gz", b"<html>404</html>"),
        ("import/x.qcow2", b"not an image"),
        ("import/x.vmdk", b'# Disk DescriptorFile\nRW 1 FLAT "/etc/shadow" 0\n'),
        ("import/x.raw", b"QFI\xfb" + bytes(1000)),
    ],
)
def test_content_that_does_not_fit(node: Node, name: str, data: bytes) -> None:
    with pytest.raises(Failure):
        node.run(PublishUpload("local", name, node.staged(name, data), len(data)))
    assert node.everything() == set()


def test_import_image_with_backing_file_is_refused(node: Node, tmp_path: Path) -> None:
    secret, evil = tmp_path / "secret", tmp_path / "evil.qcow2"
    secret.write_bytes(bytes(MIB))
    command = ["qemu-img", "create", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(evil)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(Failure, match="another file"):
        node.run(PublishUpload("local", "import/x.qcow2", node.staged("import/x.qcow2", evil.read_bytes()), 1))
    assert node.everything() == set()


def test_import_image_is_published(node: Node, tmp_path: Path) -> None:
    good = tmp_path / "good.qcow2"
    subprocess.run(["qemu-img", "create", "-f", "qcow2", str(good), "5M"], check=True, capture_output=True)
    node.run(PublishUpload("local", "import/x.qcow2", node.staged("import/x.qcow2", good.read_bytes()), 1))
    info = node.ctx.storages.get("local").info("import/x.qcow2")
    assert (info.size, info.format, info.content) == (5 * MIB, "qcow2", "import")


def test_cancelled_upload_is_removed(node: Node) -> None:
    with pytest.raises(Cancelled):
        node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", b"cd"), 2), stop=True)
    assert node.everything() == set()


def test_an_upload_cancelled_too_late_is_there(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_late(node, monkeypatch)
    task = node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", b"cd"), 2))
    assert task.committed
    assert node.everything() == {"template/iso/x.iso"}


def publish_late(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on tasks are asked to stop just when a file has got its name."""
    publish = DirectoryStorage.publish

    def published(self: DirectoryStorage, *arguments: Any, **options: Any) -> None:
        publish(self, *arguments, **options)
        assert node.task is not None
        node.task.stop = True

    monkeypatch.setattr(DirectoryStorage, "publish", published)


def test_an_upload_that_cannot_be_published_is_removed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DirectoryStorage, *arguments: Any, **options: Any) -> None:
        raise Failure("no space")

    monkeypatch.setattr(DirectoryStorage, "publish", full)
    with pytest.raises(Failure, match="no space"):
        node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", b"cd"), 2))
    assert node.everything() == set()


def test_upload_of_another_storages_file(node: Node, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x")
    with pytest.raises(Failure, match="staged file"):
        node.ctx.storages.get("local").adopt(victim)
    with pytest.raises(Failure):
        node.run(PublishUpload("media", "import/x.raw", str(victim), 1))
    assert victim.exists()


def test_killed_upload_is_undone(node: Node) -> None:
    staged = node.staged("iso/x.iso", b"cd")
    task = Task()
    task.before("volume.unstage", storage="local", staged=staged)
    node.ctx.storages.get("local").adopt(Path(staged))
    node.undo(task)
    assert node.everything() == set()


# --- removal


def test_delete(node: Node) -> None:
    node.ctx.storages.get("local").allocate("100/vm-100-disk-0.raw", MIB)
    operation = DeleteVolume("local:100/vm-100-disk-0.raw")
    assert operation.subject() == "100@local"
    assert "guest/100" in operation.locks()
    node.run(operation)
    assert node.everything() == set()
    with pytest.raises(NotFound):
        node.run(operation)


@pytest.mark.parametrize("key", ["scsi0", "unused3"])
def test_a_disk_in_use_stays(node: Node, key: str) -> None:
    node.ctx.storages.get("local").allocate("100/vm-100-disk-0.raw", MIB)
    node.ctx.storages.get("local").allocate("100/vm-100-disk-1.raw", MIB)
    node.guest(100, **{key: "local:100/vm-100-disk-0.raw,size=1M"})
    with pytest.raises(Failure, match="in use by guest 100"):
        node.run(DeleteVolume("local:100/vm-100-disk-0.raw"))
    node.run(DeleteVolume("local:100/vm-100-disk-1.raw"))
    assert node.everything() == {"images/100/vm-100-disk-0.raw"}


def test_an_iso_goes_though_it_is_in_a_drive(node: Node) -> None:
    node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", b"cd"), 2))
    node.guest(100, ide2="local:iso/x.iso,media=cdrom")
    operation = DeleteVolume("local:iso/x.iso")
    assert operation.subject() == "local"
    node.run(operation)
    assert node.everything() == set()


def test_protected_backup_stays(node: Node) -> None:
    driver = node.ctx.storages.get("local")
    name = "backup/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    driver.publish(driver.staging(name), name)
    driver.set_attributes(name, protected=True)
    with pytest.raises(Failure, match="protected"):
        node.run(DeleteVolume(f"local:{name}"))
    assert driver.info(name).protected


# --- copies


def test_copy_of_an_image_changes_format_and_storage(node: Node) -> None:
    source = node.ctx.storages.get("local")
    source.allocate("100/vm-100-disk-0.raw", MIB)
    source.path("100/vm-100-disk-0.raw").write_bytes(os.urandom(MIB))
    task = node.run(CopyVolume("local:100/vm-100-disk-0.raw", "media:101/vm-101-disk-0.qcow2"))
    info = node.ctx.storages.get("media").info("101/vm-101-disk-0.qcow2")
    assert (info.size, info.format, info.vmid) == (MIB, "qcow2", 101)
    assert task.steps[-1] == (MIB, MIB)


def test_copy_of_a_file(node: Node) -> None:
    data = os.urandom(10 * MIB + 7)
    node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", data), 1))
    task = node.run(CopyVolume("local:iso/x.iso", "media:iso/y.iso"))
    assert node.ctx.storages.get("media").path("iso/y.iso").read_bytes() == data
    assert task.steps[-1] == (len(data), len(data))


def test_copies_that_cannot_be(node: Node) -> None:
    driver = node.ctx.storages.get("local")
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    for name in ("snippets/a", "backup/vzdump-qemu-100-x.vma", "backup/vzdump-qemu-100-y.vma"):
        driver.publish(driver.staging(name), name)
    cases: list[tuple[str, str, type[OrreryError]]] = [
        ("local:iso/none.iso", "local:iso/y.iso", NotFound),
        ("local:snippets/a", "local:iso/y.iso", Failure),
        ("local:snippets/a", "media:snippets/a", Failure),
        ("local:backup/vzdump-qemu-100-x.vma", "local:backup/vzdump-qemu-100-x.tar", NotSupported),
        ("local:backup/vzdump-qemu-100-x.vma", "local:backup/vzdump-qemu-100-y.vma", AlreadyExists),
        ("local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-0.raw", AlreadyExists),
        ("local:100/vm-100-disk-0.raw", "local:../x", Failure),
    ]
    for source, target, error in cases:
        with pytest.raises(error):
            node.run(CopyVolume(source, target))
    assert len(node.everything()) == 4


def test_cancelled_copies_leave_nothing(node: Node) -> None:
    driver = node.ctx.storages.get("local")
    driver.allocate("100/vm-100-disk-0.raw", 64 * MIB)
    node.run(PublishUpload("local", "iso/x.iso", node.staged("iso/x.iso", b"cd"), 2))
    before = node.everything()
    for source, target in (
        ("local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.qcow2"),
        ("local:iso/x.iso", "local:iso/y.iso"),
    ):
        with pytest.raises(Cancelled):
            node.run(CopyVolume(source, target), stop=True)
    assert node.everything() == before


def test_a_copy_that_comes_second_leaves_the_first_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = node.ctx.storages.get("local")
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    driver.allocate("100/vm-100-disk-1.raw", 2 * MIB)
    monkeypatch.setattr(volume, "exists", lambda *_: False)
    with pytest.raises(AlreadyExists):
        node.run(CopyVolume("local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.raw"))
    assert driver.info("100/vm-100-disk-1.raw").size == 2 * MIB


def test_undo_spares_what_a_guest_has_come_to_use(node: Node) -> None:
    node.ctx.storages.get("local").allocate("100/vm-100-disk-0.raw", MIB)
    node.guest(100, scsi0="local:100/vm-100-disk-0.raw,size=1M")
    task = Task()
    task.before("volume.free", volume="local:100/vm-100-disk-0.raw")
    node.undo(task)
    assert node.everything() == {"images/100/vm-100-disk-0.raw"}
