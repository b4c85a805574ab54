# SPDX-License-Identifier: AGPL-3.0-or-later
"""The API over a node whose state is in memory; what handlers of guests and tasks reach is not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from tests.unit.api.wire import Wire

from orrery.access.audit import AuditLog
from orrery.access.bootstrap import initialize
from orrery.access.directory import open_directory
from orrery.access.login import Login
from orrery.access.permissions import Permissions
from orrery.access.realms.local import LocalRealm
from orrery.access.tickets import Tickets
from orrery.api.app import Api
from orrery.api.endpoint import REGISTRY, Registry
from orrery.api.routes import load_routes
from orrery.api.services import Services
from orrery.store.memory import MemoryStore
from orrery.store.mirror import Mirror
from orrery.system.paths import Paths

NODE = "n1"
ADMIN_PASSWORD = "correct horse"


class Missing:
    """Stands for a part of the node that these tests must not reach."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise AssertionError(f"a handler reached {self._name}.{attribute}")


class NoPam:
    def authenticate(self, user: Any, password: str) -> bool:
        return False

    def set_password(self, user: Any, password: str) -> None: ...


@pytest.fixture(scope="session")
def registry() -> Registry:
    if not REGISTRY.find("GET", "/access"):
        load_routes()
    return REGISTRY


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RSA keys take a while to make; one pair serves all tests."""
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def services(tmp_path: Path, keys: Path) -> Services:
    return make_services(tmp_path, keys)


def make_services(root: Path, keys: Path) -> Services:
    """A node that was just initialized."""
    paths = Paths.of(root)
    mirror = Mirror(MemoryStore())
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    local = LocalRealm(mirror, hasher=hasher)
    initialize(mirror, ADMIN_PASSWORD, realm=local)
    realms: Any = {"pve": local, "pam": NoPam()}
    permissions = Permissions(mirror)
    login = Login(mirror, realms, Tickets(keys), permissions)
    parts: dict[str, Any] = {name: Missing(name) for name in ("runner", "journal", "context", "collector")}
    return Services(
        node=NODE,
        paths=paths,
        store=mirror,
        permissions=permissions,
        login=login,
        directory=open_directory(mirror, permissions, realms, login),
        audit=AuditLog(paths.audit_log),
        **parts,
    )


@pytest.fixture
def make_wire(services: Services) -> Iterator[Any]:
    """Makes clients of an API over a registry; refusals are not delayed unless said."""
    made = []

    def make(registry: Registry, refusal_seconds: float = 0.0) -> Wire:
        made.append(make_api(registry, services, refusal_seconds))
        return Wire(made[-1])

    yield make
    for api in made:
        api.close()


def make_api(registry: Registry, services: Services, refusal_seconds: float = 0.0) -> Api:
    """An API whose clients come from one address, or are root on the host."""

    def origin(scope: Any, headers: dict[str, str]) -> str:
        return "local" if scope.get("root") else headers.get("x-real-ip", "192.0.2.1")

    return Api(registry, services, origin, refusal_seconds=refusal_seconds)


@pytest.fixture
def stranger(registry: Registry, make_wire: Any) -> Wire:
    """A client without credentials."""
    made: Wire = make_wire(registry)
    return made


@pytest.fixture
def admin(stranger: Wire) -> Wire:
    return stranger.with_ticket("admin@pve", ADMIN_PASSWORD)
