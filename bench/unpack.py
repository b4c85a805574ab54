# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the judging and the jail add to unpacking a template: `unpack_tree` against plain tar of the same archive.

The archive is 100 MiB in 8,000 files, as a Debian root is. Rounds of both alternate, and both end when all is on the
disk, so that whatever else the machine does falls upon both.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import Figure, percentile
from orrery.drivers.storage.unpack_tree import unpack

ROUNDS = 5
FILES = 8_000
SIZE = 100 << 20
PACKERS = {"uncompressed": "cat", "zstd": "zstd", "gzip": "gzip"}


def measure() -> list[Figure]:
    """Medians of the ratio of neighbouring rounds, and of our time."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="orrery-bench-", dir="/var/tmp") as folder:
        place = Path(folder)
        plain = make_archive(place)
        for name, program in PACKERS.items():
            archive = place / f"{name}.tar"
            with plain.open("rb") as source, archive.open("wb") as target:
                arguments = [program] if program == "cat" else [program, "-q", "-c"]
                subprocess.run(arguments, stdin=source, stdout=target, check=True)
            pairs = [(by_us(archive, place), by_hand(archive, place)) for _ in range(ROUNDS)]
            ratio = percentile([ours / theirs for ours, theirs in pairs], 50)
            figures.append(Figure(f"{name}: ours against plain tar", ratio, "", 1.2))
            figures.append(Figure(f"{name}: ours", percentile([ours for ours, _ in pairs], 50), "s"))
    return figures


def make_archive(place: Path) -> Path:
    """Files of all sizes, half of whose contents can be compressed."""
    tree = place / "source"
    chance = random.Random(1)  # noqa: S311  (the same files every time)
    sizes = [int(chance.lognormvariate(8, 1.6)) + 1 for _ in range(FILES)]
    scale = SIZE / sum(sizes)
    for number, size in enumerate(sizes):
        folder = tree / f"{number % 200}"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = max(int(size * scale), 1)
        (folder / str(number)).write_bytes(chance.randbytes(wanted // 2) + b"text " * (wanted // 10))
    archive = place / "plain.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tree, "."], check=True)
    shutil.rmtree(tree)
    return archive


def by_us(archive: Path, place: Path) -> float:
    tree = fresh(place)
    begun = time.monotonic()
    unpack(archive, tree)
    return time.monotonic() - begun


def by_hand(archive: Path, place: Path) -> float:
    tree = fresh(place)
    begun = time.monotonic()
    subprocess.run(["tar", "-xpf", archive, "--numeric-owner", "-C", tree], check=True)
    subprocess.run(["sync", "-f", tree], check=True)
    return time.monotonic() - begun


def fresh(place: Path) -> Path:
    tree = place / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    os.sync()
    return tree
