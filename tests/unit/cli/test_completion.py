# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Tab offers: what the node lists, and nothing at all when it cannot be asked."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from orrery.cli import client, completion
from orrery.cli.main import application
from orrery.errors import Failure


@pytest.fixture
def context() -> typer.Context:
    found = typer.Context(get_command(application([])))
    found.params["root"] = Path("/nonexistent")
    return found


def answer_with(monkeypatch: pytest.MonkeyPatch, rows: Any) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    class Node:
        def __init__(self, target: client.Target) -> None:
            asked.append((str(target.socket),))

        def call(self, *what: Any) -> Any:
            asked.append(what)
            if isinstance(rows, Exception):
                raise rows
            return rows

    monkeypatch.setattr(client, "Client", Node)
    return asked


def test_offers_what_begins_with_what_was_typed(monkeypatch: pytest.MonkeyPatch, context: typer.Context) -> None:
    rows = [{"vmid": 100, "name": "web"}, {"vmid": 110}, {"vmid": 200, "name": "db"}]
    asked = answer_with(monkeypatch, rows)
    assert completion.vmids(context, "1") == [("100", "web"), ("110", "")]
    assert asked == [("/nonexistent/run/local.sock",), ("GET", "/cluster/resources", {"type": "vm"})]


@pytest.mark.parametrize("fault", [Failure("no"), OSError("no"), None, {"not": "a list"}])
def test_offers_nothing_when_the_node_cannot_say(
    monkeypatch: pytest.MonkeyPatch, context: typer.Context, fault: Any
) -> None:
    answer_with(monkeypatch, fault)
    assert completion.storages(context, "") == []


def test_no_node_is_no_error(context: typer.Context) -> None:
    assert completion.users(context, "") == []


def test_fixed_words(context: typer.Context) -> None:
    assert completion.words("raw", "qcow2")(context, "q") == [("qcow2", "")]
