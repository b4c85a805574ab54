# SPDX-License-Identifier: AGPL-3.0-or-later
"""The monitor against a stand-in for QEMU that answers as told."""

import array
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orrery.drivers.qemu.monitor import Monitor, MonitorError
from orrery.errors import Failure
from orrery.system import sockets

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
Answer = Callable[[str, dict[str, Any]], Any]


class Refusal(Exception):
    """A command that the stand-in refuses."""


class FakeQemu:
    """Serves one client after the other, as QEMU does. `events` are sent before each answer."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.answer = answer
        self.events: list[dict[str, Any]] = []
        self.commands: list[str] = []
        self.fds: list[int] = []
        self.silent = False
        self._server = sockets.listen_unix(path)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client:  # who gave up waiting has closed the other end
                self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        if not self.silent:
            send(client, GREETING)
        rest = b""
        while True:
            piece, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(64))
            for _, _, data in ancillary:
                self.fds += array.array("i", data[: len(data) - len(data) % 4])
            if not piece:
                return
            rest += piece
            while b"\n" in rest or rest.strip().endswith(b"}"):
                line, _, rest = rest.partition(b"\n")
                if line.strip() and not self._answer(client, json.loads(line)):
                    return
                if not rest:
                    break

    def _answer(self, client: socket.socket, message: dict[str, Any]) -> bool:
        command = message["execute"]
        if command == "qmp_capabilities":
            send(client, {"return": {}, "id": message.get("id")})
            return True
        self.commands.append(command)
        for event in self.events:
            send(client, {"timestamp": {"seconds": 1, "microseconds": 0}, **event})
        self.events = []
        try:
            found = self.answer(command, message.get("arguments", {}))
        except Refusal as error:
            send(client, {"error": {"class": "DeviceNotFound", "desc": str(error)}, "id": message["id"]})
            return True
        except TimeoutError:
            return True
        except EOFError:
            return False
        send(client, {"return": found, "id": message["id"]})
        return True


def send(client: socket.socket, value: Any) -> None:
    client.sendall(json.dumps(value).encode() + b"\r\n")


def answer(command: str, arguments: dict[str, Any]) -> Any:
    match command:
        case "refuse":
            raise Refusal("there is no such thing")
        case "sleep":
            raise TimeoutError
        case "die":
            raise EOFError
        case "add-fd":
            return {"fdset-id": 7, "fd": 30}
        case "query-fdsets":
            return [{"fdset-id": 7, "fds": [{"fd": 30, "opaque": "drive-x"}]}, {"fdset-id": 8, "fds": [{"fd": 31}]}]
    return arguments


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Longer than a socket's address may be."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    return folder / "control"


@pytest.fixture
def qemu(path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(path, answer)
    yield fake
    fake.close()


def test_commands_and_their_results(qemu: FakeQemu, path: Path) -> None:
    with Monitor(path, 100) as monitor:
        assert monitor.execute("echo", {"a-b": 1}) == {"a-b": 1}
        assert monitor.execute("echo") == {}
    assert qemu.commands == ["echo", "echo"]


def test_connection_and_a_command_take_ten_milliseconds_at_most(qemu: FakeQemu, path: Path) -> None:
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        with Monitor(path, 100) as monitor:
            monitor.execute("echo")
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.010


def test_refused_command(qemu: FakeQemu, path: Path) -> None:
    with Monitor(path, 100) as monitor:
        with pytest.raises(MonitorError) as caught:
            monitor.execute("refuse")
        assert caught.value.message == "VM 100 qmp command 'refuse' failed - there is no such thing"
        assert caught.value.kind == "DeviceNotFound"
        assert monitor.execute("echo") == {}


def test_silent_machine_times_out_and_the_monitor_survives(qemu: FakeQemu, path: Path) -> None:
    with Monitor(path, 100) as monitor:
        begun = time.monotonic()
        with pytest.raises(MonitorError) as caught:
            monitor.execute("sleep", timeout=0.1)
        assert caught.value.message == "VM 100 qmp command 'sleep' failed - got timeout"
        assert time.monotonic() - begun < 1
        assert monitor.execute("echo") == {}


def test_machine_that_does_not_greet(qemu: FakeQemu, path: Path) -> None:
    qemu.silent = True
    with pytest.raises(MonitorError, match="got timeout"), Monitor(path, 100, timeout=0.1):
        pass


def test_second_client_waits_for_the_first(qemu: FakeQemu, path: Path) -> None:
    with Monitor(path, 100), pytest.raises(MonitorError, match="got timeout"), Monitor(path, 100, timeout=0.1):
        pass
    with Monitor(path, 100) as monitor:
        assert monitor.execute("echo") == {}


def test_machine_that_ends_in_between(qemu: FakeQemu, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Monitor(path, 100) as monitor, pytest.raises(MonitorError, match="closed the connection") as caught:
        monitor.execute("die")
    assert caught.value.kind == "closed"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("left", [False, True])
def test_machine_that_does_not_run(path: Path, left: bool) -> None:
    if left:
        sockets.listen_unix(path).close()
    with pytest.raises(Failure, match="VM 100 not running"), Monitor(path, 100):
        pass


def test_events_are_kept_until_somebody_wants_them(qemu: FakeQemu, path: Path) -> None:
    with Monitor(path, 100) as monitor:
        qemu.events = [{"event": "STOP"}, {"event": "DEVICE_DELETED", "data": {"device": "net1"}}]
        monitor.execute("echo")
        found = monitor.wait_event(lambda event: event["event"] == "DEVICE_DELETED", 1)
        assert found is not None
        assert found["data"] == {"device": "net1"}
        assert monitor.wait_event(lambda event: event["event"] == "DEVICE_DELETED", 0.05) is None
        assert monitor.wait_event(lambda event: event["event"] == "STOP", 0) is not None


def test_descriptors_are_handed_over_and_taken_back(qemu: FakeQemu, path: Path) -> None:
    with Monitor(path, 100) as monitor, Path("/dev/null").open("rb") as file:
        assert monitor.add_fd(file.fileno(), "drive-x") == "/dev/fdset/7"
        monitor.remove_fd("drive-x")
        monitor.give_fd(file.fileno(), "tap")
    assert len(qemu.fds) == 2
    for fd in qemu.fds:
        assert os.fstat(fd).st_rdev == Path("/dev/null").stat().st_rdev
        os.close(fd)
    assert qemu.commands == ["add-fd", "query-fdsets", "remove-fd", "getfd"]


def test_exception_from_a_signal_handler_ends_the_wait(qemu: FakeQemu, path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stop

    def work() -> None:
        with Monitor(path, 100) as monitor:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            monitor.execute("sleep", timeout=30)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stop):
            work()
    finally:
        signal.signal(signal.SIGALRM, before)
    with Monitor(path, 100) as monitor:
        assert monitor.execute("echo") == {}
