# SPDX-License-Identifier: AGPL-3.0-or-later
import os
import signal
from pathlib import Path

import pytest

from orrery.drivers.lxc.lxcfs import LxcfsService, is_mounted
from orrery.errors import Failure
from orrery.system import process
from orrery.system.paths import Paths

pytestmark = pytest.mark.root


@pytest.fixture
def service(tmp_path):
    paths = Paths.of(tmp_path / "node")
    paths.create()
    service = LxcfsService(paths)
    yield service
    service.stop()


def test_one_service_that_others_find_again(service, tmp_path):
    assert service.start()
    [running] = service.processes()
    again = LxcfsService(Paths.of(tmp_path / "node"))
    assert not again.start()
    assert again.processes() == [running]
    targets = {shown.target for shown in service.files()}
    assert targets >= {
        f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "uptime", "swaps", "diskstats", "loadavg")
    }
    assert "MemTotal:" in (service.folder / "proc/meminfo").read_text()


def test_it_comes_back_when_it_was_killed_and_leaves_no_mount_when_it_ends(service):
    service.start()
    [first] = service.processes()
    os.kill(first.pid, signal.SIGKILL)
    assert process.wait(first, 10)
    assert service.maintain([]) == ["lxcfs was started"]
    assert service.maintain([]) == []
    [second] = service.processes()
    assert second != first
    service.stop()
    service.stop()
    assert service.processes() == []
    assert not is_mounted(service.folder)
    assert service.files() == []


def test_a_container_that_is_gone_is_told(service):
    [note, other] = service.maintain([2**22 - 1])
    assert note == "lxcfs was started"
    assert other.startswith("the container of process 4194303 sees the host's numbers: ")


def test_without_the_program_it_says_so(service, monkeypatch):
    monkeypatch.setattr("orrery.drivers.lxc.lxcfs._PROGRAM", "lxcfs-that-is-not-there")
    with pytest.raises(Failure, match="is not installed"):
        service.start()
    assert not is_mounted(Path(service.folder))
