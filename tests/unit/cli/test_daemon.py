# SPDX-License-Identifier: AGPL-3.0-or-later
"""A node that was told to end does so, whatever its requests still wait for."""

import subprocess
import sys

WAITING = """
import time
from concurrent.futures import ThreadPoolExecutor
from orrery.cli.daemon import leave

pool = ThreadPoolExecutor(1)
pool.submit(time.sleep, 600)
pool.shutdown(wait=False)
print("waiting")
leave()
"""


def test_requests_that_wait_do_not_keep_the_node() -> None:
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("waiting\n")
