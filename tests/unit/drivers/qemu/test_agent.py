# SPDX-License-Identifier: AGPL-3.0-or-later
"""The agent's client against a stand-in for the guest's side of the line."""

import base64
import contextlib
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from orrery.drivers.qemu import agent as module
from orrery.drivers.qemu.agent import COMMANDS, READ_MAX, Agent, AgentError
from orrery.errors import Failure, ParameterError
from orrery.system import sockets


class FakeAgent:
    """One serial line: what was sent before and not read is still there, and commands are answered in turn."""

    def __init__(self, folder: Path) -> None:
        self.received: list[tuple[str, Any]] = []
        self.stale = b""
        self.deaf = False
        self.delay = 0.0
        self.file = b""
        self.written = b""
        self.stuck: Any = None
        """What is answered to reads and writes, if anything is."""
        self.lie: Any = None
        """What is answered to everything, if anything is."""
        self.busy = 0
        self.most_busy = 0
        self._offset = 0
        self._server = sockets.listen_unix(folder / "agent")
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        # Whoever gave up waiting has closed the other end.
        with contextlib.suppress(OSError), client, client.makefile("rb") as lines:
            if self.stale:
                client.sendall(self.stale)
            for line in lines:
                if self.deaf:
                    continue
                message = json.loads(line.lstrip(b"\xff"))
                command, arguments = message["execute"], message.get("arguments", {})
                if command == "guest-sync-delimited":
                    client.sendall(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
                    continue
                self.received.append((command, arguments))
                time.sleep(self.delay)
                if isinstance(self.lie, bytes):
                    client.sendall(self.lie)
                    client.sendall(b"\n")
                    continue
                answer = self.answer(command, arguments) if self.lie is None else self.lie
                if answer is not None:
                    client.sendall(json.dumps(answer).encode() + b"\n")
        self.busy -= 1

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        if self.stuck is not None and command in ("guest-file-read", "guest-file-write"):
            return dict(self.stuck)
        match command:
            case "guest-exec":
                return {"return": {"pid": 42}}
            case "guest-exec-status":
                data = base64.b64encode("grüße".encode()).decode()
                return {"return": {"exited": True, "exitcode": 0, "out-data": data, "out-truncated": True}}
            case "guest-file-open":
                self._offset = 0
                return {"return": 5}
            case "guest-file-seek":
                self._offset = arguments["offset"]
                return {"return": {"position": self._offset, "eof": False}}
            case "guest-file-read":
                piece = self.file[self._offset : self._offset + arguments["count"]]
                self._offset += len(piece)
                data = base64.b64encode(piece).decode()
                return {"return": {"count": len(piece), "buf-b64": data, "eof": len(piece) < arguments["count"]}}
            case "guest-file-write":
                self.written += base64.b64decode(arguments["buf-b64"])
                return {"return": {"count": len(base64.b64decode(arguments["buf-b64"])), "eof": False}}
            case "guest-get-users":
                return {"error": {"class": "GenericError", "desc": "no users here"}}
            case "guest-shutdown":
                return None
            case "guest-suspend-ram":
                return {"error": {"class": "GenericError", "desc": "not supported"}}
        return {"return": {}}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeAgent]:
    agent = FakeAgent(tmp_path)
    yield agent
    agent.close()


@pytest.fixture
def agent(fake: FakeAgent, tmp_path: Path) -> Agent:
    return Agent(tmp_path, 100)


def test_commands_reach_the_agent_by_its_own_names(agent: Agent, fake: FakeAgent) -> None:
    for name, command in COMMANDS.items():
        if name in ("get-users", "suspend-ram") or not command.answers:
            continue
        assert agent.command(name) == {}
        assert fake.received[-1] == (command.name, {})


def test_unknown_command_is_a_wrong_parameter(agent: Agent) -> None:
    with pytest.raises(ParameterError) as caught:
        agent.command("format-c")
    assert "command" in caught.value.errors


def test_refusals_carry_the_agents_words(agent: Agent) -> None:
    with pytest.raises(AgentError, match=r"^Agent error: no users here$"):
        agent.command("get-users")


def test_what_others_left_on_the_line_is_skipped(agent: Agent, fake: FakeAgent) -> None:
    fake.stale = b'{"return": 1}\n{"return": {"half'
    assert agent.command("ping") == {}


def test_deaf_agent(agent: Agent, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.deaf = True
    monkeypatch.setattr(module, "_SYNC_SECONDS", 0.1)
    assert not agent.ping(0.1)
    with pytest.raises(AgentError, match="QEMU guest agent is not running"), agent._conversation(1, 0.1):
        pass


def test_slow_agent(agent: Agent, fake: FakeAgent) -> None:
    fake.delay = 0.5
    with (
        agent._conversation() as line,
        pytest.raises(AgentError, match="VM 100 qga command 'guest-ping' failed - got timeout"),
    ):
        line.execute("guest-ping", None, 0.1)


def test_commands_that_never_answer(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENT_SECONDS", 0.2)
    assert agent.command("shutdown") == {}
    with pytest.raises(AgentError, match="not supported"):
        agent.command("suspend-ram")


def test_programs(agent: Agent, fake: FakeAgent) -> None:
    assert agent.exec(["/bin/cat", "-n"], "hallo") == {"pid": 42}
    expected = {"path": "/bin/cat", "arg": ["-n"], "capture-output": True, "input-data": "aGFsbG8="}
    assert fake.received[-1] == ("guest-exec", expected)
    assert agent.exec_status(42) == {"exited": 1, "exitcode": 0, "out-data": "grüße", "out-truncated": 1}
    with pytest.raises(ParameterError):
        agent.exec([])


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 5])
def test_files_are_read_whole(agent: Agent, fake: FakeAgent, size: int) -> None:
    fake.file = b"x" * size
    assert agent.file_read("/f") == {"content": "x" * size}
    assert fake.received[-1][0] == "guest-file-close"


