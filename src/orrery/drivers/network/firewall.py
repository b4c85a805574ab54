# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our own nftables tables, and the foreign ones that would stop our guests' packets.

A rule set is handed to `nft -j -f -` whole, so that it is in force at once or not at all (libnftables-json(5)). An
accept of ours does not overrule a drop in somebody else's table; where that table has a chain meant for its users, as
Docker's has, our rules go there too.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Final

from orrery.errors import Failure
from orrery.system import process

_TIMEOUT: Final = 20.0
_USER_CHAIN: Final = "DOCKER-USER"
_SMALLEST_BURST: Final = 1 << 18  # four of the largest packets that a guest hands over at once

Commands = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ForeignDrop:
    """A chain of somebody else's that drops what it does not know. `has_user_chain`: we may add rules to it."""

    family: str
    table: str
    chain: str
    hook: str
    has_user_chain: bool

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


def table_name(root_hash: str) -> str:
    """Name of our tables; also the comment on rules of ours in foreign chains."""
    return f"orrery_{root_hash}"


# --- our tables


def nat_rules(table: str, bridge: str, subnet: IPv4Network) -> Commands:
    """Guests of `subnet` reach the world under the host's address, and are forwarded both ways."""
    source = {"payload": {"protocol": "ip", "field": "saddr"}}
    target = {"payload": {"protocol": "ip", "field": "daddr"}}
    prefix = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}
    return [
        # Added first, so that there is one to delete: the table is replaced whole.
        {"add": {"table": {"family": "ip", "name": table}}},
        {"delete": {"table": {"family": "ip", "name": table}}},
        {"add": {"table": {"family": "ip", "name": table}}},
        _chain(table, "forward", type="filter", hook="forward", prio=0, policy="accept"),
        _rule(table, "forward", _match(_meta("iifname"), bridge), {"accept": None}),
        _rule(table, "forward", _match(_meta("oifname"), bridge), {"accept": None}),
        _chain(table, "postrouting", type="nat", hook="postrouting", prio=100, policy="accept"),
        _rule(
            table,
            "postrouting",
            _match(source, prefix),
            _match(target, prefix, "!="),
            _match(_meta("oifname"), bridge, "!="),
            {"masquerade": None},
        ),
    ]


def input_limit(table: str, tap: str, rate: int | None) -> Commands:
    """Let at most `rate` bytes per second in from a guest's tap; None takes the limit away."""
    chain = {"family": "netdev", "table": table, "name": tap}
    commands: Commands = [
        {"add": {"table": {"family": "netdev", "name": table}}},
        # As above: added, so that it can be deleted.
        {"add": {"chain": chain}},
        {"delete": {"chain": chain}},
    ]
    if rate is not None:
        hook = {"type": "filter", "hook": "ingress", "dev": tap, "prio": 0, "policy": "accept"}
        burst = max(_SMALLEST_BURST, rate // 5)
        limit = {
            "rate": rate,
            "rate_unit": "bytes",
            "per": "second",
            "burst": burst,
            "burst_unit": "bytes",
            "inv": True,
        }
        rule = {"family": "netdev", "table": table, "chain": tap, "expr": [{"limit": limit}, {"drop": None}]}
        commands += [{"add": {"chain": {**chain, **hook}}}, {"add": {"rule": rule}}]
    return commands


def apply(commands: Commands) -> None:
    """Put a rule set into force, all or nothing. Raises Failure."""
    text = json.dumps({"nftables": commands}).encode()
    process.run(["nft", "-j", "-f", "-"], name="nft", input=text, timeout=_TIMEOUT)


def remove_table(family: str, table: str) -> None:
    """Remove a table of ours (idempotent). Raises Failure."""
    named = {"family": family, "name": table}
    apply([{"add": {"table": named}}, {"delete": {"table": named}}])


def limited_taps(table: str) -> set[str]:
    """Taps with a limit on what comes in from the guest."""
    return {chain["name"] for chain in _chains("netdev") if chain["table"] == table and chain["family"] == "netdev"}


def _chain(table: str, name: str, **attributes: Any) -> dict[str, Any]:
    return {"add": {"chain": {"family": "ip", "table": table, "name": name, **attributes}}}


def _rule(table: str, chain: str, *expressions: dict[str, Any]) -> dict[str, Any]:
    return {"add": {"rule": {"family": "ip", "table": table, "chain": chain, "expr": list(expressions)}}}


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _match(left: dict[str, Any], right: Any, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


# --- others' tables


def _chains(family: str = "") -> list[dict[str, Any]]:
    argv = ["nft", "-j", "list", "chains", *filter(None, [family])]
    done = process.run(argv, name="nft", timeout=_TIMEOUT)
    items = json.loads(done.stdout or b"{}").get("nftables", [])
    return [item["chain"] for item in items if "chain" in item]


def foreign_drops(table: str) -> list[ForeignDrop]:
    """Chains of others that drop forwarded packets, or those to this host, unless a rule lets them pass."""
    chains = _chains()
    user_chains = {(chain["family"], chain["table"]) for chain in chains if chain["name"] == _USER_CHAIN}
    return [
        ForeignDrop(
            chain["family"],
            chain["table"],
            chain["name"],
            chain["hook"],
            chain["hook"] == "forward" and (chain["family"], chain["table"]) in user_chains,
        )
        for chain in chains
        if chain["table"] != table and chain.get("policy") == "drop" and chain.get("hook") in ("forward", "input")
    ]


def others_forward(table: str) -> bool:
    """Whether somebody else filters or translates forwarded packets, and so may rely on the kernel forwarding them."""
    return any(
        chain["table"] != table and chain.get("hook") in ("forward", "postrouting")
        for chain in _chains()
        if chain["family"] in ("ip", "inet")
    )


def user_rules(table: str, bridge: str) -> list[list[str]]:
    """Our rules in a foreign chain for users: guests may out, answers may in.

    Written by iptables and not by nft, since iptables (and so Docker) refuses a table with rules that it cannot show.
    """
    mark = ["-m", "comment", "--comment", table, "-j", "ACCEPT"]
    return [
        ["-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", *mark],
        ["-i", bridge, *mark],
    ]


def open_user_chain(table: str, bridge: str) -> None:
    """Put our rules at the head of the chain for users (idempotent). Raises Failure."""
    for rule in user_rules(table, bridge):
        if not _iptables("-C", rule, check=False):
            _iptables("-I", rule)


def close_user_chain(table: str, bridge: str) -> None:
    """Take our rules out of the chain for users (idempotent). Raises Failure."""
    if _iptables_program() is None:
        return
    for rule in user_rules(table, bridge):
        while _iptables("-C", rule, check=False):
            _iptables("-D", rule)


def user_chain_is_open(table: str, bridge: str) -> bool:
    """Whether our rules are in the chain for users."""
    return all(_iptables("-C", rule, check=False) for rule in user_rules(table, bridge))


def _iptables(action: str, rule: Sequence[str], *, check: bool = True) -> bool:
    program = _iptables_program()
    if program is None:
        if not check:
            return False
        raise Failure("the program 'iptables' is missing, but its rules drop forwarded packets; install it")
    done = process.run([program, "-w", "5", action, _USER_CHAIN, *rule], name="iptables", timeout=_TIMEOUT, check=check)
    return done.returncode == 0


def _iptables_program() -> str | None:
    return next(
        filter(None, (shutil.which(name, path=process.SEARCH_PATH) for name in ("iptables-nft", "iptables"))), None
    )
