# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a container's inside shall look like, before any distribution's files are thought of."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Final, Literal, Protocol

from orrery.errors import Failure

_CARD_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,15}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Nic(Protocol):
    """What the set-up wants to know of a network card; the model's `ContainerNic` has it."""

    @property
    def name(self) -> str: ...
    @property
    def ip(self) -> str | None: ...
    @property
    def gw(self) -> str | None: ...
    @property
    def ip6(self) -> str | None: ...
    @property
    def gw6(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """The wishes. `hostname` may carry a domain. `nameserver` and `searchdomain` are lists with spaces, as configured.

    `timezone` is a name as `Europe/Rome`, or `host`. `ttys` terminals and a `console` get a login. `fresh` is true when
    the container has just been made: only then passwords, keys and identities are written, and services enabled.
    `password_hash` is as crypt(5) has it, `ssh_keys` lines for authorized_keys.
    """

    ostype: str
    hostname: str
    nics: tuple[Nic, ...] = ()
    nameserver: str | None = None
    searchdomain: str | None = None
    timezone: str | None = None
    ttys: int = 2
    console: bool = True
    unprivileged: bool = True
    fresh: bool = False
    password_hash: str | None = None
    ssh_keys: str | None = None

    def __post_init__(self) -> None:
        texts = (self.hostname, self.nameserver, self.searchdomain, self.timezone, self.password_hash)
        if any(text and _CONTROL.search(text) for text in texts) or ":" in (self.password_hash or ""):
            raise Failure("the container's names or its password's hash contain characters that no file can hold")

    @property
    def short_name(self) -> str:
        """The hostname without its domain."""
        return self.hostname.partition(".")[0]

    def cards(self) -> list["Card"]:
        """The network cards, understood. Raises Failure that names the card at fault."""
        return [card(nic) for nic in self.nics]

    @property
    def nameservers(self) -> list[str]:
        return (self.nameserver or "").replace(",", " ").split()

    @property
    def searchdomains(self) -> list[str]:
        return (self.searchdomain or "").replace(",", " ").split()


@dataclass(frozen=True, slots=True)
class Static:
    """A fixed address."""

    interface: IPv4Interface | IPv6Interface
    gateway: IPv4Address | IPv6Address | None = None

    @property
    def address(self) -> str:
        return str(self.interface.ip)

    @property
    def cidr(self) -> str:
        return self.interface.with_prefixlen

    @property
    def on_link(self) -> bool:
        """Whether the gateway lies outside the subnet, so that a route to it must be told first."""
        return (
            self.gateway is not None and self.gateway not in self.interface.network and not self.gateway.is_link_local
        )


type_ = Literal["dhcp", "auto"]
Way = Static | type_ | None
"""How a card gets addresses of one family; None: that is left to the inside."""


@dataclass(frozen=True, slots=True)
class Card:
    """A network card and how it gets its addresses."""

    name: str
    v4: Way
    v6: Way

    @property
    def managed(self) -> bool:
        """Whether anything is to be written for it."""
        return self.v4 is not None or self.v6 is not None

    @property
    def statics(self) -> list[Static]:
        return [way for way in (self.v4, self.v6) if isinstance(way, Static)]


def card(nic: Nic) -> Card:
    """What the configuration says about a card. Raises Failure."""
    if not _CARD_NAME.fullmatch(nic.name):
        raise Failure(f"'{nic.name}' is no name for a network card")
    return Card(nic.name, _way(nic, nic.ip, nic.gw, 4), _way(nic, nic.ip6, nic.gw6, 6))


def _way(nic: Nic, text: str | None, gateway: str | None, version: int) -> Way:
    if text in (None, "", "manual"):
        return None
    if text == "dhcp" or (text == "auto" and version == 6):
        return "dhcp" if text == "dhcp" else "auto"
    try:
        interface = ip_interface(text)
        way = Static(interface, ip_address(gateway) if gateway else None)
    except ValueError as error:
        raise Failure(f"network card '{nic.name}': {error}") from error
    if interface.version != version or (way.gateway is not None and way.gateway.version != version):
        raise Failure(f"network card '{nic.name}': '{text}' or its gateway is not IPv{version}")
    return way
