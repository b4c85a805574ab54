# SPDX-License-Identifier: AGPL-3.0-or-later
"""Memory that threads used once goes back to the system."""

import subprocess
import sys

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from orrery.system.allocator import give_memory_back

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) << 10

def work(_):
    return sum(len(bytes(part) * 2) for part in [3_000_000] * 4)

if sys.argv[1] == "tuned":
    assert give_memory_back()
with ThreadPoolExecutor(16) as pool:
    before = resident()
    list(pool.map(work, range(200)))
    print(resident() - before)
"""


def kept(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_threads_do_not_keep_what_they_used_once() -> None:
    assert kept("tuned") < 12_000_000
