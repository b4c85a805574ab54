# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which version answers: of the compatible API, which clients compare, and our own."""

from typing import Any

from orrery import __version__
from orrery.access.rules import Everyone
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.parameters import NodeParams, NoParams

API_VERSION = "9.1.3"
"""The surface that we answer like; plain digits, since clients parse it."""

API_RELEASE = "9.1"


def version_reply() -> dict[str, Any]:
    """The reply of both version methods. `repoid` is hexadecimal on the wire: our own version in hex."""
    return {
        "version": API_VERSION,
        "release": API_RELEASE,
        "repoid": __version__.encode().hex().ljust(8, "0"),
        "orrery": __version__,
    }


@endpoint("GET", "/version", params=NoParams, permission=Everyone(), returns=dict[str, Any])
def read_version(call: Call, p: NoParams) -> dict[str, Any]:
    """Version of the API and of Orrery."""
    return version_reply()


@endpoint(
    "GET", "/nodes/{node}/version", params=NodeParams, permission=Everyone(), returns=dict[str, Any], proxy="node"
)
def read_node_version(call: Call, p: NodeParams) -> dict[str, Any]:
    """Version of the API and of Orrery on a node."""
    return version_reply()
