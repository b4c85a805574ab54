# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every declared method, walked: without credentials, without rights, and with tokens where those are barred."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.api.conftest import NODE, make_api, make_services
from tests.unit.api.wire import Answer, Wire

from orrery.access.rules import Everyone, World
from orrery.api.endpoint import REGISTRY, Endpoint
from orrery.api.manners import Int
from orrery.api.openapi import describe
from orrery.api.routes import load_routes
from orrery.api.services import Services

if not REGISTRY.find("GET", "/"):
    load_routes()

ALL = sorted(REGISTRY, key=lambda e: (e.path, e.verb))
CLOSED = [e for e in ALL if not isinstance(e.permission, World)]
GUARDED = [e for e in CLOSED if not isinstance(e.permission, Everyone)]
OPEN = Path(__file__).parents[2] / "golden" / "api" / "open.txt"
SAMPLES = {
    "node": NODE,
    "vmid": "100",
    "storage": "local",
    "volume": "local:iso/x.iso",
    "userid": "admin@pve",
    "upid": f"UPID:{NODE}:00000001:00000001:6123ABCD:qmstart:100:admin@pve:",
    "realm": "pve",
    "poolid": "p",
    "path": "/vms/100",
    "username": "admin@pve",
}


def name(endpoint: Endpoint) -> str:
    return f"{endpoint.verb} {endpoint.path}"


def call(wire: Wire, endpoint: Endpoint) -> Answer:
    """Calls a method with a plausible value for each parameter that its path or rule names."""
    path = re.sub(r"\{([^}]+)\}", lambda found: SAMPLES.get(found[1], "sample"), endpoint.path)
    beside = {"userid", "path", "poolid"} & {p.alias for p in endpoint.params.declared().values()} - set(endpoint.names)
    params: dict[str, Any] = {parameter: SAMPLES[parameter] for parameter in beside}
    answer: Answer = getattr(wire, endpoint.verb.lower())(path, **params)
    return answer


def test_numbers_in_paths_have_one_spelling() -> None:
    """Rights are judged on paths as they were sent, before parameters are read."""
    for endpoint in ALL:
        for name_ in endpoint.names:
            manner = endpoint.params.declared()[name_].manner
            assert not isinstance(manner, Int) or manner.format is not None, (name(endpoint), name_)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Services:
    return make_services(tmp_path_factory.mktemp("node"), keys)


@pytest.fixture(scope="module")
def stranger(services: Services) -> Iterator[Wire]:
    api = make_api(REGISTRY, services)
    yield Wire(api)
    api.close()


@pytest.fixture(scope="module")
def nobody(services: Services, stranger: Wire) -> Wire:
    """A user without any rights."""
    services.directory.users.create("nobody@pve", {}, password="password")
    return stranger.with_ticket("nobody@pve", "password")


@pytest.fixture(scope="module")
def robot(services: Services, stranger: Wire) -> Wire:
    """An API token of root@pam with all of root's privileges."""
    made = services.directory.tokens.create("root@pam", "robot", privsep=False)
    return stranger.with_token(made["full-tokenid"], made["value"])


@pytest.mark.parametrize("endpoint", CLOSED, ids=name)
def test_strangers_are_refused(endpoint: Endpoint, stranger: Wire) -> None:
    answer = call(stranger, endpoint)
    assert (answer.status, answer.reason, answer.body) == (401, "No ticket", b"")


@pytest.mark.parametrize("endpoint", GUARDED, ids=name)
def test_who_has_no_rights_is_refused(endpoint: Endpoint, nobody: Wire) -> None:
    answer = call(nobody, endpoint)
    assert answer.status == 403
    assert answer.reason.startswith("Permission check failed")


@pytest.mark.parametrize("endpoint", [e for e in CLOSED if not e.tokens], ids=name)
def test_tokens_are_refused_where_barred(endpoint: Endpoint, robot: Wire) -> None:
    answer = call(robot, endpoint)
    assert answer.status == 403
    assert "not available with API token" in answer.reason


def test_opening_a_method_to_all_is_a_decision() -> None:
    """Methods that ask for no privilege check within. Whoever adds one here has made sure that it does."""
    found = {
        f"{type(e.permission).__name__.lower()} {name(e)}" for e in ALL if isinstance(e.permission, World | Everyone)
    }
    assert found == set(OPEN.read_text().splitlines())


def test_the_description_tells_of_every_method() -> None:
    document = describe(REGISTRY)
    told = {f"{verb.upper()} {path}" for path, item in document["paths"].items() for verb in item}
    assert told == {name(endpoint) for endpoint in ALL}
    identifiers = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(identifiers) == len(set(identifiers))
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"], operation["operationId"]
