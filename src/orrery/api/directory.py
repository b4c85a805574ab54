# SPDX-License-Identifier: AGPL-3.0-or-later
"""Listings of the tree: what lies below a place that has no GET of its own.

They are made from the registry, so they name exactly what this version serves. Which key an entry has, and who may see,
differ by place as clients of this API expect.
"""

from typing import Any, cast

from pydantic import create_model

from orrery.access.rules import Everyone, Perm, RootOnly, Rule
from orrery.api.call import Call
from orrery.api.endpoint import Branch, Endpoint, Registry, split
from orrery.api.parameters import PATH_PARAMETERS, Params, String

DEFAULT_KEY = "name"
KEYS = {
    "/": "subdir",
    "/access": "subdir",
    "/access/openid": "subdir",
    "/cluster/backup-info": "subdir",
    "/cluster/ha": "id",
    "/cluster/jobs": "subdir",
    "/cluster/sdn": "id",
    "/nodes/{node}/apt": "id",
    "/nodes/{node}/lxc/{vmid}": "subdir",
    "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}": "cmd",
    "/nodes/{node}/lxc/{vmid}/status": "subdir",
    "/nodes/{node}/qemu/{vmid}": "subdir",
    "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}": "cmd",
    "/nodes/{node}/qemu/{vmid}/status": "subdir",
    "/nodes/{node}/scan": "method",
    "/nodes/{node}/services/{service}": "subdir",
    "/nodes/{node}/storage/{storage}": "subdir",
}
"""The key of an entry where it is not `name`."""

PERMISSIONS: dict[str, Rule] = {
    "/cluster/backup-info": RootOnly(),
    "/cluster/config": Perm("/", ("Sys.Audit",)),
    "/cluster/ha": Perm("/", ("Sys.Audit",)),
    "/cluster/sdn": Perm("/sdn", ("SDN.Audit",)),
    "/nodes/{node}/services/{service}": Perm("/nodes/{node}", ("Sys.Audit",)),
    "/nodes/{node}/storage/{storage}": Perm(
        "/storage/{storage}", ("Datastore.Audit", "Datastore.AllocateSpace"), any=True
    ),
}
"""Who may look, where it is not every login."""


def declare_directories(registry: Registry) -> None:
    """Declares a listing for each place that has literal children and no GET. Listings are the same on every node."""
    for place in sorted({prefix for endpoint in registry for prefix in _prefixes(endpoint.segments)}):
        branch = registry.place(split(place))
        if branch.literals and "GET" not in branch.methods:
            registry.add(_listing(place, branch))


def _prefixes(segments: tuple[str, ...]) -> list[str]:
    return ["/" + "/".join(segments[:length]) for length in range(len(segments))]


def _listing(path: str, branch: Branch) -> Endpoint:
    key = KEYS.get(path, DEFAULT_KEY)
    names = tuple(segment[1:-1] for segment in split(path) if segment.startswith("{"))
    fields: dict[str, Any] = {name: (PATH_PARAMETERS.get(name, String), ...) for name in names}

    def index(call: Call, p: Params) -> list[dict[str, str]]:
        return [{key: name} for name in sorted(branch.literals)]

    return Endpoint(
        verb="GET",
        path=path,
        handler=index,
        params=cast(type[Params], create_model("Place", __base__=Params, **fields)),
        permission=PERMISSIONS.get(path, Everyone()),
        returns={
            "type": "array",
            "items": {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]},
        },
        description="What lies below.",
    )
