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
import time
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

    def _inside(self, argv: tuple[str, ...]) -> list[str]:
        # The program dies with us, and the namespace with it.
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt"]
        return ["setpriv", "--pdeathsig", "KILL", *enter, "--", *argv]

    def run(self, *argv: str, timeout: float = 30) -> str:
        """Run a program inside; gives its output, fails with it."""
        done = subprocess.run(self._inside(argv), check=False, capture_output=True, timeout=timeout, text=True)
        if done.returncode:
            raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def ok(self, *argv: str, timeout: float = 30) -> bool:
        """Whether a program inside ends well."""
        return subprocess.run(self._inside(argv), check=False, capture_output=True, timeout=timeout).returncode == 0

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program inside that stays; the caller ends it."""
        return subprocess.Popen(self._inside(argv), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for(self, *argv: str, seconds: float = 5) -> None:
        """Run a program inside again and again until it ends well."""
        end = time.monotonic() + seconds
        while not self.ok(*argv):
            assert time.monotonic() < end, f"{argv} never ended well"
            time.sleep(0.05)

    def retry(self, *argv: str, seconds: float = 5) -> str:
        """The output of a program inside, as soon as it ends well."""
        self.wait_for(*argv, seconds=seconds)
        return self.run(*argv)

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
