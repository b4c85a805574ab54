# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is handed to nft and iptables, and what is read from others' tables. The real programs: tests/network."""

import json
from ipaddress import IPv4Network

import pytest

from orrery.drivers.network import firewall
from orrery.drivers.network.firewall import ForeignDrop
from orrery.errors import Failure
from orrery.system import process
from orrery.system.process import Call, Completed

TABLE = "orrery_0a1b2c"


def chains(*found: dict[str, object]) -> bytes:
    return json.dumps({"nftables": [{"metainfo": {"version": "1"}}, *({"chain": chain} for chain in found)]}).encode()


def base(family: str, table: str, name: str, hook: str, policy: str) -> dict[str, object]:
    return {"family": family, "table": table, "name": name, "type": "filter", "hook": hook, "prio": 0, "policy": policy}


def test_rules_go_to_nft_whole_and_not_as_arguments() -> None:
    with process.recording() as record:
        firewall.apply(firewall.nat_rules(TABLE, "vmbr0", IPv4Network("10.64.16.0/20")))
    (call,) = record.calls
    assert call.argv == ("nft", "-j", "-f", "-")
    commands = json.loads(call.input or b"")["nftables"]
    assert [next(iter(command)) for command in commands[:3]] == ["add", "delete", "add"]
    rules = [command["add"]["rule"] for command in commands if "rule" in command.get("add", {})]
    assert [rule["chain"] for rule in rules] == ["forward", "forward", "postrouting"]
    assert rules[2]["expr"][-1] == {"masquerade": None}
    assert rules[2]["expr"][0]["match"]["right"] == {"prefix": {"addr": "10.64.16.0", "len": 20}}
    assert {rule["table"] for rule in rules} == {TABLE}


def test_limit_of_a_tap_is_set_and_taken_away() -> None:
    setting = firewall.input_limit(TABLE, "tap1", 1_000_000)
    rule = setting[-1]["add"]["rule"]
    assert rule["expr"][0]["limit"]["rate"] == 1_000_000
    assert rule["expr"][0]["limit"]["inv"] is True
    assert setting[-2]["add"]["chain"]["dev"] == "tap1"
    assert [next(iter(command)) for command in firewall.input_limit(TABLE, "tap1", None)] == ["add", "add", "delete"]


def test_foreign_drops_are_told_from_ours_and_from_harmless_chains() -> None:
    listed = chains(
        base("ip", "filter", "FORWARD", "forward", "drop"),
        base("ip", "filter", "INPUT", "input", "accept"),
        base("inet", "mine", "in", "input", "drop"),
        base("ip", TABLE, "forward", "forward", "drop"),
        base("inet", "other", "fwd", "forward", "drop"),
        {"family": "ip", "table": "filter", "name": "DOCKER-USER"},
    )
    with process.recording(lambda call: Completed(call.argv, 0, listed)):
        assert firewall.foreign_drops(TABLE) == [
            ForeignDrop("ip", "filter", "FORWARD", "forward", True),
            ForeignDrop("inet", "mine", "in", "input", False),
            ForeignDrop("inet", "other", "fwd", "forward", False),
        ]
        assert firewall.others_forward(TABLE)
    only_ours = chains(base("ip", TABLE, "forward", "forward", "accept"), base("ip", "x", "in", "input", "drop"))
    with process.recording(lambda call: Completed(call.argv, 0, only_ours)):
        assert not firewall.others_forward(TABLE)


def test_rules_in_a_user_chain_are_put_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "_iptables_program", lambda: "iptables-nft")
    there: list[tuple[str, ...]] = []

    def iptables(call: Call) -> Completed:
        action, chain, *rule = call.argv[3:]
        assert chain == "DOCKER-USER"
        if action == "-I":
            there.append(tuple(rule))
        elif action == "-D":
            there.remove(tuple(rule))
        return Completed(call.argv, 0 if action != "-C" or tuple(rule) in there else 1)

    with process.recording(iptables):
        assert not firewall.user_chain_is_open(TABLE, "vmbr0")
        firewall.open_user_chain(TABLE, "vmbr0")
        firewall.open_user_chain(TABLE, "vmbr0")
        assert firewall.user_chain_is_open(TABLE, "vmbr0")
        assert len(there) == 2
        assert all(TABLE in rule for rule in there)
        firewall.close_user_chain(TABLE, "vmbr0")
        firewall.close_user_chain(TABLE, "vmbr0")
        assert there == []


def test_without_iptables_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "_iptables_program", lambda: None)
    with pytest.raises(Failure, match="'iptables' is missing"):
        firewall.open_user_chain(TABLE, "vmbr0")
    firewall.close_user_chain(TABLE, "vmbr0")
    assert not firewall.user_chain_is_open(TABLE, "vmbr0")
