# SPDX-License-Identifier: AGPL-3.0-or-later
"""Talking to the agent inside a guest.

The agent's channel is a serial line: it has no notion of a client, and an answer that nobody waited for is still there
for the next one. So one broker per guest (a lock in its run folder) serializes everybody, and each conversation begins
by finding the place where the line is clean (`guest-sync-delimited`).
Protocol: https://www.qemu.org/docs/master/interop/qemu-ga-ref.html
"""

import base64
import binascii
import contextlib
import json
import math
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import orjson

from orrery.drivers.qemu.plan import AGENT_SOCKET
from orrery.errors import Failure, Locked, ParameterError
from orrery.system import files, sockets

READ_MAX: Final = 16 << 20
"""Bytes of a file that one call reads at most."""

_LOCK_FILE: Final = "agent.lock"
_SENTINEL: Final = b"\xff"
_SYNC_SECONDS: Final = 3.0
_COMMAND_SECONDS: Final = 10.0
_QUEUE_SECONDS: Final = 10.0
_FREEZE_SECONDS: Final = 3600.0  # a guest may have much to write out first
_TRIM_SECONDS: Final = 600.0
_SILENT_SECONDS: Final = 1.0  # how long a refusal of a command that never answers may take
_FILE_SECONDS: Final = 60.0  # for a whole file: a guest that never comes to its end must not hold a thread for ever
_CHUNK: Final = 1 << 20
_ANSWER_MAX: Final = 4 << 20
_OUTPUT_MAX: Final = 64 << 20  # what a program printed, which the agent keeps whole: twice 16 MiB, in base64


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """A command of the API without parameters: the agent's name for it, how long it may take (seconds).

    `answers`: whether the agent answers at all when it does what was asked.
    """

    name: str
    timeout: float = _COMMAND_SECONDS
    answers: bool = True
    arguments: Mapping[str, Any] | None = None


COMMANDS: Mapping[str, AgentCommand] = MappingProxyType(
    {
        "fsfreeze-freeze": AgentCommand("guest-fsfreeze-freeze", _FREEZE_SECONDS),
        "fsfreeze-status": AgentCommand("guest-fsfreeze-status"),
        "fsfreeze-thaw": AgentCommand("guest-fsfreeze-thaw", _FREEZE_SECONDS),
        "fstrim": AgentCommand("guest-fstrim", _TRIM_SECONDS),
        "get-fsinfo": AgentCommand("guest-get-fsinfo"),
        "get-host-name": AgentCommand("guest-get-host-name"),
        "get-memory-block-info": AgentCommand("guest-get-memory-block-info"),
        "get-memory-blocks": AgentCommand("guest-get-memory-blocks"),
        "get-osinfo": AgentCommand("guest-get-osinfo"),
        "get-time": AgentCommand("guest-get-time"),
        "get-timezone": AgentCommand("guest-get-timezone"),
        "get-users": AgentCommand("guest-get-users"),
        "get-vcpus": AgentCommand("guest-get-vcpus"),
        "info": AgentCommand("guest-info"),
        "network-get-interfaces": AgentCommand("guest-network-get-interfaces"),
        "ping": AgentCommand("guest-ping"),
        "shutdown": AgentCommand("guest-shutdown", answers=False, arguments={"mode": "powerdown"}),
        "suspend-disk": AgentCommand("guest-suspend-disk", answers=False),
        "suspend-hybrid": AgentCommand("guest-suspend-hybrid", answers=False),
        "suspend-ram": AgentCommand("guest-suspend-ram", answers=False),
    }
)
"""The API's commands without parameters, by the API's names."""


class AgentError(Failure):
    """The agent refused, or does not answer."""

    code = "agent"


