# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `orrery ct` looks at in a container."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orrery.cli.ct import shell_of

pytestmark = pytest.mark.root

ENTER = "import os, sys; os.chroot(sys.argv[1]); os.chdir('/'); print(flush=True); sys.stdin.read()"


@pytest.fixture
def first(tmp_path: Path) -> Iterator[int]:
    """A process whose root is a tree with one shell, and an absolute link to where it lies."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/sh").touch()
    (tmp_path / "bin").symlink_to("/usr/bin")
    command = [sys.executable, "-c", ENTER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_the_shell_is_the_containers(first: int, tmp_path: Path) -> None:
    """The host has /usr/bin/bash, to which the link in the tree leads for whoever follows it outside."""
    assert Path("/usr/bin/bash").exists()
    assert shell_of(first) == "/bin/sh"
    (tmp_path / "usr/bin/bash").touch()
    assert shell_of(first) == "/bin/bash"
