# SPDX-License-Identifier: AGPL-3.0-or-later
"""Keeps the front alive: starts nginx in its jail, starts it again when it dies, and ends it with the core.

The core holds the listening socket and hands it to nginx, so that a taken port is known at once and in plain words, and
a new front takes over without refusing anybody. nginx's own way of inheriting sockets is used: the environment variable
NGINX names the descriptor.
"""

import asyncio
import contextlib
import datetime as dt
import errno
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from orrery.errors import Failure
from orrery.front.certificate import ensure_certificate
from orrery.front.nginx import (
    CERT_FILE,
    FRONT_FOLDER,
    KEY_FILE,
    PAGE_FOLDER,
    RUN_FOLDER,
    Address,
    Settings,
    configuration,
)
from orrery.system import process
from orrery.system.files import read_json, write_atomic, write_json
from orrery.system.jail import Account, Bind, Jail, unlimited_core_less
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

LISTEN_FD: Final = 3
START_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
STEADY_SECONDS: Final = 30.0
"""A front that ran so long did not die of its start: the next pause is short again."""
RENEWAL_CHECK: Final = dt.timedelta(hours=12)
_LOG_TAIL: Final = 2000
_LOG_LIMIT: Final = 8 << 20

log = structlog.get_logger()


def page_folder() -> Path:
    """The page's files, which come with the program."""
    return Path(__file__).with_name("page")


def bind(address: Address) -> socket.socket:
    """The front's listening socket. Raises `Failure` that says what to do when the port is taken."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.any_version)
        listener.bind((address.host, address.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        advice = "; another program listens there: end it, or choose another --listen" if taken else ""
        raise Failure(f"unable to listen on {address}: {error.strerror}{advice}") from error
    return listener


@dataclass
class Front:
    """nginx and its supervision. Call everything from the event loop's thread: the child dies with that thread."""

    paths: Paths
    node: str
    listen: Address
    user: Account
    workers: int = 2
    names: Sequence[str] = ()
    """Further addresses for the certificate."""
    settings: Settings | None = None
    """Limits and times other than the usual ones."""

    def __post_init__(self) -> None:
        self._listener: socket.socket | None = None
        self._process: ProcessId | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens and starts nginx; returns when it runs. Raises `Failure` with the reason when it does not."""
        end_leftover(self.paths)
        self._listener = bind(self.listen)
        try:
            self._certificate()
            await self._launch()
        except BaseException:
            self._listener.close()
            raise
        self._watch = asyncio.create_task(self._keep_alive(), name="front")

    async def stop(self) -> None:
        """Ends nginx and stops listening."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._end()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @property
    def process(self) -> ProcessId | None:
        """The running nginx (its master)."""
        return self._process

    async def _keep_alive(self) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            died = await self._ended(RENEWAL_CHECK.total_seconds())
            if not died:
                if self._certificate():
                    log.info("certificate renewed")
                    await self._end()
                    await self._launch_or_log()
                continue
            pause = FIRST_PAUSE if loop.time() - begun > STEADY_SECONDS else min(pause * 2, LONGEST_PAUSE)
            log.error("the front ended and is started again", seconds=pause, reason=self._last_words())
            if self._process is not None:
                kill_session(self._process)
            await asyncio.sleep(pause)
            await self._launch_or_log()

    async def _launch_or_log(self) -> None:
        try:
            await self._launch()
        except Failure as error:
            log.error("the front cannot be started", reason=error.message)

    async def _launch(self) -> None:
        if self._listener is None:
            raise Failure("the front does not listen")
        settings = self.settings or Settings(listen=self.listen, workers=self.workers)
        write_atomic(self.paths.nginx_conf, configuration(settings).encode(), 0o640)
        os.chown(self.paths.nginx_conf, os.geteuid(), self.user.gid)
        pid_file = self.paths.nginx_run / "nginx.pid"
        pid_file.unlink(missing_ok=True)
        with self._log_file().open("ab") as errors:
            self._process = process.spawn(
                ["nginx", "-e", "stderr", "-p", RUN_FOLDER, "-c", f"{FRONT_FOLDER}/nginx.conf"],
                name="nginx",
                jail=self._jail(),
                stderr=errors.fileno(),
                pass_fds={LISTEN_FD: self._listener.fileno()},
                env={"NGINX": f"{LISTEN_FD};"},
                die_with_parent=True,
                # Killed, it would leave its workers behind; asked to end, it takes them along.
                parent_death_signal=signal.SIGTERM,
            )
        write_json(self.paths.nginx_process, {"pid": self._process.pid, "start": self._process.start})
        await self._wait_for(pid_file)

    async def _wait_for(self, pid_file: Path) -> None:
        """nginx writes its pid file once its configuration is good and its sockets are open."""
        loop = asyncio.get_running_loop()
        end = loop.time() + START_SECONDS
        while not self._runs(pid_file):
            if loop.time() > end:
                raise Failure(f"nginx did not start within {START_SECONDS:g} seconds: {self._last_words()}")
            await asyncio.sleep(0.01)

    def _runs(self, pid_file: Path) -> bool:
        if self._process is None or not process.alive(self._process):
            raise Failure(f"nginx did not start: {self._last_words()}")
        return pid_file.exists()

    async def _ended(self, seconds: float) -> bool:
        """Waits until nginx has ended; False after so many seconds."""
        descriptor = process.open_pidfd(self._process) if self._process is not None else None
        if descriptor is None:
            return True
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return True

    async def _end(self) -> None:
        if self._process is None:
            return
        await asyncio.to_thread(process.terminate, self._process)
        kill_session(self._process)
        self._process = None
        self.paths.nginx_process.unlink(missing_ok=True)

    def _certificate(self) -> bool:
        return ensure_certificate(
            self.paths.tls_key,
            self.paths.tls_cert,
            self.node,
            [self.listen.host, *self.names],
            (self.user.uid, self.user.gid),
        )

    def _jail(self) -> Jail:
        return Jail(
            uid=self.user.uid,
            gid=self.user.gid,
            user=self.user.name,
            binds=(
                Bind(self.paths.front, FRONT_FOLDER),
                Bind(self.paths.nginx_run, RUN_FOLDER, writable=True),
                Bind(page_folder(), PAGE_FOLDER),
                Bind(self.paths.tls_key, KEY_FILE),
                Bind(self.paths.tls_cert, CERT_FILE),
            ),
            tmp_size=0,
            proc=False,
            limits=unlimited_core_less(),
        )

    def _log_file(self) -> Path:
        path = self.paths.nginx_log / "error.log"
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        return path

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file().read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").strip().splitlines()
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"


def end_leftover(paths: Paths) -> None:
    """Ends the front of a core that was killed, its workers too."""
    if not paths.nginx_process.exists():
        return
    recorded = read_json(paths.nginx_process)
    found = ProcessId(int(recorded["pid"]), int(recorded["start"]))
    if process.alive(found):
        log.warning("ending the front of a previous run", pid=found.pid)
        process.terminate(found)
    kill_session(found)
    with contextlib.suppress(OSError):  # of a process that is gone; it may stay where nothing can be written
        paths.nginx_process.unlink(missing_ok=True)


def kill_session(leader: ProcessId) -> None:
    """Kills what is left of nginx's session: workers whose master died do not end by themselves.

    The kernel gives the number of a session's leader to nobody else while a member lives, so these are ours.
    """
    for member in process.session_members(leader):
        process.signal(member, signal.SIGKILL)
        process.wait(member, 2.0)
    process.reap(leader)