class Agent:
    """The agent of one running guest. Cheap to make; each call is a conversation of its own."""

    def __init__(self, folder: Path, vmid: int) -> None:
        self._folder = folder
        self.vmid = vmid

    # --- the API's commands

    def command(self, name: str) -> Any:
        """Run one of `COMMANDS`; gives the agent's result. Raises AgentError, ParameterError for an unknown name."""
        known = COMMANDS.get(name)
        if known is None:
            raise ParameterError(
                {"command": f"value '{name}' does not have a value in the enumeration '{', '.join(COMMANDS)}'"}
            )
        with self._conversation(known.timeout) as line:
            found = line.execute(known.name, known.arguments, known.timeout, answers=known.answers)
            orjson.dumps(found)  # what cannot be passed on, such as lists in lists without end, is no answer
            return found

    def ping(self, timeout: float = _SYNC_SECONDS) -> bool:
        """Whether the agent answers within `timeout` seconds."""
        try:
            with self._conversation(timeout, timeout) as line:
                line.execute("guest-ping", None, timeout)
        except Failure:
            return False
        return True

    def exec(self, command: Sequence[str], input_data: str | None = None) -> dict[str, Any]:
        """Start a program in the guest (`command` is its argument list); gives `{"pid": …}`."""
        if not command or not command[0]:
            raise ParameterError({"command": "the list must at least name a program"})
        arguments: dict[str, Any] = {"path": command[0], "arg": list(command[1:]), "capture-output": True}
        if input_data is not None:
            arguments["input-data"] = _encode(input_data.encode())
        with self._conversation() as line:
            return {"pid": int(line.execute("guest-exec", arguments)["pid"])}

    def exec_status(self, pid: int) -> dict[str, Any]:
        """How a program started by `exec` does: `exited`, `exitcode` or `signal`, `out-data`, `err-data` as text."""
        with self._conversation() as line:
            found = line.execute("guest-exec-status", {"pid": pid}, limit=_OUTPUT_MAX)
            answer = {key: int(value) if isinstance(value, bool) else value for key, value in found.items()}
            for key in ("out-data", "err-data"):
                if key in answer:
                    answer[key] = base64.b64decode(str(answer[key])).decode("utf-8", "replace")
            return answer

    def file_read(self, file: str, *, count: int = READ_MAX, offset: int = 0, decode: bool = True) -> dict[str, Any]:
        """Contents of a file in the guest, at most `READ_MAX` bytes: `content` (text, or base64), `truncated`."""
        content, more = bytearray(), False
        with self._conversation(whole=_FILE_SECONDS) as line, line.opened(file, "rb") as handle:
            if offset:
                line.execute("guest-file-seek", {"handle": handle, "offset": offset, "whence": "set"})
            while True:
                wanted = min(_CHUNK, count - len(content))
                if wanted <= 0:
                    more = not self._at_end(line, handle)
                    break
                answer = line.execute("guest-file-read", {"handle": handle, "count": wanted})
                piece = base64.b64decode(answer["buf-b64"])
                content += piece
                if answer["eof"]:
                    break
                if not 0 < len(piece) <= wanted:
                    raise ValueError("another part of the file than was asked for")
        text = content.decode("utf-8", "replace") if decode else _encode(bytes(content))
        return {"content": text, **({"truncated": 1} if more else {})}

    @staticmethod
    def _at_end(line: "_Line", handle: int) -> bool:
        answer = line.execute("guest-file-read", {"handle": handle, "count": 1})
        return bool(answer["eof"]) and answer["count"] == 0

    def file_write(self, file: str, content: str, *, encode: bool = True) -> None:
        """Replace the contents of a file in the guest. Without `encode`, `content` is base64 already."""
        try:
            data = content.encode() if encode else base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise ParameterError({"content": "value is not base64, though encode is 0"}) from None
        with self._conversation(whole=_FILE_SECONDS) as line, line.opened(file, "wb") as handle:
            while data:
                chunk = data[:_CHUNK]
                answer = line.execute("guest-file-write", {"handle": handle, "buf-b64": _encode(chunk)})
                written = int(answer["count"])
                if not 0 < written <= len(chunk):
                    raise ValueError("more or less was written than sent")
                data = data[written:]
            line.execute("guest-file-flush", {"handle": handle})

    def set_user_password(self, username: str, password: str, *, crypted: bool = False) -> Any:
        """Set the password of a user of the guest."""
        arguments = {"username": username, "password": _encode(password.encode()), "crypted": crypted}
        with self._conversation() as line:
            return line.execute("guest-set-user-password", arguments)

    # --- the line

    @contextlib.contextmanager
    def _conversation(
        self, timeout: float = _COMMAND_SECONDS, sync: float = _SYNC_SECONDS, *, whole: float | None = None
    ) -> Iterator["_Line"]:
        """A clean line that nobody else uses, for `whole` seconds at most. Raises AgentError.

        What answers belongs to the guest and may say anything: whatever its answers are not, is the agent's error.
        """
        path = self._folder / AGENT_SOCKET
        if not path.exists():
            raise AgentError(f"VM {self.vmid} is not running" if not self._folder.exists() else _NOT_CONFIGURED)
        try:
            with files.FileLock(self._folder / _LOCK_FILE, min(timeout, _QUEUE_SECONDS)):
                try:
                    connection = sockets.connect_unix(path, sync)
                except (FileNotFoundError, ConnectionRefusedError) as error:
                    raise AgentError(f"VM {self.vmid} is not running") from error
                with connection:
                    line = _Line(connection, self.vmid)
                    line.synchronize(sync)
                    line.until(whole)
                    yield line
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise AgentError(f"Agent error: VM {self.vmid} sent an answer that makes no sense") from error
        except Locked as error:
            raise AgentError(f"VM {self.vmid} qga command failed - got timeout; the agent is busy") from error


