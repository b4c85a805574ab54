# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long the list of all resources takes with 10,000 stored guests, and how large it is on the wire."""

import gzip
import time

from bench.figures import Figure, percentile
from bench.node import Https, decoded, fresh_node, seed

GUESTS = 10_000
ROUNDS = 60
PATH = "/cluster/resources"


def measure() -> list[Figure]:
    """As admin@pve over HTTPS with compression, one request after the other on one connection."""
    with fresh_node() as node:
        seed(node, GUESTS)
        with node.serving():
            client = node.https()
            packed, plain = fetch(client, ROUNDS, {"Accept-Encoding": "gzip"}), fetch(client, ROUNDS // 3, {})
    median = percentile(packed[0], 50)
    return [
        Figure(f"GET {PATH}, {GUESTS:,} guests, gzip: p50", median * 1000, "ms", goal=100),
        Figure("  the same: p99", percentile(packed[0], 99) * 1000, "ms"),
        Figure("  the same without compression: p50", percentile(plain[0], 50) * 1000, "ms"),
        Figure("  compressed", len(packed[1]) / 1e6, "MB", goal=1),
        Figure("  uncompressed", len(plain[1]) / 1e6, "MB"),
    ]


def fetch(client: Https, rounds: int, extra: dict[str, str]) -> tuple[list[float], bytes]:
    """Seconds of every request, and the last body; the first three requests warm up and do not count."""
    seconds, body = [], b""
    for number in range(rounds + 3):
        begun = time.perf_counter()
        status, body = client.request("GET", PATH, headers=client.headers | extra)
        if number >= 3:
            seconds.append(time.perf_counter() - begun)
        assert status == 200
    rows = decoded(gzip.decompress(body) if extra else body)
    assert sum(row["type"] == "qemu" for row in rows) == GUESTS
    return seconds, body
