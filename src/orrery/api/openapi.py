# SPDX-License-Identifier: AGPL-3.0-or-later
"""The API's description as an OpenAPI 3.1 document, made from the registry.

Paths stand without the `/api2/json` before them (it is the server's URL). An indexed parameter is one entry under its
family's name, `net[n]`, with `x-indices` saying how many there are; property strings are strings.
"""

import re
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter

import orrery
from orrery.access.rules import Rule, World
from orrery.api.endpoint import Endpoint, Registry
from orrery.api.parameters import Declared

REF = "#/components/schemas/{model}"
FORM = "application/x-www-form-urlencoded"
UPLOAD = "multipart/form-data"
SECURITY: list[dict[str, list[str]]] = [{"ticket": [], "csrf": []}, {"token": []}]


def describe(registry: Registry) -> dict[str, Any]:
    """The document; plain data, ready for JSON."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for endpoint in sorted(registry, key=lambda e: (e.path, e.verb)):
        paths.setdefault(endpoint.path, {})[endpoint.verb.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Orrery",
            "version": orrery.__version__,
            "license": {"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
        },
        "servers": [{"url": "/api2/json"}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _security_schemes()},
    }


def _security_schemes() -> dict[str, Any]:
    return {
        "ticket": {"type": "apiKey", "in": "cookie", "name": "PVEAuthCookie"},
        "csrf": {"type": "apiKey", "in": "header", "name": "CSRFPreventionToken"},
        "token": {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "PVEAPIToken=USER@REALM!TOKENID=SECRET",
        },
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    declared = endpoint.params.declared()
    in_path = [_parameter(name, declared[name], "path") for name in endpoint.names]
    others = {name: parameter for name, parameter in declared.items() if name not in endpoint.names}
    operation: dict[str, Any] = {
        "operationId": _name(endpoint),
        "summary": endpoint.description,
        "tags": [endpoint.segments[0] if endpoint.segments else "root"],
        "parameters": in_path,
        "responses": _responses(endpoint, schemas),
        "security": [] if isinstance(endpoint.permission, World) else SECURITY if endpoint.tokens else SECURITY[:1],
        "x-permission": _rule(endpoint.permission),
    }
    if endpoint.task:
        operation["x-task"] = True
    if endpoint.proxy is not None:
        operation["x-proxy"] = endpoint.proxy
    if endpoint.verb in ("GET", "DELETE"):
        operation["parameters"] = in_path + [_parameter(name, p, "query") for name, p in others.items()]
    elif others:
        schemas[_name(endpoint)] = _body(others)
        reference = {"schema": {"$ref": REF.format(model=_name(endpoint))}}
        kinds = (UPLOAD,) if endpoint.upload else (FORM, "application/json")
        operation["requestBody"] = {
            "required": any(parameter.required for parameter in others.values()),
            "content": dict.fromkeys(kinds, reference),
        }
    return operation


def _parameter(name: str, parameter: Declared, place: str) -> dict[str, Any]:
    schema = parameter.schema()
    described = {"name": name, "in": place, "required": parameter.required, "schema": schema}
    if parameter.indices is not None:
        described["x-indices"] = parameter.indices
    if text := schema.pop("description", ""):
        described["description"] = text
    return described


def _body(parameters: dict[str, Declared]) -> dict[str, Any]:
    properties = {
        name: p.schema() | ({"x-indices": p.indices} if p.indices is not None else {}) for name, p in parameters.items()
    }
    required = [name for name, parameter in parameters.items() if parameter.required]
    described = {"type": "object", "properties": properties, "additionalProperties": False}
    return described | ({"required": required} if required else {})


def _responses(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    data = _returned(endpoint.returns, schemas)
    if endpoint.task and endpoint.returns is None:
        data = {"type": ["string", "null"], "description": "UPID of the task."}
    envelope = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {
        "200": {"description": "Done.", "content": {"application/json": {"schema": envelope}}},
        "default": {"description": "Not done; the reason phrase and `message` say why."},
    }


def _returned(returns: Any, schemas: dict[str, Any]) -> Any:
    if returns is None:
        return {"type": "null"}
    if isinstance(returns, dict):
        return _as_sent(returns)
    schema = TypeAdapter(returns).json_schema(ref_template=REF, mode="serialization")
    schemas.update({name: _as_sent(part) for name, part in schema.pop("$defs", {}).items()})
    return _as_sent(schema)


def _as_sent(schema: Any) -> Any:
    """Booleans of replies are the numbers 1 and 0 on the wire."""
    if isinstance(schema, list):
        return [_as_sent(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "boolean":
        kept = {key: value for key, value in schema.items() if key in ("title", "description")}
        return kept | {"type": "integer", "enum": [0, 1]}
    return {key: _as_sent(value) for key, value in schema.items()}


def _name(endpoint: Endpoint) -> str:
    words = re.findall(r"[A-Za-z0-9]+", endpoint.path)
    return endpoint.verb.lower() + "".join(word[0].upper() + word[1:] for word in words)


def _rule(rule: Rule) -> dict[str, Any]:
    described: dict[str, Any] = {"rule": type(rule).__name__}
    for part in fields(rule):
        value = getattr(rule, part.name)
        if isinstance(value, tuple):
            described[part.name] = [_rule(item) if isinstance(item, Rule) else item for item in value]
        elif value not in (None, False):
            described[part.name] = value
    return described