_NOT_CONFIGURED: Final = "No QEMU guest agent configured"
_NOT_RUNNING: Final = "QEMU guest agent is not running"


class _Line:
    """The agent's channel while one conversation lasts."""

    def __init__(self, connection: socket.socket, vmid: int) -> None:
        self._socket = connection
        self._vmid = vmid
        self._buffer = bytearray()
        self._end = math.inf

    def until(self, seconds: float | None) -> None:
        """Let the conversation last so long at most, from now on."""
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def synchronize(self, timeout: float) -> None:
        """Skip whatever older conversations left. Raises AgentError when the agent does not answer."""
        number = secrets.randbelow(1 << 31)
        end = time.monotonic() + timeout
        try:
            self._send("guest-sync-delimited", {"id": number}, prefix=_SENTINEL)
            while True:
                text = self._receive(end, _CHUNK, skip=True)
                with contextlib.suppress(ValueError):
                    if orjson.loads(text.rpartition(_SENTINEL)[2]) == {"return": number}:
                        return
        except (TimeoutError, OSError, EOFError) as error:
            raise AgentError(_NOT_RUNNING) from error

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout: float = _COMMAND_SECONDS,
        *,
        answers: bool = True,
        limit: int = _ANSWER_MAX,
    ) -> Any:
        """Run a command of the agent, whose answer has at most `limit` bytes. Raises AgentError."""
        end = time.monotonic() + (timeout if answers else _SILENT_SECONDS)
        try:
            self._send(command, arguments)
            answer = orjson.loads(self._receive(min(end, self._end), limit))
        except TimeoutError as error:
            if not answers:
                return {}
            raise AgentError(f"VM {self._vmid} qga command '{command}' failed - got timeout") from error
        except (OSError, EOFError) as error:
            if not answers:
                return {}
            raise AgentError(f"VM {self._vmid} qga command '{command}' failed - the machine has ended") from error
        except ValueError as error:
            raise AgentError(f"Agent error: '{command}' got an answer that is not JSON") from error
        if "error" in answer:
            raise AgentError(f"Agent error: {answer['error'].get('desc', 'unknown')}")
        return answer["return"]

    @contextlib.contextmanager
    def opened(self, file: str, mode: str) -> Iterator[int]:
        """An open file in the guest."""
        handle = int(self.execute("guest-file-open", {"path": file, "mode": mode}))
        try:
            yield handle
        finally:
            self.execute("guest-file-close", {"handle": handle})

    def _send(self, command: str, arguments: Mapping[str, Any] | None, prefix: bytes = b"") -> None:
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = dict(arguments)
        self._socket.sendall(prefix + json.dumps(message).encode() + b"\n")

    def _receive(self, end: float, limit: int = _ANSWER_MAX, *, skip: bool = False) -> bytes:
        """The next line; with `skip` only the end of one that is too long, otherwise that raises ValueError.

        Raises TimeoutError after `end` (monotonic), EOFError when the machine is gone.
        """
        start = 0
        while (position := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start > limit:
                if not skip:
                    raise ValueError("the agent sent an endless line")
                self._buffer.clear()
                start = 0
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise EOFError
            self._buffer += piece
        text = bytes(self._buffer[:position])
        del self._buffer[: position + 1]
        return text


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
