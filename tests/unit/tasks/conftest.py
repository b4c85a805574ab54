# SPDX-License-Identifier: AGPL-3.0-or-later
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.tasks import dummies

from orrery.system import process
from orrery.system.process import ProcessId
from orrery.tasks.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    assert dummies.Build.kind == "build"  # registers the undo action that the tests name
    return Journal(tmp_path / "lib" / "tasks.db", tmp_path)


@pytest.fixture
def zombie() -> Iterator[ProcessId]:
    child = subprocess.Popen(["true"])
    identity = process.identity(child.pid)
    assert identity is not None
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield identity
    child.wait()
