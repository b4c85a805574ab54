# SPDX-License-Identifier: AGPL-3.0-or-later
"""The set-up as a whole: which steps a container gets, and what happens when one meets something that it cannot do.

Before every start: name, hosts, resolver, cards, time zone, logins. These are conveniences: where a file is broken or
hostile, the step is told and left out, and the container starts. In a new container also: password, keys, identities,
services; these somebody relies on, so their failure is the creation's.
"""

from collections.abc import Callable
from typing import Final

from orrery.drivers.lxc.setup import accounts, families, identities, logins, naming, resolver, timezone, units
from orrery.drivers.lxc.setup.families import Family
from orrery.drivers.lxc.setup.plan import Setup
from orrery.drivers.lxc.tree import Tree
from orrery.errors import Failure, OrreryError

Note = Callable[[str], None]
UNMANAGED: Final = frozenset({"unmanaged", "nixos"})


def set_up(tree: Tree, setup: Setup, log: Note) -> None:
    """Write a container's inside. `log` takes what could not be done, as warnings. Running twice changes nothing.

    Raises Failure when a password, keys or identities of a new container cannot be written.
    """
    if setup.ostype in UNMANAGED:
        if setup.fresh and (setup.password_hash or setup.ssh_keys):
            log(f"password and keys are not set: containers of type '{setup.ostype}' are left as they are")
        return
    family = families.FAMILIES.get(setup.ostype)
    if family is None:
        raise Failure(f"'{setup.ostype}' is no known type of container")
    if setup.fresh:
        _first_time(tree, setup)
    _always(tree, setup, family, log)


def _always(tree: Tree, setup: Setup, family: Family, log: Note) -> None:
    steps: list[tuple[str, Callable[[], None]]] = [
        ("the hostname", lambda: naming.hostname(tree, setup)),
        ("/etc/hosts", lambda: naming.hosts(tree, setup)),
        ("the resolver", lambda: resolver.resolver(tree, setup)),
        ("the network", lambda: _network(tree, setup, family, log)),
        ("logins on console and terminals", lambda: logins.logins(tree, setup)),
    ]
    names, zone = family.names, setup.timezone
    if names is not None:
        steps.append(("the hostname", lambda: names(tree, setup)))
    if zone is not None:
        steps.append(("the time zone", lambda: timezone.timezone(tree, zone)))
    if setup.fresh and setup.unprivileged and logins.has_systemd(tree):
        steps.append(("units that cannot work", lambda: units.mask_hopeless(tree)))
    for what, act in steps:
        try:
            act()
        except OrreryError as error:
            log(f"{what} could not be set up: {error.message}")


def _network(tree: Tree, setup: Setup, family: Family, log: Note) -> None:
    cards = [card for card in setup.cards() if card.managed]
    reader = family.reader(tree)
    if reader is None:
        if cards:
            log(f"nothing in the container is known to set up its network: {', '.join(card.name for card in cards)}")
        return
    reader.write(tree, setup)
    if setup.fresh and cards:
        families.enable(tree, reader)


def _first_time(tree: Tree, setup: Setup) -> None:
    if setup.password_hash:
        accounts.password(tree, setup.password_hash)
    if setup.ssh_keys:
        accounts.authorized_keys(tree, setup.ssh_keys)
    identities.machine_id(tree)
    identities.ssh_host_keys(tree, setup.short_name)
