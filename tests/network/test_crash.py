# SPDX-License-Identifier: AGPL-3.0-or-later
"""`prepare` and `remove` killed at every act: the next call of either completes or undoes what was begun."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from tests.network.namespaces import Namespace
from tests.network.test_bridge import snapshot

from orrery.drivers.network import dhcp, firewall, network, record
from orrery.drivers.network.dhcp import DhcpService
from orrery.drivers.network.network import Network
from orrery.system import files, netlink, process, sysctl
from orrery.system.paths import Paths

ACTS: tuple[tuple[Any, str], ...] = (
    (netlink, "create_bridge"),
    (netlink, "delete_link"),
    (netlink, "change_link"),
    (netlink, "add_address"),
    (sysctl, "write"),
    (firewall, "apply"),
    (files, "write_json"),
    (files, "write_atomic"),
    (process, "spawn"),
    (process, "terminate"),
    (network, "sync_dir"),
)
MOST_ACTS = 30


def dying_after(count: int, verb: Callable[[], object]) -> str:
    """Run `verb` in a forked child that kills itself after so many acts. Gives `killed` or `done`."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), status
        return "killed" if status else "done"
    left = count

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            result = real(*arguments, **options)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return act

    for module, name in ACTS:
        setattr(module, name, counting(getattr(module, name)))
    try:
        verb()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp, "_START_SECONDS", 0.1)


def test_prepare_killed_at_every_act(network: Network, host: Namespace, paths: Paths) -> None:
    before = snapshot(host)
    count = 0
    while True:
        count += 1
        assert count < MOST_ACTS
        end = host.call(dying_after, count, network.prepare)
        if count % 2 or end == "done":
            status = host.call(network.prepare)
            assert (status.state, status.dhcp, status.notes) == ("own", True, ())
            assert len(host.call(DhcpService(paths).processes)) == 1
        assert host.call(network.remove) == [], f"after act {count}"
        assert snapshot(host) == before, f"after act {count}"
        assert host.call(DhcpService(paths).processes) == []
        if end == "done":
            break
    assert count > 8


def test_remove_killed_at_every_act(network: Network, host: Namespace, paths: Paths) -> None:
    before = snapshot(host)
    count = 0
    while True:
        count += 1
        assert count < MOST_ACTS
        host.call(network.prepare)
        end = host.call(dying_after, count, network.remove)
        if count % 2 == 0:
            assert host.call(network.prepare).dhcp
        assert host.call(network.remove) == []
        assert snapshot(host) == before, f"after act {count}"
        assert host.call(DhcpService(paths).processes) == []
        assert record.load(paths.network_json) is None
        if end == "done":
            break
    assert count > 4
