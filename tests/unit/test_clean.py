# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make clean` takes nothing away from under a program that runs."""

import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HOLD = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print(flush=True)
input()
"""


def clean(checkout: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([checkout / "packaging/clean.sh", "var"], capture_output=True, text=True, check=False)


def test_nothing_is_removed_while_another_node_of_the_checkout_runs(tmp_path: Path) -> None:
    (tmp_path / "packaging").mkdir()
    shutil.copy(CHECKOUT / "packaging/clean.sh", tmp_path / "packaging/clean.sh")
    library = tmp_path / ".venv/lib/module.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"x" * 4096)
    (tmp_path / "var").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        refused = clean(tmp_path)
        program.communicate(b"\n")
    assert refused.returncode == 1
    assert f"  {program.pid}: " in refused.stderr
    assert library.exists()
    assert (tmp_path / "var").exists()
    assert clean(tmp_path).returncode == 0
    assert not library.exists()
    assert not (tmp_path / "var").exists()
    assert (tmp_path / "packaging").exists()
