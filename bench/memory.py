# SPDX-License-Identifier: AGPL-3.0-or-later
"""Memory of core and zygote with 10,000 stored guests, after they have been listed."""

from pathlib import Path

from bench.figures import Figure
from bench.lists import GUESTS, fetch
from bench.node import fresh_node, seed

GOAL_MB = 150.0


def measure() -> list[Figure]:
    """PSS counts pages that several processes share in parts, RSS in full for each."""
    with fresh_node() as node:
        seed(node, GUESTS)
        with node.serving():
            begun = {"core": usage(node.core), "zygote": usage(node.zygote())}
            fetch(node.https(), 20, {"Accept-Encoding": "gzip"})
            ended = {"core": usage(node.core), "zygote": usage(node.zygote())}
            front = [usage(pid) for pid in node.front()]
    figures = [
        Figure(f"core and zygote, {GUESTS:,} guests, after lists: PSS", total(ended, 0), "MB", goal=GOAL_MB),
        Figure("  the same: RSS", total(ended, 1), "MB", goal=GOAL_MB),
        Figure("  before the first list: PSS", total(begun, 0), "MB"),
    ]
    for name, (pss, rss) in ended.items():
        figures += [Figure(f"  {name}: PSS", pss, "MB"), Figure(f"  {name}: RSS", rss, "MB")]
    return [*figures, Figure("  nginx beside them: PSS", sum(pss for pss, _ in front), "MB")]


def usage(pid: int) -> tuple[float, float]:
    """PSS and RSS in MB (10^6 bytes)."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024 / 1e6
    return found["Pss"], found["Rss"]


def total(parts: dict[str, tuple[float, float]], index: int) -> float:
    """Sum over the processes."""
    return sum(part[index] for part in parts.values())
