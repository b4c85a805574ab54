# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is done inside a running container: programs, signals to its first process, a look at its network."""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from orrery.drivers.lxc.config import CONFIG_FILE, ERRORS_FILE, LOG_FILE
from orrery.drivers.lxc.plan import STAGE
from orrery.errors import Failure
from orrery.system import cgroup, livemounts, netlink, process
from orrery.system.netlink import Link
from orrery.system.paths import Paths
from orrery.system.process import Completed, ProcessId

Wish = Literal["stop", "reboot"]

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ASK_SECONDS: Final = 20.0
_MOST_LOG: Final = 1 << 18
_MOST_SAID: Final = 1 << 20

# systemd(1): signals; 34 is the first real-time signal that the C library leaves to programs.
_SYSTEMD: Final = {"stop": 34 + 3, "reboot": 34 + 5}
# busybox's init halts by SIGUSR1, powers off by SIGUSR2, reboots by SIGTERM
_BUSYBOX: Final = {"stop": signal.SIGUSR2, "reboot": signal.SIGTERM}
# What other inits have: System V's, OpenRC's, runit's
_PROGRAMS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "stop": (("/sbin/shutdown", "-h", "now"), ("/sbin/openrc-shutdown", "-p", "now"), ("/sbin/poweroff",)),
    "reboot": (("/sbin/shutdown", "-r", "now"), ("/sbin/openrc-shutdown", "-r", "now"), ("/sbin/reboot",)),
}


def execute(
    vmid: int,
    paths: Paths,
    monitor: ProcessId,
    argv: Sequence[str],
    *,
    timeout: float,
    input: bytes | None = None,  # noqa: A002  (as in `process.run`)
    env: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
    check: bool = False,
    on_output: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run a program in a container and wait for its end; see `process.run`. `user`: uid and gid inside.

    Its environment holds PATH, HOME, TERM and `env` alone. Of what it says the first MiB is kept: it may say anything.
    The exit code is the program's own; 127: there is none of that name, 126: it cannot be run.
    """
    command = entering(vmid, paths, monitor, argv, env=env, user=user)
    return process.run(
        command,
        name=argv[0],
        timeout=timeout,
        input=input,
        check=check,
        on_output=on_output,
        most=_MOST_SAID,
    )


def entering(
    vmid: int,
    paths: Paths,
    monitor: ProcessId,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
) -> list[str]:
    """The command line that runs a program in a container; see `execute`."""
    for name in (LOG_FILE, ERRORS_FILE):
        _trim(paths.guest_run(vmid) / name)
    command = tool(vmid, paths, monitor, "lxc-attach")
    command += ["-f", str(paths.guest_run(vmid) / CONFIG_FILE), "-q", "-o", "none", "--clear-env"]
    for name, value in {"PATH": _PATH, "TERM": "linux", "HOME": "/root", **(env or {})}.items():
        command += ["-v", f"{name}={value}"]
    if user is not None:
        command += ["-u", str(user[0]), "-g", str(user[1])]
    return [*command, "--", *argv]


def _trim(path: Path) -> None:
    """Empty a log of the monitor's that has grown: it writes a line there for each program, for as long as it runs."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > _MOST_LOG:
            os.truncate(path, 0)


def tool(vmid: int, paths: Paths, monitor: ProcessId, program: str) -> list[str]:
    """The beginning of a command line of LXC's about a container: in its monitor's view, where LXC's files are."""
    lxcpath = STAGE / cgroup.root_group_name(paths.root_hash)
    view = ["nsenter", f"--mount=/proc/{monitor.pid}/ns/mnt", "--"]
    return [*view, process.find(program), "-n", str(vmid), "-P", str(lxcpath)]


def ask(first: int, wish: Wish, run: Callable[[Sequence[str]], Completed]) -> None:
    """Ask the system in a container to end or start again, in the words of its init; `run` runs a program inside.

    A first process that is no init is told to end by SIGTERM. Raises Failure when there is no way to ask.
    """
    found = process.identity(first)
    try:
        program = Path(f"/proc/{first}/exe").readlink().name.removesuffix(" (deleted)")
        name = Path(f"/proc/{first}/comm").read_text().strip()
    except OSError:
        return  # it ended by itself
    if found is None:
        return
    if program == "systemd":
        process.signal(found, _SYSTEMD[wish])
    elif program == "busybox" and name in ("init", "linuxrc"):
        process.signal(found, _BUSYBOX[wish])
    elif name in ("init", "runit", "openrc-init", "s6-svscan", "dinit", "upstart"):
        _ask_by_program(wish, run)
    elif wish == "stop":
        process.signal(found, signal.SIGTERM)
    else:
        raise Failure(f"'{name}', the first process of this container, cannot be asked to reboot; stop and start it")


def _ask_by_program(wish: Wish, run: Callable[[Sequence[str]], Completed]) -> None:
    problem = "it has no program for that"
    for argv in _PROGRAMS[wish]:
        done = run(argv)
        if done.returncode == 0:
            return
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        problem = lines[-1] if lines else problem
    raise Failure(f"the container's system could not be asked to {wish}: {problem}")


def ask_seconds() -> float:
    """How long a program that asks may take."""
    return _ASK_SECONDS


def interfaces(first: int) -> list[Link]:
    """The network cards inside, with their addresses, in their order."""
    return list(livemounts.in_network(first, netlink.links).values())
