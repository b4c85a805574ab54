# SPDX-License-Identifier: AGPL-3.0-or-later
"""The daemon behind `orrery serve`: wires a node together and runs it until it is told to stop.

Run as `python -P -m orrery.cli.daemon ROOT LISTEN`; an empty ROOT means the system's places. Guests and tasks outlive
it.
"""

import asyncio
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import structlog

from orrery.api.app import Api
from orrery.api.routes import load_routes
from orrery.cli.node import Node
from orrery.errors import Failure, Locked, OrreryError
from orrery.front.nginx import Address
from orrery.front.server import Complaints, Door, Servers, client_address
from orrery.front.supervise import Front
from orrery.system.allocator import give_memory_back
from orrery.system.files import FileLock, read_json
from orrery.system.jail import account
from orrery.system.paths import Paths
from orrery.system.sockets import listen_unix
from orrery.tasks.daemonlog import log_into
from orrery.tasks.taskprocess import set_title

LEAST_FILES: Final = 256
MOST_FILES: Final = 1 << 16
"""Programs that close every descriptor that they could have would take their time with more."""

log = structlog.get_logger()


def serve(root: Path | None, listen: str) -> None:
    """Runs the node until a signal comes. Raises OrreryError when it cannot."""
    give_memory_back()
    allow_files()
    paths = Paths.of(root)
    name = node_name(paths)
    address = Address.parse(listen)
    front_user = account("orrery")
    paths.create((front_user.uid, front_user.gid))
    log_into(paths.daemon_log)
    lock = FileLock(paths.serve_lock, timeout=0)
    try:
        lock.acquire()
    except Locked as error:
        raise Failure(f"another `orrery serve` runs on this root: {error.message}") from error
    node = Node(paths, name, address)
    node.open()
    try:
        asyncio.run(run(node, Front(paths, name, address, front_user)))
    finally:
        node.close()
        lock.release()
    leave()


def allow_files() -> None:
    """Lets the daemon and its children have as many files open as they may. Raises Failure when that is too few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < LEAST_FILES:
        raise Failure(
            f"a node needs {LEAST_FILES} open files, and may have only {most} here: raise the limit (`ulimit -n`,"
            " LimitNOFILE= of the service)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MOST_FILES), most))


def leave() -> None:
    """Ends the process although requests still wait: Python would wait for their threads, for an hour if need be."""
    waiting = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    if waiting:
        log.warning("the node ends while requests still wait", threads=len(waiting))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def node_name(paths: Paths) -> str:
    """The node's name as `orrery init` wrote it. Raises `Failure` when there is no node here, or `Corrupt`."""
    if not paths.node_json.exists():
        raise Failure(f"there is no node here ('{paths.node_json}' is missing): run `orrery init` first")
    document = read_json(paths.node_json)
    return str(document["node"])


async def run(node: Node, front: Front) -> None:
    """Serves until a signal comes."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Complaints())
    leave = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave.set)
    paths = node.paths
    uid, gid = front.user.uid, front.user.gid
    front_socket = listen_unix(paths.front_sock, mode=0o660, uid=0, gid=gid)
    local_socket = listen_unix(paths.local_sock, mode=0o600)
    api = Api(load_routes(), node.services, client_address)
    servers = Servers(
        api,
        [Door(front_socket, "front", frozenset({uid, os.geteuid()})), Door(local_socket, "local", frozenset({0}))],
    )
    serving = asyncio.create_task(servers.run(), name="servers")
    jobs = asyncio.create_task(node.schedule().run(), name="jobs")
    try:
        await servers.started()
        await front.start()
        node.services.runner.zygote.wait_ready()
        node.boot()
        log.info("the node serves", node=node.name, listen=str(front.listen))
        sys.stdout.write(f"node '{node.name}' serves https://{front.listen}\n")
        sys.stdout.flush()
        await leave.wait()
        log.info("the node stops; guests and tasks go on")
    finally:
        await front.stop()
        servers.stop()
        await asyncio.wait({serving}, timeout=10)
        jobs.cancel()
        api.close()


def main() -> None:
    """Entry point; exits with 0, or with the exit code of the error's class."""
    root, listen = sys.argv[1:]
    set_title("orrery serve", " ".join(["orrery serve", *(["--root", root] if root else []), "--listen", listen]))
    try:
        serve(Path(root) if root else None, listen)
    except OrreryError as error:
        sys.stderr.write(f"orrery: {error.message.strip()}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
