# SPDX-License-Identifier: AGPL-3.0-or-later
"""Network namespaces for tests: each test has its own host, guests and outside world.

A namespace lives as long as a sleeping child that holds it. `call` runs a function of the test in a forked child inside
a namespace and gives its result or raises its error, so that nothing touches the machine's own network.
"""

import contextlib
import ctypes
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace (with a mount namespace that shows its own /sys)."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self.holder = holder
        self.pid = holder.pid

    def run(self, *argv: str, check: bool = True, timeout: float = 30, text: str | None = None) -> str:
        """Run a program inside; gives its output."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt", "--", *argv],
            check=False,
            capture_output=True,
            timeout=timeout,
            text=True,
            input=text,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def ok(self, *argv: str, timeout: float = 30) -> bool:
        """Whether a program inside ends well."""
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt", "--", *argv]
        return subprocess.run(command, check=False, capture_output=True, timeout=timeout).returncode == 0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` in a forked child inside; its result must be picklable."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            self._in_child(function, arguments, write)
        os.close(write)
        with os.fdopen(read, "rb") as handle:
            data = handle.read()
        _, status = os.waitpid(child, 0)
        if not data:
            raise AssertionError(f"the child ended with status {os.waitstatus_to_exitcode(status)}")
        good, value = pickle.loads(data)  # noqa: S301  (our own child wrote it)
        if not good:
            raise value
        return value

    def _in_child(self, function: Callable[..., Any], arguments: tuple[Any, ...], write: int) -> None:
        try:
            for kind, flag in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
                descriptor = os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                if _LIBC.setns(descriptor, flag):
                    raise OSError(ctypes.get_errno(), "setns")
                os.close(descriptor)
            answer = (True, function(*arguments))
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            answer = (False, error)
        try:
            data = pickle.dumps(answer)
        except Exception:
            data = pickle.dumps((False, RuntimeError(repr(answer[1]))))
        with os.fdopen(write, "wb") as handle:
            handle.write(data)
        sys.stdout.flush()
        os._exit(0)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A fresh namespace with its loopback up."""
    script = "mount -t sysfs sysfs /sys && ip link set lo up && echo ready && exec sleep infinity"
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", script], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield Namespace(holder)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def join(one: Namespace, name: str, other: Namespace, other_name: str) -> None:
    """A cable: a veth pair between two namespaces, both ends up."""
    one.run("ip", "link", "add", name, "type", "veth", "peer", "name", other_name, "netns", str(other.pid))
    one.run("ip", "link", "set", name, "up")
    other.run("ip", "link", "set", other_name, "up")
