# SPDX-License-Identifier: AGPL-3.0-or-later
"""A node's access state in memory, with hashes that cost nothing and a clock that tests set."""

import shutil
from types import SimpleNamespace

import pytest
from argon2 import PasswordHasher

from orrery.access.attempts import Attempts
from orrery.access.bootstrap import initialize
from orrery.access.directory import open_directory
from orrery.access.login import Login
from orrery.access.permissions import Permissions
from orrery.access.realms.base import Realm
from orrery.access.realms.local import LocalRealm
from orrery.access.tickets import Tickets
from orrery.model.identity import Identity
from orrery.store.memory import MemoryStore
from orrery.store.mirror import Mirror

ADMIN_PASSWORD = "correct horse"


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


class FakePam:
    """Knows one account of the host."""

    def __init__(self):
        self.passwords = {"root": "toor", "carl": "carls password"}
        self.asked = []

    def authenticate(self, user, password):
        self.asked.append(user.name)
        return self.passwords.get(user.name) == password

    def set_password(self, user, password):
        self.passwords[user.name] = password


@pytest.fixture(scope="session")
def key_folder(tmp_path_factory):
    """RSA keys take a while to make; one pair serves all tests."""
    folder = tmp_path_factory.mktemp("keys")
    Tickets(folder, clock=Clock())
    return folder


@pytest.fixture
def node(key_folder, tmp_path):
    """The services of one node: store, directory, login, permissions, clock …"""
    shutil.copytree(key_folder, tmp_path / "keys")
    clock, monotonic = Clock(), Clock()
    store = Mirror(MemoryStore())
    local = LocalRealm(store, hasher=PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    pam = FakePam()
    realms: dict[str, Realm] = {"pve": local, "pam": pam}
    initialize(store, ADMIN_PASSWORD, realm=local)
    permissions = Permissions(store, clock=clock)
    tickets = Tickets(tmp_path / "keys", clock=clock)
    attempts = Attempts(clock=monotonic)
    login = Login(store, realms, tickets, permissions, attempts=attempts, clock=clock)
    return SimpleNamespace(
        store=store,
        local=local,
        pam=pam,
        permissions=permissions,
        tickets=tickets,
        attempts=attempts,
        login=login,
        directory=open_directory(store, permissions, realms, login),
        clock=clock,
        monotonic=monotonic,
        root=Identity.parse("root@pam"),
        admin=Identity.parse("admin@pve"),
    )


@pytest.fixture
def anna(node):
    """A user without any privilege."""
    node.directory.users.create("anna@pve", {}, password="annas password")
    return Identity.parse("anna@pve")
