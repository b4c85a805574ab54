# SPDX-License-Identifier: AGPL-3.0-or-later
"""Storages of a real node: large uploads, sudden deaths, and disks that fill up."""

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.node.client import ApiError
from tests.node.harness import Node, eventually
from tests.unit.drivers.storage.test_fetch import page, serving, sleepy

MIB = 1 << 20
BLOCK = os.urandom(64 << 10)
LOCAL = "/storage/local"


def form(name: str, pieces: Iterator[bytes], size: int, **fields: str) -> tuple[dict[str, str], Iterator[bytes]]:
    """Headers and body of an upload that is made while it is sent."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()]
    head = "".join(parts) + f'--b\r\nContent-Disposition: form-data; name="filename"; filename="{name}"\r\n\r\n'
    tail = b"\r\n--b--\r\n"

    def body() -> Iterator[bytes]:
        yield head.encode()
        yield from pieces
        yield tail

    length = len(head.encode()) + size + len(tail)
    return {"content-type": "multipart/form-data; boundary=b", "content-length": str(length)}, body()


def blocks(size: int, between: Callable[[int], None] = lambda sent: None) -> Iterator[bytes]:
    for number in range(size // len(BLOCK)):
        between(number * len(BLOCK))
        yield BLOCK


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def staged(node: Node) -> list[str]:
    return [path.name for path in node.paths.local_storage.rglob(".staging.*")]


def upload(
    node: Node,
    name: str,
    size: int,
    between: Callable[[int], None] = lambda sent: None,
    where: str = LOCAL,
    fields: dict[str, str] | None = None,
) -> httpx2.Response:
    headers, body = form(name, blocks(size, between), size, content="iso", **(fields or {}))
    return node.api.http.post(f"/api2/json{node.path}{where}/upload", content=body, headers=headers)


def large_upload(node: Node, size: int) -> None:
    """An upload costs no memory that grows with it, is verified, and leaves other requests as quick as they were."""
    digest = hashlib.sha256()
    for piece in blocks(size):
        digest.update(piece)
    assert node.serving is not None
    pid = node.serving.pid
    other = node.anonymous().log_in("admin@pve", "correct horse battery")
    node.api.get("/version")  # a login's hash takes 64 MiB for a moment: not while memory is measured
    most, waits, over = [resident(pid)], [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            begun = time.monotonic()
            other.get("/version")
            waits.append(time.monotonic() - begun)
            most.append(resident(pid))
            time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        checks = {"checksum-algorithm": "sha256", "checksum": digest.hexdigest()}
        response = upload(node, "large.iso", size, fields=checks)
    finally:
        over.set()
        asking.join()
        other.close()
    assert response.status_code == 200, response.text
    node.api.wait(response.json()["data"])
    (row,) = [row for row in node.api.get(f"{node.path}{LOCAL}/content", content="iso") if "large" in row["volid"]]
    assert row["size"] == size
    node.api.wait(node.api.delete(f"{node.path}{LOCAL}/content/{row['volid']}"))
    assert max(most) - most[0] < 48 * MIB, f"{(max(most) - most[0]) // MIB} MiB"
    late = sorted(waits)[int(len(waits) * 0.99)]
    print(f"{len(waits)} requests meanwhile, p99 {late * 1000:.0f} ms, {(max(most) - most[0]) // MIB} MiB more memory")
    assert late < 0.5


def test_large_upload(node: Node) -> None:
    large_upload(node, 256 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_very_large_upload(node: Node) -> None:
    large_upload(node, 10 << 30)


def test_client_that_goes_away(node: Node) -> None:
    class Enough(Exception):
        pass

    def leave(sent: int) -> None:
        if sent >= 16 * MIB:
            eventually(lambda: staged(node), what="the staged file")
            raise Enough

    client = node.anonymous().log_in("admin@pve", "correct horse battery")
    headers, body = form("gone.iso", blocks(64 * MIB, leave), 64 * MIB, content="iso")
    with pytest.raises((Enough, httpx2.HTTPError)):
        client.http.post(f"/api2/json{node.path}{LOCAL}/upload", content=body, headers=headers)
    client.close()
    eventually(lambda: not staged(node), what="the removal of the staged file")
    assert not [row for row in node.api.get(f"{node.path}{LOCAL}/content") if "gone" in row["volid"]]


def test_daemon_that_dies_in_an_upload(fresh_node: Node) -> None:
    def die(sent: int) -> None:
        if sent == 16 * MIB:
            eventually(lambda: staged(fresh_node), what="the staged file")
            assert fresh_node.serving is not None
            fresh_node.serving.send_signal(signal.SIGKILL)

    with contextlib.suppress(httpx2.HTTPError):
        assert upload(fresh_node, "x.iso", 64 * MIB, die).status_code >= 500
    assert staged(fresh_node)
    fresh_node.restart(signal.SIGKILL)
    eventually(lambda: not staged(fresh_node), what="the removal of the staged file")
    assert fresh_node.api.get(f"{fresh_node.path}{LOCAL}/content") == []


@pytest.mark.parametrize("way", ["cancel", "kill"])
def test_download_that_is_ended(node: Node, way: str) -> None:
    with serving({"/x": sleepy}) as site:
        url = f"{site.url}/x"
        upid = node.api.post(f"{node.path}{LOCAL}/download-url", url=url, content="iso", filename="slow.iso")
        eventually(lambda: staged(node), what="the staged file")
        if way == "cancel":
            node.api.delete(f"{node.path}/tasks/{upid}")
        else:
            os.kill(int(upid.split(":")[2], 16), signal.SIGKILL)
        assert node.api.ended(upid) == ("received interrupt" if way == "cancel" else "unexpected status")
    eventually(lambda: not staged(node), what="the removal of the staged file")
    assert node.locks() == []


def test_download_and_delete(node: Node) -> None:
    with serving({"/x.iso": page(BLOCK)}) as site:
        known = node.api.get(f"{node.path}/query-url-metadata", url=f"{site.url}/x.iso")
        assert known == {"filename": "x.iso", "size": len(BLOCK)}
        parameters = {"url": f"{site.url}/x.iso", "content": "iso", "filename": "x.iso"}
        log = node.api.wait(node.api.post(f"{node.path}{LOCAL}/download-url", parameters))
        assert any(str(len(BLOCK)) in line for line in log)
        with pytest.raises(ApiError, match="refusing to override existing file"):
            node.api.post(f"{node.path}{LOCAL}/download-url", parameters)
    assert node.api.delete(f"{node.path}{LOCAL}/content/iso/x.iso", delay=20) is None


@pytest.fixture
def small(node: Node, tmp_path: Path) -> Iterator[Path]:
    """A storage of 96 MiB, `small`."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "small", folder], check=True)
    try:
        options = {"content": "images,iso,import", "preallocation": "falloc", "is_mountpoint": "yes"}
        node.api.post("/storage", {"storage": "small", "type": "dir", "path": str(folder), **options})
        yield folder
        node.api.delete("/storage/small")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def left(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.parent.name == "images"
    ]


