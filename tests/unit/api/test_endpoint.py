# SPDX-License-Identifier: AGPL-3.0-or-later
"""Declarations become a tree that leads paths to handlers, listings of itself, and a description."""

from typing import Annotated, Any

import pytest

from orrery.access.rules import AllOf, AnyOf, Everyone, Perm, RootOnly, World
from orrery.api.directory import declare_directories
from orrery.api.endpoint import Registry, endpoint, split
from orrery.api.manners import Enum, Int, Text
from orrery.api.openapi import describe
from orrery.api.parameters import GuestParams, Params, StorageParams, indexed


class Config(GuestParams):
    net: dict[int, Annotated[str, Text()]] = indexed(32, description="A network card.")
    kind: Annotated[str, Enum("a", "b")]
    cores: Annotated[int, Int(minimum=1, doc="How many.")] | None = None


class Content(StorageParams):
    volume: Annotated[str, Text()]


def registry() -> Registry:
    made = Registry()

    def declare(verb: str, path: str, **options: Any) -> None:
        endpoint(verb, path, registry=made, **{"permission": Everyone(), **options})(lambda call, p: (verb, path))

    declare("GET", "/version", permission=World())
    declare("GET", "/nodes")
    declare("GET", "/nodes/{node}/qemu/{vmid}/config", returns=dict[str, Any], proxy="node")
    declare("PUT", "/nodes/{node}/qemu/{vmid}/config", params=Config, permission=Perm("/vms/{vmid}", ("VM.Audit",)))
    declare("POST", "/nodes/{node}/qemu/{vmid}/status/start", task=True, tokens=False)
    declare("DELETE", "/nodes/{node}/storage/{storage}/content/{volume}", params=Content, permission=RootOnly())
    declare("GET", "/nodes/{node}/storage/{storage}/content", returns=list[dict[str, bool]])
    declare_directories(made)
    return made


def test_paths_lead_to_endpoints_with_their_parameters() -> None:
    match = registry().match(split("/nodes/n1/qemu/100/config"))
    assert match is not None
    found = match.method("PUT")
    assert found is not None
    assert found[0].params is Config
    assert found[1] == {"node": "n1", "vmid": "100"}
    assert match.method("DELETE") is None
    assert registry().match(split("/nodes/n1/qemu/100/nothing")) is None


def test_a_volume_takes_the_rest_of_the_path() -> None:
    match = registry().match(split("/nodes/n1/storage/local/content/local:iso/a.iso"))
    assert match is not None
    found = match.method("DELETE")
    assert found is not None
    assert found[1]["volume"] == "local:iso/a.iso"


def test_places_list_what_lies_below() -> None:
    made = registry()

    def listing(path: str) -> Any:
        found = made.find("GET", path)
        assert found is not None
        return found.handler(None, None)

    assert listing("/") == [{"subdir": "nodes"}, {"subdir": "version"}]
    assert listing("/nodes/n1") == [{"name": "qemu"}, {"name": "storage"}]
    assert listing("/nodes/n1/qemu/100") == [{"subdir": "config"}, {"subdir": "status"}]
    assert listing("/nodes/n1/qemu/100/status") == [{"subdir": "start"}]
    assert made.find("GET", "/nodes/n1/qemu") is None


@pytest.mark.parametrize(
    ("verb", "path", "options"),
    [
        ("PATCH", "/x", {}),
        ("GET", "x", {}),
        ("GET", "/x/{Bad}", {}),
        ("GET", "/version", {}),
        ("GET", "/x/{volume}/y", {}),
        ("GET", "/x/{node}", {"params": Params}),
        ("GET", "/x/{node}", {"proxy": "vmid"}),
    ],
)
def test_contradictions_are_refused_when_declared(verb: str, path: str, options: dict[str, Any]) -> None:
    made = registry()
    with pytest.raises(TypeError):
        endpoint(verb, path, permission=Everyone(), registry=made, **options)(lambda call, p: None)


def test_the_description() -> None:
    document = describe(registry())
    assert document["openapi"] == "3.1.0"
    config = document["paths"]["/nodes/{node}/qemu/{vmid}/config"]
    assert config["get"]["x-proxy"] == "node"
    assert [p["name"] for p in config["get"]["parameters"]] == ["node", "vmid"]
    reference = config["put"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert body["required"] == ["kind"]
    assert body["properties"]["kind"]["enum"] == ["a", "b"]
    assert body["properties"]["net[n]"] == {"type": "string", "x-indices": 32, "description": "A network card."}
    assert "vmid" not in body["properties"]
    assert config["put"]["x-permission"] == {"rule": "Perm", "path": "/vms/{vmid}", "privs": ["VM.Audit"]}
    assert document["paths"]["/version"]["get"]["security"] == []
    start = document["paths"]["/nodes/{node}/qemu/{vmid}/status/start"]["post"]
    assert start["x-task"] is True
    assert start["security"] == [{"ticket": [], "csrf": []}]
    rows = document["paths"]["/nodes/{node}/storage/{storage}/content"]["get"]["responses"]["200"]
    flags = rows["content"]["application/json"]["schema"]["properties"]["data"]["items"]["additionalProperties"]
    assert flags == {"type": "integer", "enum": [0, 1]}


def test_rules_within_rules_are_described() -> None:
    made = Registry()
    rule = AllOf((Perm("/", ("Sys.Audit",), any=True), AnyOf((RootOnly(),))))
    endpoint("GET", "/x", permission=rule, registry=made)(lambda call, p: None)
    assert describe(made)["paths"]["/x"]["get"]["x-permission"] == {
        "rule": "AllOf",
        "rules": [
            {"rule": "Perm", "path": "/", "privs": ["Sys.Audit"], "any": True},
            {"rule": "AnyOf", "rules": [{"rule": "RootOnly"}]},
        ],
    }
