# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether small requests stay quick beside large ones: an upload and the list of 10,000 guests in loops."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import orjson

from bench.figures import Figure, percentile
from bench.lists import GUESTS, PATH
from bench.node import NAME, Node, fresh_node, seed

SECONDS = 30.0
PACE_SECONDS = 0.02
UPLOAD_MB = 256
BOUNDARY = "measurement"


def measure() -> list[Figure]:
    """p99 of GET /version, at most 50 a second, on a connection of its own; first alone, then beside the others."""
    with fresh_node() as node:
        seed(node, GUESTS)
        with node.serving():
            alone = sample(node, SECONDS / 3)
            with beside(lambda: list_forever(node)) as lists, beside(lambda: upload_forever(node)) as uploads:
                time.sleep(1)
                busy = sample(node, SECONDS)
                done = lists(), uploads()
    return [
        Figure("GET /version beside an upload and that list: p99", percentile(busy, 99) * 1000, "ms", goal=50),
        Figure("  the same: p50", percentile(busy, 50) * 1000, "ms"),
        Figure("  the same: longest", max(busy) * 1000, "ms"),
        Figure("  alone: p99", percentile(alone, 99) * 1000, "ms"),
        Figure("  requests measured", len(busy), ""),
        Figure("  lists meanwhile", done[0], ""),
        Figure(f"  uploads of {UPLOAD_MB} MB meanwhile", done[1], ""),
    ]


def sample(node: Node, seconds: float) -> list[float]:
    """Seconds that each request took."""
    client = node.https()
    found = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        status, body = client.request("GET", "/version")
        assert status == 200, body
        found.append(time.perf_counter() - begun)
        time.sleep(max(0.0, PACE_SECONDS - found[-1]))
    return found


@contextlib.contextmanager
def beside(work: Callable[[], Iterator[None]]) -> Iterator[Callable[[], int]]:
    """Does work in another process while the block runs; gives a function that says how often it was done."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for _ in work():
                os.write(write, b".")
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    os.set_blocking(read, False)

    def done() -> int:
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "the load broke off"
        with contextlib.suppress(BlockingIOError):
            return len(os.read(read, 1 << 16))
        return 0

    try:
        yield done
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)


def list_forever(node: Node) -> Iterator[None]:
    """The list of all resources, compressed, again and again."""
    client = node.https()
    while True:
        status, _ = client.request("GET", PATH, headers=client.headers | {"Accept-Encoding": "gzip"})
        assert status == 200
        yield


def upload_forever(node: Node) -> Iterator[None]:
    """An upload of an image of zeros, again and again; each volume is removed before the next."""
    local = node.local()
    client = node.https()
    storage = f"/nodes/{NAME}/storage/local"
    while True:
        head, tail = multipart("measurement.iso")
        length = len(head) + (UPLOAD_MB << 20) + len(tail)
        headers = client.headers | {
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            "Content-Length": str(length),
        }
        body = parts(head, tail)
        status, reply = client.request("POST", f"{storage}/upload", body=body, headers=headers)
        assert status == 200, reply
        local.wait(orjson.loads(reply)["data"])
        if upid := local.call("DELETE", f"{storage}/content/local:iso/measurement.iso"):
            local.wait(upid)
        yield


def multipart(name: str) -> tuple[bytes, bytes]:
    """What stands before and after the file in the body of an upload."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="content"\r\n\r\niso\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="filename"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


def parts(head: bytes, tail: bytes) -> Iterator[bytes]:
    """The body in pieces; an empty ISO 9660 image as far as its signature goes."""
    piece = bytes(1 << 20)
    first = bytearray(piece)
    first[32768:32775] = b"\x01CD001\x01"
    yield head
    yield bytes(first)
    for _ in range(UPLOAD_MB - 1):
        yield piece
    yield tail
