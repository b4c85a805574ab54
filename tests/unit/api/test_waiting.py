# SPDX-License-Identifier: AGPL-3.0-or-later
"""Calls that wait for a machine, a task or a web server keep no other call from its answer."""

import asyncio
import threading
from typing import Any

from orrery.access.rules import World
from orrery.api.app import THREADS
from orrery.api.call import Call
from orrery.api.endpoint import REGISTRY, Registry, endpoint
from orrery.api.parameters import Params

WAITING = (
    ("GET", "/nodes/n1/qemu/100/status/current"),
    ("GET", "/nodes/n1/qemu/100/agent/get-osinfo"),
    ("POST", "/nodes/n1/qemu/100/agent"),
    ("POST", "/nodes/n1/qemu/100/agent/exec"),
    ("GET", "/nodes/n1/qemu/100/agent/file-read"),
    ("PUT", "/nodes/n1/qemu/100/config"),
    ("POST", "/nodes/n1/qemu/100/config"),
    ("PUT", "/nodes/n1/qemu/100/unlink"),
    ("GET", "/nodes/n1/query-url-metadata"),
    ("GET", "/nodes/n1/storage/local/content"),
    ("DELETE", "/nodes/n1/storage/local/content/iso/a.iso"),
)
QUICK = (("GET", "/version"), ("GET", "/cluster/resources"), ("GET", "/nodes/n1/qemu"), ("POST", "/access/ticket"))


def test_which_calls_wait(registry: Registry) -> None:
    assert registry is REGISTRY
    for expected, calls in ((True, WAITING), (False, QUICK)):
        for verb, path in calls:
            found = registry.find(verb, path)
            assert found is not None
            assert found.waits is expected, (verb, path)


def test_waiting_calls_leave_the_others_their_threads(make_wire: Any) -> None:
    registry, release = Registry(), threading.Event()

    def wait(call: Call, p: Params) -> None:
        release.wait(30)

    endpoint("GET", "/slow", registry=registry, params=Params, permission=World(), waits=True)(wait)
    endpoint("GET", "/quick", registry=registry, params=Params, permission=World())(lambda call, p: "here")
    wire = make_wire(registry)

    async def main() -> Any:
        waiting = [asyncio.create_task(wire.exchange("GET", "/slow")) for _ in range(2 * THREADS)]
        try:
            async with asyncio.timeout(10):
                return await wire.exchange("GET", "/quick")
        finally:
            release.set()
            await asyncio.gather(*waiting)

    assert asyncio.run(main()).data == "here"