def test_parts_of_files(agent: Agent, fake: FakeAgent) -> None:
    fake.file = b"0123456789"
    assert agent.file_read("/f", count=3, offset=2) == {"content": "234", "truncated": 1}
    assert agent.file_read("/f", count=8, offset=2) == {"content": "23456789"}
    assert agent.file_read("/f", count=10, decode=False) == {"content": "MDEyMzQ1Njc4OQ=="}


def test_files_beyond_the_limit_are_cut(agent: Agent, fake: FakeAgent) -> None:
    fake.file = b"x" * (READ_MAX + 1)
    answer = agent.file_read("/f")
    assert (len(answer["content"]), answer["truncated"]) == (READ_MAX, 1)


def test_files_are_written(agent: Agent, fake: FakeAgent) -> None:
    agent.file_write("/f", "grüße")
    agent.file_write("/f", base64.b64encode(b"\x00\xff").decode(), encode=False)
    assert fake.written == "grüße".encode() + b"\x00\xff"
    with pytest.raises(ParameterError):
        agent.file_write("/f", "not base64!", encode=False)


def test_password_is_encoded(agent: Agent, fake: FakeAgent) -> None:
    agent.set_user_password("anna", "geheim", crypted=False)
    expected = {"username": "anna", "password": "Z2VoZWlt", "crypted": False}
    assert fake.received == [("guest-set-user-password", expected)]


def test_conversations_do_not_overlap(agent: Agent, fake: FakeAgent, tmp_path: Path) -> None:
    fake.delay = 0.05
    others = [threading.Thread(target=Agent(tmp_path, 100).command, args=("ping",)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(fake.received) == 4
    assert fake.most_busy == 1


# --- guests that mean harm

LIES: list[Any] = [
    5,
    [],
    "text",
    {},
    {"error": "text"},
    {"error": [1]},
    {"return": None},
    {"return": 7},
    {"return": [[]]},
    {"return": {"pid": "many", "out-data": "&", "buf-b64": "&", "eof": 1, "count": 1}},
    {"return": {"pid": {}, "exited": {}, "out-data": 5, "buf-b64": 5, "count": -1}},
    b"not JSON",
    b'{"return": {"pid": 1e999}}',
    b"[" * 100_000,
    b'{"return": ' + b"[" * 700 + b"]" * 700 + b"}",
    b'{"return": {"pid": ' + b"9" * 5000 + b"}}",
    b'{"return": {"a": "\\ud800"}}',
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[:30])
def test_senseless_answers_are_told_as_the_agents_fault(agent: Agent, fake: FakeAgent, lie: Any) -> None:
    fake.lie = lie
    for ask in (
        lambda: agent.command("get-fsinfo"),
        lambda: agent.exec(["true"]),
        lambda: agent.exec_status(1),
        lambda: agent.file_read("/x"),
        lambda: agent.file_write("/x", "text"),
    ):
        try:
            orjson.dumps(ask())
        except Failure:
            continue


def test_files_without_end_or_progress(agent: Agent, fake: FakeAgent) -> None:
    for stuck in (
        {"return": {"count": 0, "buf-b64": "", "eof": False}},
        {"return": {"count": 3 << 20, "buf-b64": base64.b64encode(bytes(3 << 20)).decode(), "eof": False}},
    ):
        fake.stuck = stuck
        with pytest.raises(AgentError):
            agent.file_read("/x")
    for count in (0, -1, 1 << 40):
        fake.stuck = {"return": {"count": count, "eof": False}}
        with pytest.raises(AgentError):
            agent.file_write("/x", "text")


def test_a_slow_file_ends_all_the_same(agent: Agent, fake: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FILE_SECONDS", 0.3)
    fake.file, fake.delay = bytes(12 << 20), 0.1
    begun = time.monotonic()
    with pytest.raises(AgentError, match="got timeout"):
        agent.file_read("/x")
    assert time.monotonic() - begun < 3


def test_an_endless_line_costs_little_memory(agent: Agent, fake: FakeAgent) -> None:
    endless = b"x" * (80 << 20) + b"\n"
    fake.stale = endless
    tracemalloc.start()
    try:
        assert agent.exec(["true"]) == {"pid": 42}
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
        fake.stale = b""
        fake.lie = endless
        tracemalloc.reset_peak()
        with pytest.raises(AgentError):
            agent.exec(["true"])
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_agent_of_a_machine_that_is_gone(tmp_path: Path) -> None:
    sockets.listen_unix(tmp_path / "agent").close()
    agent = Agent(tmp_path, 100)
    with pytest.raises(Failure, match="VM 100 is not running"):
        agent.command("ping")
    with pytest.raises(Failure, match="VM 101 is not running"):
        Agent(tmp_path / "101", 101).command("ping")
    (tmp_path / "102").mkdir()
    with pytest.raises(Failure, match="No QEMU guest agent configured"):
        Agent(tmp_path / "102", 102).command("ping")
