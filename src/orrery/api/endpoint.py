# SPDX-License-Identifier: AGPL-3.0-or-later
"""Declares a method of the API once; everything that is known of it follows from the declaration.

    @endpoint("GET", "/nodes/{node}/qemu/{vmid}/config", params=ReadConfig, permission=Perm("/vms/{vmid}", "VM.Audit"),
              returns=dict[str, Any], proxy="node", description="Configuration of a virtual machine.")
    def read_config(call: Call, p: ReadConfig) -> dict[str, Any]: ...

Routing, validation, the permission check, forwarding, OpenAPI, directory listings, the command line's generic verbs and
the permission tests read the registry. Handlers are plain functions, run in a bounded pool of threads; an `async def`
handler runs in the event loop and is for bodies that stream.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orrery.access.rules import Rule
from orrery.api.parameters import Params, path_params

VERBS = ("GET", "POST", "PUT", "DELETE")

SWALLOW = "{volume}"
"""A path parameter of this name takes the rest of the path, slashes included."""

Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One method of the API."""

    verb: str
    path: str
    handler: Handler
    params: type[Params]
    permission: Rule
    returns: Any = None
    """A type (dataclass, TypedDict, model, `list[X]`, None) or a JSON schema as a dict."""
    task: bool = False
    """Whether it answers with the UPID of a task (or null when the task ended within `background_delay`)."""
    proxy: str | None = None
    """The path parameter that names the node which must answer."""
    tokens: bool = True
    """Whether API tokens may call it."""
    upload: bool = False
    """Whether it takes multipart bodies without limit; its handler reads the stream itself."""
    waits: bool = False
    """Whether it may wait long, for a machine, a task, a storage or a web server; such calls have their own threads."""
    description: str = ""

    @property
    def segments(self) -> tuple[str, ...]:
        return split(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """Path parameters in the order in which they occur."""
        return tuple(segment[1:-1] for segment in self.segments if segment.startswith("{"))

    @property
    def streams(self) -> bool:
        return inspect.iscoroutinefunction(self.handler)


@dataclass
class Branch:
    """One place of the routing tree."""

    literals: dict[str, "Branch"] = field(default_factory=dict)
    parameter: "Branch | None" = None
    swallows: bool = False
    methods: dict[str, Endpoint] = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """What a path leads to: the place in the tree and the values of its parameters, in order."""

    branch: Branch
    values: tuple[str, ...]

    def method(self, verb: str) -> tuple[Endpoint, dict[str, str]] | None:
        """The endpoint for a verb with its path parameters by name."""
        found = self.branch.methods.get(verb)
        return None if found is None else (found, dict(zip(found.names, self.values, strict=True)))


class Registry:
    """All declared endpoints as a tree of path segments; literal segments win over parameters."""

    def __init__(self) -> None:
        self.root = Branch()
        self._all: list[Endpoint] = []

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, endpoint: Endpoint) -> None:
        """Enters one endpoint; raises TypeError for declarations that contradict themselves or another one."""
        _check(endpoint)
        branch = self.place(endpoint.segments)
        if endpoint.verb in branch.methods:
            raise TypeError(f"{endpoint.verb} {endpoint.path} is declared twice")
        branch.methods[endpoint.verb] = endpoint
        self._all.append(endpoint)

    def place(self, segments: tuple[str, ...]) -> Branch:
        """The branch of a path as it is declared (with its parameters in braces), made if need be."""
        branch = self.root
        for segment in segments:
            if not segment.startswith("{"):
                branch = branch.literals.setdefault(segment, Branch())
                continue
            branch.parameter = branch.parameter or Branch()
            branch = branch.parameter
            branch.swallows = branch.swallows or segment == SWALLOW
        return branch

    def match(self, segments: tuple[str, ...]) -> Match | None:
        """The place that decoded path segments lead to, or None."""
        return _walk(self.root, segments, ())

    def find(self, verb: str, path: str) -> Endpoint | None:
        """The endpoint that answers a concrete path, for clients within the program."""
        match = self.match(split(path))
        return match.branch.methods.get(verb) if match else None


def _walk(branch: Branch, rest: tuple[str, ...], values: tuple[str, ...]) -> Match | None:
    if not rest:
        return Match(branch, values)
    literal = branch.literals.get(rest[0])
    if literal is not None and (found := _walk(literal, rest[1:], values)):
        return found
    if branch.parameter is None:
        return None
    if branch.parameter.swallows:
        return Match(branch.parameter, (*values, "/".join(rest)))
    return _walk(branch.parameter, rest[1:], (*values, rest[0]))


def split(path: str) -> tuple[str, ...]:
    """Segments of a path; empty ones are skipped."""
    return tuple(segment for segment in path.split("/") if segment)


_SEGMENT = re.compile(r"[A-Za-z0-9._-]+|\{[a-z][a-z0-9_-]*\}")


def _check(endpoint: Endpoint) -> None:
    where = f"{endpoint.verb} {endpoint.path}"
    if endpoint.verb not in VERBS:
        raise TypeError(f"{where}: unknown verb")
    if not endpoint.path.startswith("/") or not all(map(_SEGMENT.fullmatch, endpoint.segments)):
        raise TypeError(f"{where}: malformed path")
    if SWALLOW in endpoint.segments[:-1]:
        raise TypeError(f"{where}: {SWALLOW} takes the rest of the path, so it must be the last segment")
    declared = {name: parameter.required for name, parameter in endpoint.params.declared().items()}
    for name in endpoint.names:
        if not declared.get(name):
            raise TypeError(f"{where}: {endpoint.params.__name__} must have the required parameter {name!r}")
    if endpoint.proxy is not None and endpoint.proxy not in endpoint.names:
        raise TypeError(f"{where}: forwarded by {endpoint.proxy!r}, which is no path parameter")


REGISTRY = Registry()
"""Every endpoint of the program, once `orrery.api.routes.load_routes` has run."""


def endpoint(
    verb: str,
    path: str,
    *,
    permission: Rule,
    params: type[Params] | None = None,
    returns: Any = None,
    task: bool = False,
    proxy: str | None = None,
    tokens: bool = True,
    upload: bool = False,
    waits: bool = False,
    description: str = "",
    registry: Registry = REGISTRY,
) -> Callable[[H], H]:
    """Declares the decorated function as the handler of `verb path`.

    Without `params`, the path parameters are taken by their well-known names and nothing else is accepted. Without
    `description`, the first paragraph of the docstring serves.
    """

    def declare(handler: H) -> H:
        text = description or (inspect.getdoc(handler) or "").partition("\n\n")[0].replace("\n", " ")
        model = params or path_params(tuple(s[1:-1] for s in split(path) if s.startswith("{")))
        registry.add(
            Endpoint(verb, path, handler, model, permission, returns, task, proxy, tokens, upload, waits, text)
        )
        return handler

    return declare
