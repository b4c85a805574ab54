# SPDX-License-Identifier: AGPL-3.0-or-later
"""Everything below /storage and /nodes/{node}/storage, over a storage of real files."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.api.conftest import NODE
from tests.unit.api.wire import Answer, Wire
from tests.unit.drivers.storage.test_fetch import page, serving
from tests.unit.operations.test_volume import Task

from orrery.api.routes import storage_content
from orrery.api.services import Services
from orrery.drivers.storage.registry import StorageRegistry
from orrery.drivers.storage.usage import StorageUsageCache
from orrery.errors import OrreryError
from orrery.tasks import registry as operations
from orrery.tasks import revert
from orrery.tasks.journal import Journal

MIB = 1 << 20
LOCAL = f"/nodes/{NODE}/storage/local"
BACKUP = "backup/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"


class InlineRunner:
    """Carries tasks out at once, and keeps how they ended."""

    def __init__(self) -> None:
        self.ctx: Any = None
        self.ends: dict[str, str] = {}

    def start(self, operation: Any, identity: Any) -> str:
        operation = operations.decode(operations.name_of(operation), operations.encode(operation))
        upid = f"UPID:{NODE}:00000001:00000001:{len(self.ends):08X}:{operation.kind}:{operation.subject()}:{identity}:"
        task = Task()
        try:
            operation.run(self.ctx, task)
            self.ends[upid] = "OK"
        except OrreryError as error:
            self.ends[upid] = error.message
            records = [revert.UndoRecord(n, *task.records[n]) for n in sorted(task.records, reverse=True)]
            assert revert.unwind(records, self.ctx, task.log, lambda number: None) == []
        return upid

    def wait(self, upid: str, timeout: float) -> Any:
        return SimpleNamespace(running=False, status=self.ends[str(upid)])


@pytest.fixture
def services(services: Services) -> Services:
    """The node of the other tests, with storages and tasks."""
    storages = StorageRegistry(services.store, services.paths, NODE)
    runner = InlineRunner()
    runner.ctx = SimpleNamespace(paths=services.paths, node=NODE, store=services.store, storages=storages)
    collector: Any = SimpleNamespace(storages=StorageUsageCache(storages), facts=[])
    collector.storages.refresh()
    journal = Journal(services.paths.tasks_db, services.paths.task_logs)
    parts: dict[str, Any] = {"runner": runner, "context": runner.ctx, "collector": collector, "journal": journal}
    return dataclasses.replace(services, **parts)


@pytest.fixture
def driver(services: Services) -> Any:
    return services.context.storages.get("local")


@pytest.fixture
def ends(services: Services) -> dict[str, str]:
    """How the tasks ended, by their UPID."""
    runner: Any = services.runner
    found: dict[str, str] = runner.ends
    return found


@pytest.fixture
def user(admin: Wire, stranger: Wire) -> Wire:
    """anna@pve, who may nothing yet."""
    assert admin.post("/access/users", userid="anna@pve", password="geheim123").status == 200
    return stranger.with_ticket("anna@pve", "geheim123")


def grant(admin: Wire, path: str, role: str) -> None:
    answer = admin.put("/access/acl", path=path, roles=role, users="anna@pve")
    assert answer.status == 200, answer


def upload(wire: Wire, filename: str, data: bytes, path: str = LOCAL, **fields: str) -> Answer:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    parts.append(f'--b\r\nContent-Disposition: form-data; name="filename"; filename="{filename}"\r\n\r\n')
    body = "".join(parts).encode() + data + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(len(body))}
    return wire.send("POST", f"{path}/upload", body=body, headers=headers)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def everything(services: Services) -> Callable[[], set[str]]:
    return lambda: files_in(services.paths.local_storage)


# --- /storage


def test_local_is_there_from_the_start(admin: Wire) -> None:
    (row,) = admin.get("/storage").data
    assert (row["storage"], row["type"], row["content"]) == (
        "local",
        "dir",
        "backup,images,import,iso,rootdir,snippets,vztmpl",
    )
    assert len(row["digest"]) == 40
    assert admin.get("/storage", type="nfs").data == []
    assert admin.get("/storage/local").data == row


def test_life_of_a_storage(admin: Wire, tmp_path: Path) -> None:
    folder = tmp_path / "tank"
    options: dict[str, Any] = {
        "storage": "tank",
        "type": "dir",
        "path": str(folder),
        "content": "iso,images",
        "shared": 0,
    }
    assert admin.post("/storage", **options).data == {"storage": "tank", "type": "dir"}
    assert (folder / "images").is_dir()
    row = admin.get("/storage/tank").data
    assert (row["content"], row["shared"], row["path"]) == ("images,iso", 0, str(folder))
    again = admin.post("/storage", **options)
    assert (again.status, again.reason) == (500, "storage ID 'tank' already defined")
    changed = admin.put("/storage/tank", content="iso", disable=1, digest=row["digest"], delete="shared")
    assert changed.data == {"storage": "tank", "type": "dir"}
    row = admin.get("/storage/tank").data
    assert (row["content"], row["disable"]) == ("iso", 1)
    assert "shared" not in row
    stale = admin.put("/storage/tank", content="images", digest="0" * 40)
    assert stale.reason.startswith("detected modified configuration")
    assert admin.put("/storage/tank", path="/elsewhere").errors.keys() == {"path"}
    assert admin.delete("/storage/tank").data is None
    assert admin.get("/storage/tank").reason == "storage 'tank' does not exist"
    assert admin.delete("/storage/tank").reason == "storage 'tank' does not exist"
    assert (folder / "images").is_dir()


def test_removal_takes_permissions_along(admin: Wire, tmp_path: Path) -> None:
    admin.post("/storage", storage="tank", type="dir", path=str(tmp_path / "tank"))
    admin.post("/access/users", userid="anna@pve")
    grant(admin, "/storage/tank", "PVEDatastoreUser")
    admin.post("/pools", poolid="p")
    assert admin.put("/pools", poolid="p", storage="tank").status == 200
    admin.delete("/storage/tank")
    assert not [entry for entry in admin.get("/access/acl").data if entry["path"] == "/storage/tank"]
    assert admin.get("/pools/p").data["members"] == []


def test_the_built_in_storage_can_be_in_a_pool(admin: Wire) -> None:
    admin.post("/pools", poolid="p")
    assert admin.put("/pools", poolid="p", storage="local").status == 200
    assert [member["storage"] for member in admin.get("/pools/p").data["members"]] == ["local"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"type": "dir"}, 400, "path"),
        ({"type": "dir", "path": "tank"}, 400, "path"),
        ({"type": "dir", "path": "/"}, 400, "path"),
        ({"type": "dir", "path": "/etc/orrery"}, 400, "path"),
        ({"type": "dir", "path": "/usr/../etc"}, 400, "path"),
        ({"type": "dir", "path": "/tmp/x", "content": "films"}, 400, "content"),
        ({"type": "dir", "path": "/tmp/x", "content-dirs": "iso=../x"}, 400, "content-dirs"),
        ({"type": "dir", "path": "/tmp/x", "server": "example.org"}, 400, "server"),
        ({"type": "dir", "path": "/tmp/x", "maxfiles": "3"}, 400, "maxfiles"),
        ({"type": "tape", "path": "/tmp/x"}, 400, "type"),
        ({"type": "nfs", "path": "/tmp/x", "server": "s", "export": "/e"}, 501, "nfs"),
        ({"type": "dir", "path": "/tmp/x", "snapshot-as-volume-chain": "1"}, 501, "snapshot-as-volume-chain"),
        ({"type": "dir", "path": "/tmp/none/here", "mkdir": "0"}, 500, "does not exist"),
        ({"type": "dir", "path": "/tmp/none/here", "is_mountpoint": "/tmp/none"}, 500, "mount point"),
    ],
)
def test_storages_that_cannot_be(admin: Wire, options: dict[str, str], status: int, words: str) -> None:
    answer = admin.post("/storage", storage="tank", **options)
    assert answer.status == status, answer
    assert words in (answer.errors if status == 400 else answer.reason), answer
    assert [row["storage"] for row in admin.get("/storage").data] == ["local"]


def test_own_state_is_no_storage(admin: Wire, services: Services, tmp_path: Path) -> None:
    for path in (services.paths.keys, services.paths.lib, services.paths.lib.parent, services.paths.local_storage):
        assert "path" in admin.post("/storage", storage="tank", type="dir", path=str(path)).errors
    link = tmp_path / "link"
    link.symlink_to(services.paths.keys)
    assert "path" in admin.post("/storage", storage="tank", type="dir", path=str(link)).errors
    first = admin.post("/storage", storage="one", type="dir", path=str(tmp_path / "same"))
    assert first.status == 200
    assert "path" in admin.post("/storage", storage="two", type="dir", path=f"{tmp_path}/./same").errors


def test_local_changes_and_comes_back(admin: Wire, services: Services) -> None:
    assert admin.delete("/storage/local").reason.startswith("storage 'local' is built in")
    assert admin.put("/storage/local", content="iso").status == 200
    assert admin.get("/storage/local").data["content"] == "iso"
    assert admin.get("/storage/local").data["path"] == str(services.paths.local_storage)
    assert b"path" not in (services.store.get("/storage/local") or SimpleNamespace(value=b"path")).value
    assert admin.delete("/storage/local").status == 200
    assert "images" in admin.get("/storage/local").data["content"]


def test_who_may_administer(admin: Wire, user: Wire, tmp_path: Path) -> None:
    assert user.get("/storage").data == []
    assert user.get("/storage/local").status == 403
    assert user.post("/storage", storage="tank", type="dir", path=str(tmp_path / "x")).status == 403
    assert user.put("/storage/local", content="iso").status == 403
    assert user.delete("/storage/local").reason == "Permission check failed (/storage, Datastore.Allocate)"
    grant(admin, "/storage/local", "PVEDatastoreUser")
    assert len(user.get("/storage").data) == 1
    assert user.get("/storage/local").status == 403


# --- the node's view


def test_status(admin: Wire) -> None:
    (row,) = admin.get(f"/nodes/{NODE}/storage").data
    assert (row["storage"], row["active"], row["enabled"], row["shared"], row["type"]) == ("local", 1, 1, 0, "dir")
    assert 0 < row["avail"] <= row["total"]
    assert 0 <= row["used_fraction"] <= 1
    one = admin.get(f"{LOCAL}/status").data
    assert {key: row[key] for key in one} == one
    assert {"active", "avail", "content", "enabled", "shared", "total", "type", "used"} == set(one)
    formats = admin.get(f"/nodes/{NODE}/storage", format=1).data[0]["formats"]
    assert formats == {"default": "raw", "supported": ["qcow2", "raw", "vmdk"]}
    assert {entry["subdir"] for entry in admin.get(LOCAL).data} >= {"content", "status", "upload", "download-url"}
    assert admin.get(f"/nodes/{NODE}/storage/none/status").reason == "storage 'none' does not exist"


def test_status_of_a_storage_that_is_away(admin: Wire, services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "tank"
    folder.mkdir()
    assert admin.post("/storage", storage="tank", type="dir", path=str(folder), content="iso", mkdir=0).status == 200
    for child in sorted(folder.rglob("*"), reverse=True):
        child.rmdir()
    folder.rmdir()
    services.collector.storages.refresh()
    row = admin.get(f"/nodes/{NODE}/storage/tank/status").data
    assert (row["active"], row["enabled"]) == (0, 1)
    assert "total" not in row


def test_filters(admin: Wire, user: Wire, tmp_path: Path) -> None:
    admin.post("/storage", storage="far", type="dir", path=str(tmp_path / "far"), nodes="n2", content="iso")
    admin.post("/storage", storage="off", type="dir", path=str(tmp_path / "off"), disable=1, shared=1)

    def names(**params: Any) -> list[str]:
        return [row["storage"] for row in admin.get(f"/nodes/{NODE}/storage", **params).data]

    assert names() == ["far", "local", "off"]
    assert names(enabled=1) == ["local"]
    assert names(content="vztmpl") == ["local"]
    assert names(content="iso,backup") == ["far", "local"]
    assert names(storage="off") == ["off"]
    assert names(target="n2") == ["off"]
    assert names(target=NODE) == ["far", "local", "off"]
    assert user.get(f"/nodes/{NODE}/storage").data == []
    assert [row["enabled"] for row in admin.get(f"/nodes/{NODE}/storage").data] == [0, 1, 0]


# --- content


def test_allocate_list_read_delete(admin: Wire, ends: dict[str, str], everything: Any) -> None:
    volume = admin.post(f"{LOCAL}/content", filename="vm-100-disk-0.qcow2", size="5M", vmid=100).data
    assert volume == "local:100/vm-100-disk-0.qcow2"
    (row,) = admin.get(f"{LOCAL}/content").data
    assert (row["volid"], row["size"], row["format"], row["content"], row["vmid"]) == (
        *(volume, 5 * MIB, "qcow2", "images"),
        100,
    )
    assert {type(row[key]) for key in ("size", "used", "ctime", "vmid")} == {int}
    for path in (volume, "100/vm-100-disk-0.qcow2", "100%2Fvm-100-disk-0.qcow2", "local%3A100%2Fvm-100-disk-0.qcow2"):
        found = admin.get(f"{LOCAL}/content/{path}").data
        assert (found["size"], found["format"]) == (5 * MIB, "qcow2")
        assert found["path"].endswith("/images/100/vm-100-disk-0.qcow2")
    upid = admin.delete(f"{LOCAL}/content/{volume}").data
    assert ":imgdel:100@local:admin@pve:" in upid
    assert ends[upid] == "OK"
    assert everything() == set()


def test_a_guest_that_is_worked_on_gets_no_disk_meanwhile(
    admin: Wire, services: Services, everything: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_content, "LOCK_SECONDS", 0.05)
    wanted = {"filename": "vm-100-disk-0.raw", "size": "1M", "vmid": 100}
    with services.journal.locked("guest/100"):
        answer = admin.post(f"{LOCAL}/content", **wanted)
    assert answer.status == 500
    assert "lock" in answer.reason
    assert everything() == set()
    assert admin.post(f"{LOCAL}/content", **wanted).status == 200


@pytest.mark.parametrize(
    ("params", "size", "name"),
    [
        ({"filename": "vm-100-disk-0", "size": "2048"}, 2 * MIB, "vm-100-disk-0.raw"),
        ({"filename": "vm-100-disk-0", "size": "1G", "format": "qcow2"}, 1 << 30, "vm-100-disk-0.qcow2"),
        ({"filename": "vm-100-cloudinit.raw", "size": "4M", "format": "raw"}, 4 * MIB, "vm-100-cloudinit.raw"),
    ],
)
def test_names_and_sizes_of_new_images(admin: Wire, driver: Any, params: dict[str, str], size: int, name: str) -> None:
    volume = admin.post(f"{LOCAL}/content", vmid=100, **params).data
    assert volume == f"local:100/{name}"
    assert driver.info(f"100/{name}").size == size


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"filename": "vm-101-disk-0.raw", "size": "1M"}, "filename"),
        ({"filename": "disk.raw", "size": "1M"}, "filename"),
        ({"filename": "../vm-100-disk-0.raw", "size": "1M"}, "filename"),
        ({"filename": "vm-100-disk-0.raw", "size": "1M", "format": "qcow2"}, "format"),
        ({"filename": "vm-100-disk-0.raw", "size": "1T"}, "size"),
        ({"filename": "vm-100-disk-0.raw", "size": "1M", "vmid": "99"}, "vmid"),
        ({"filename": "vm-100-disk-0.raw"}, "size"),
    ],
)
def test_bad_new_images(admin: Wire, params: dict[str, str], parameter: str, everything: Any) -> None:
    answer = admin.post(f"{LOCAL}/content", **{"vmid": 100, **params})
    assert (answer.status, list(answer.errors)) == (400, [parameter])
    assert everything() == set()


def test_new_image_twice_and_absurd(admin: Wire) -> None:
    params = {"filename": "vm-100-disk-0.raw", "vmid": 100}
    assert admin.post(f"{LOCAL}/content", size="1M", **params).status == 200
    assert "already exists" in admin.post(f"{LOCAL}/content", size="1M", **params).reason
    other = {"filename": "vm-100-disk-1.raw", "vmid": 100}
    assert admin.post(f"{LOCAL}/content", size="0", **other).status == 500
    assert admin.post(f"{LOCAL}/content", size="999999999999999G", **other).status == 500
    folder = {"filename": "subvol-100-disk-0", "vmid": 100, "format": "subvol"}
    assert "1048576 bytes here; ask for size 0" in admin.post(f"{LOCAL}/content", size="1M", **folder).reason
    assert admin.post(f"{LOCAL}/content", size="0", **folder).data == "local:100/subvol-100-disk-0.subvol"


def test_containers_volumes_are_root_directories(admin: Wire, services: Services) -> None:
    """A name says it of folders; of images the owner does."""
    guests: Any = services.collector.facts
    guests.append(SimpleNamespace(vmid=101, kind="lxc"))
    for vmid, filename, size in ((100, "vm-100-disk-0", "1M"), (101, "vm-101-disk-0", "1M"), (102, "subvol-102-x", 0)):
        ending = {"format": "subvol"} if size == 0 else {"format": "raw"}
        assert admin.post(f"{LOCAL}/content", filename=filename, size=size, vmid=vmid, **ending).status == 200

    def found(**params: Any) -> dict[int, str]:
        return {row["vmid"]: row["content"] for row in admin.get(f"{LOCAL}/content", **params).data}

    assert found() == {100: "images", 101: "rootdir", 102: "rootdir"}
    assert found(content="rootdir") == {101: "rootdir", 102: "rootdir"}
    assert found(content="images") == {100: "images"}
    admin.put("/storage/local", content="images")
    assert admin.post(f"{LOCAL}/content", filename="vm-101-disk-1", size="1M", vmid=101).status == 500
    assert found(content="rootdir") == {}


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fetc%2Fpasswd", "iso/..", "iso/x.exe", "nothing", "100/vm-100-disk-9.raw", "other:iso/x.iso"]
)
def test_bad_volume_names(admin: Wire, name: str) -> None:
    for answer in (
        admin.get(f"{LOCAL}/content/{name}"),
        admin.delete(f"{LOCAL}/content/{name}"),
        admin.put(f"{LOCAL}/content/{name}", notes="x"),
    ):
        assert answer.status in (400, 500, 501)
        assert "internal error" not in answer.reason


def test_notes_and_protection(admin: Wire, driver: Any, services: Services) -> None:
    driver.publish(driver.staging(BACKUP), BACKUP)
    assert admin.put(f"{LOCAL}/content/{BACKUP}", notes="Grüße\nzwei", protected=1).data is None
    found = admin.get(f"{LOCAL}/content/{BACKUP}").data
    assert (found["notes"], found["protected"]) == ("Grüße\nzwei", 1)
    (row,) = admin.get(f"{LOCAL}/content", content="backup", vmid=100).data
    assert (row["notes"], row["protected"]) == ("Grüße\nzwei", 1)
    assert "protected" in admin.delete(f"{LOCAL}/content/{BACKUP}").reason
    admin.put(f"{LOCAL}/content/{BACKUP}", protected=0)
    assert "protected" not in admin.get(f"{LOCAL}/content", content="backup").data[0]
    assert admin.delete(f"{LOCAL}/content/{BACKUP}").status == 200


def test_limit_of_protected_backups(admin: Wire, user: Wire, driver: Any) -> None:
    names = [f"backup/vzdump-qemu-100-2026_01_02-03_04_0{number}.vma" for number in range(7)]
    for name in names:
        driver.publish(driver.staging(name), name)
    grant(admin, "/storage/local", "PVEDatastoreUser")
    grant(admin, "/vms/100", "PVEVMUser")
    answers = [user.put(f"{LOCAL}/content/{name}", protected=1) for name in names]
    assert [answer.status for answer in answers] == [200] * 5 + [500] * 2
    assert "5 protected backups" in answers[-1].reason
    assert user.put(f"{LOCAL}/content/{names[0]}", protected=1).status == 200
    assert admin.put(f"{LOCAL}/content/{names[6]}", protected=1).status == 200
    admin.put("/storage/local", **{"max-protected-backups": 6})
    assert admin.put(f"{LOCAL}/content/{names[5]}", protected=1).status == 500


def test_who_may_see_what(admin: Wire, user: Wire, driver: Any) -> None:
    for name in ("iso/x.iso", "vztmpl/x.tar.gz", "snippets/x.yaml", "import/x.raw", BACKUP):
        driver.publish(driver.staging(name), name)
    for vmid in (100, 101):
        driver.allocate(f"{vmid}/vm-{vmid}-disk-0.raw", MIB)
    assert user.get(f"{LOCAL}/content").status == 403
    grant(admin, "/storage/local", "PVEDatastoreUser")

    def seen() -> set[str]:
        return {row["volid"].partition(":")[2] for row in user.get(f"{LOCAL}/content").data}

    media = {"iso/x.iso", "vztmpl/x.tar.gz", "import/x.raw"}
    assert seen() == media
    grant(admin, "/vms/100", "PVEVMAdmin")
    assert seen() == media | {"100/vm-100-disk-0.raw", BACKUP}
    assert user.get(f"{LOCAL}/content/101/vm-101-disk-0.raw").status == 403
    assert user.get(f"{LOCAL}/content/snippets/x.yaml").status == 403
    assert user.put(f"{LOCAL}/content/snippets/x.yaml", notes="x").status == 403
    assert (
        user.delete(f"{LOCAL}/content/iso/x.iso").reason
        == "Permission check failed (/storage/local, Datastore.Allocate)"
    )
    assert user.delete(f"{LOCAL}/content/100/vm-100-disk-0.raw").status == 403
    assert user.delete(f"{LOCAL}/content/{BACKUP}").status == 200
    assert user.post(f"{LOCAL}/content", filename="vm-102-disk-0.raw", size="1M", vmid=102).status == 200
    grant(admin, "/storage/local", "PVEDatastoreAdmin")
    assert {"101/vm-101-disk-0.raw", "snippets/x.yaml"} <= seen()
    assert user.delete(f"{LOCAL}/content/iso/x.iso").status == 200


def test_copy_is_for_root_alone(admin: Wire, driver: Any, ends: dict[str, str]) -> None:
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    path = f"{LOCAL}/content/100/vm-100-disk-0.raw"
    assert admin.post(path, target="local:101/vm-101-disk-0.qcow2").status == 403
    root = admin.local()
    assert root.post(path, target="101/vm-101-disk-0.qcow2", target_node="n9").status == 501
    upid = root.post(path, target="101/vm-101-disk-0.qcow2").data
    assert ends[upid] == "OK"
    assert driver.info("101/vm-101-disk-0.qcow2").size == MIB


# --- uploads


def test_upload(admin: Wire, driver: Any, ends: dict[str, str], services: Services) -> None:
    data = b"\x01" * 100_000
    fields = {"content": "iso", "checksum-algorithm": "sha256", "checksum": hashlib.sha256(data).hexdigest()}
    answer = upload(admin, "Debian 12 (amd64).iso", data, **fields)
    assert answer.status == 200, answer
    assert ":imgcopy::admin@pve:" in answer.data
    assert ends[answer.data] == "OK"
    assert driver.path("iso/Debian_12__amd64_.iso").read_bytes() == data
    assert "local:iso/Debian_12__amd64_.iso" in services.paths.audit_log.read_text()


def test_upload_needs_no_csrf_token(admin: Wire) -> None:
    cookie = Wire(admin.api, {"cookie": admin.headers["cookie"]})
    assert upload(cookie, "x.iso", b"x", content="iso").status == 200
    assert cookie.delete(f"{LOCAL}/content/iso/x.iso").status == 401


def test_upload_with_a_wrong_checksum(admin: Wire, ends: dict[str, str], everything: Any) -> None:
    answer = upload(admin, "x.iso", b"x", content="iso", **{"checksum-algorithm": "md5", "checksum": "00"})
    assert "checksum mismatch" in ends[answer.data]
    assert everything() == set()


@pytest.mark.parametrize(
    ("filename", "fields", "parameter"),
    [
        ("x.exe", {"content": "iso"}, "filename"),
        ("x.iso", {"content": "vztmpl"}, "filename"),
        ("x.iso", {"content": "images"}, "content"),
        ("x.iso", {"content": "backup"}, "content"),
        ("x.iso", {}, "content"),
        ("", {"content": "iso"}, "filename"),
        (".iso", {"content": "iso"}, "filename"),
        (".hidden.iso", {"content": "iso"}, "filename"),
        ("../../../etc/cron.d/x.iso", {"content": "iso"}, "filename"),
        ("/etc/x.iso", {"content": "iso"}, "filename"),
        ("x" * 300 + ".iso", {"content": "iso"}, "filename"),
        ("x.iso", {"content": "iso", "checksum": "00"}, "checksum-algorithm"),
        ("x.iso", {"content": "iso", "checksum-algorithm": "md5"}, "checksum"),
        ("x.iso", {"content": "iso", "checksum-algorithm": "crc32", "checksum": "0"}, "checksum-algorithm"),
        ("x.iso", {"content": "iso", "tmpfilename": "/var/tmp/pveupload-00"}, "tmpfilename"),
        ("x.iso", {"content": "iso", "films": "1"}, "films"),
    ],
)
def test_uploads_that_are_refused(
    admin: Wire, filename: str, fields: dict[str, str], parameter: str, everything: Any
) -> None:
    answer = upload(admin, filename, b"x", **fields)
    assert (answer.status, list(answer.errors)) == (400, [parameter]), answer
    assert everything() == set()


def test_text_of_a_wrong_extension(admin: Wire) -> None:
    assert upload(admin, "x.exe", b"x", content="iso").errors == {"filename": "wrong file extension"}


def test_upload_to_the_wrong_places(admin: Wire, user: Wire, tmp_path: Path, everything: Any) -> None:
    admin.post("/storage", storage="disks", type="dir", path=str(tmp_path / "disks"), content="images")
    path = f"/nodes/{NODE}/storage"
    assert "content-type 'iso'" in upload(admin, "x.iso", b"x", f"{path}/disks", content="iso").reason
    assert upload(admin, "x.iso", b"x", f"{path}/none", content="iso").reason == "storage 'none' does not exist"
    assert upload(user, "x.iso", b"x", content="iso").status == 403
    assert admin.post(f"{LOCAL}/upload", content="iso").status == 506
    for name in ("tmpfilename", "filename"):
        answer = admin.send("POST", f"{LOCAL}/upload", query=f"{name}=/var/tmp/pveupload-00".encode())
        assert list(answer.errors) == [name]
    assert everything() == set()


def test_upload_that_does_not_fit(admin: Wire, monkeypatch: pytest.MonkeyPatch, everything: Any) -> None:
    from orrery.drivers.storage.base import Usage
    from orrery.drivers.storage.directory import DirectoryStorage

    monkeypatch.setattr(DirectoryStorage, "usage", lambda self: Usage(1000 * MIB, 999 * MIB, MIB))
    answer = upload(admin, "x.iso", b"x", content="iso")
    assert answer.status == 500
    assert "not enough space on storage 'local'" in answer.reason
    assert everything() == set()


# --- downloads


def test_download(admin: Wire, driver: Any, ends: dict[str, str]) -> None:
    with serving({"/x": page(b"\x01data")}) as site:
        params = {"url": f"{site.url}/x", "content": "iso", "filename": "x.iso"}
        upid = admin.post(f"{LOCAL}/download-url", **params).data
        assert ":download:x.iso:admin@pve:" in upid
        assert ends[upid] == "OK"
        again = admin.post(f"{LOCAL}/download-url", **params)
        assert again.reason == "refusing to override existing file 'x.iso'"
        assert admin.get(f"/nodes/{NODE}/query-url-metadata", url=f"{site.url}/x").data == {"filename": "x", "size": 5}
    assert driver.info("iso/x.iso").size == 5


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "ftp://example.org/x"}, "url"),
        ({"filename": "x.exe"}, "filename"),
        ({"filename": "../x.iso"}, "filename"),
        ({"content": "images"}, "content"),
        ({"compression": "rar"}, "compression"),
        ({"content": "vztmpl", "filename": "x.tar.gz", "compression": "gz"}, "compression"),
        ({"checksum": "00"}, "checksum-algorithm"),
    ],
)
def test_downloads_that_are_refused(admin: Wire, params: dict[str, str], parameter: str) -> None:
    good = {"url": "http://127.0.0.1:1/x", "content": "iso", "filename": "x.iso"}
    answer = admin.post(f"{LOCAL}/download-url", **good | params)
    assert (answer.status, list(answer.errors)) == (400, [parameter]), answer


def test_who_may_download(admin: Wire, user: Wire) -> None:
    params = {"url": "http://127.0.0.1:1/x", "content": "iso", "filename": "x.iso"}
    query = f"/nodes/{NODE}/query-url-metadata"
    grant(admin, "/storage/local", "PVEDatastoreAdmin")
    assert user.post(f"{LOCAL}/download-url", **params).status == 403
    assert user.get(query, url=params["url"]).status == 403
    assert admin.post("/access/roles", roleid="Loader", privs="Sys.AccessNetwork").status == 200
    grant(admin, f"/nodes/{NODE}", "Loader")
    assert user.post(f"{LOCAL}/download-url", **params).status == 200
    answer = user.get(query, url="http://127.0.0.1:1/x")
    assert answer.reason.startswith("unable to download from '127.0.0.1'")