def test_full_disk(node: Node, small: Path) -> None:
    state = node.api.get(f"{node.path}/storage/small/status")
    assert (state["active"], state["total"]) == (1, 96 * MIB)

    with pytest.raises(ApiError, match="not enough space on storage 'small'"):
        node.api.post(f"{node.path}/storage/small/content", filename="vm-100-disk-0.raw", vmid=100, size="200M")
    assert left(small) == []

    response = upload(node, "x.iso", 100 * MIB, where="/storage/small")
    assert "not enough space on storage 'small'" in response.json()["message"]
    assert left(small) == []

    def fill(sent: int) -> None:
        if sent == 8 * MIB:
            (small / "foreign").write_bytes(bytes(70 * MIB))

    response = upload(node, "x.iso", 60 * MIB, fill, where="/storage/small")
    assert response.status_code == 500
    assert "space" in response.json()["message"]
    assert left(small) == ["foreign"]

    vmid = node.next_vmid()
    upid = node.api.post(f"{node.path}/qemu", vmid=vmid, scsi0="small:1")
    status = node.api.ended(upid)
    assert "not enough space on storage 'small'" in status
    assert left(small) == ["foreign"]
    with pytest.raises(ApiError, match="does not exist"):
        node.api.get(f"{node.path}/qemu/{vmid}/config")


def test_storage_that_goes_away(node: Node, small: Path) -> None:
    subprocess.run(["umount", small], check=True)
    try:
        with pytest.raises(ApiError, match="mount point"):
            node.api.post(f"{node.path}/storage/small/content", filename="vm-100-disk-0.raw", vmid=100, size="1M")
        eventually(
            lambda: not node.api.get(f"{node.path}/storage/small/status")["active"], 30, "the storage's being inactive"
        )
        assert left(small) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "small", small], check=True)
