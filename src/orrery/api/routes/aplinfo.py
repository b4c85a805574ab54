# SPDX-License-Identifier: AGPL-3.0-or-later
"""Templates of containers as clients of the compatible API list and fetch them, and images of OCI registries."""

from typing import Annotated, Any, Final

from pydantic import Field

from orrery.access.rules import AllOf, Everyone, Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Text
from orrery.api.parameters import NodeParams, StorageId, StorageParams
from orrery.api.routes.images import TEMPLATES, fetching, parse_reference
from orrery.drivers.images.registry import Registry
from orrery.errors import NotFound, ParameterError
from orrery.model.images import ARCHITECTURE, CATALOGUE, ImageEntry
from orrery.operations.image_pull import DownloadTemplate
from orrery.operations.image_records import entries, required_entry
from orrery.operations.image_workshop import Web

APLINFO: Final = "/nodes/{node}/aplinfo"
NETWORK: Final = Perm("/nodes/{node}", ("Sys.AccessNetwork",))
_REFERENCE_MAX: Final = 512


class FetchTemplate(NodeParams):
    """Which template to fetch."""

    storage: StorageId
    template: Annotated[str, Text(max_length=255, doc="Name of the template's file, as listed.")]


class PullOci(StorageParams):
    """Which image to pull from a registry."""

    reference: Annotated[str, Text(max_length=_REFERENCE_MAX, doc="The image, such as docker.io/library/nginx:1.27.")]
    filename: (
        Annotated[str, Text(min_length=1, max_length=255, doc="Name of the file, to which .tar is added.")] | None
    ) = Field(default=None)


class QueryTags(NodeParams):
    """A repository of a registry."""

    reference: Annotated[str, Text(max_length=_REFERENCE_MAX, doc="The repository, such as docker.io/library/nginx.")]


@endpoint("GET", APLINFO, params=NodeParams, permission=Everyone(), returns=list[dict[str, Any]], proxy="node")
def list_templates(call: Call, p: NodeParams) -> list[dict[str, Any]]:
    """Templates that containers can be made from."""
    return [_row(entry) for entry in CATALOGUE if entry.kind == "container"]


def _row(entry: ImageEntry) -> dict[str, Any]:
    """A template in the wire's words."""
    return {
        "template": entry.filename,
        "type": "lxc",
        "package": entry.alias,
        "version": entry.release,
        "os": entry.alias,
        "section": "system",
        "architecture": ARCHITECTURE,
        "headline": entry.title,
        "description": f"{entry.title}, {'built here' if entry.source.name == 'debootstrap' else 'fetched'}",
        "source": entry.source.name,
        "location": "",
        "infopage": "",
        "maintainer": "",
    }


@endpoint("POST", APLINFO, params=FetchTemplate, permission=TEMPLATES, returns=str, task=True, proxy="node", waits=True)
def fetch_template(call: Call, p: FetchTemplate) -> Any:
    """Fetch a template, or build it."""
    names = {entry.filename for entry in CATALOGUE if entry.kind == "container"}
    if p.template not in names and not _served(call, p.template):
        raise ParameterError({"template": f"no such template '{p.template}'"})
    entry = required_entry(call.services.context, p.template, "container")
    return call.start(DownloadTemplate(p.storage, entry.alias, entry.kind, entry.volume))


def _served(call: Call, template: str) -> bool:
    """Whether an image server has it."""
    if not Web(call.services.store).sources.servers:
        return False
    return any(entry.filename == template for entry in entries(call.services.context) if entry.kind == "container")


@endpoint(
    "POST",
    "/nodes/{node}/storage/{storage}/oci-registry-pull",
    params=PullOci,
    permission=AllOf((TEMPLATES, NETWORK)),
    returns=str,
    task=True,
    proxy="node",
)
def pull_oci_image(call: Call, p: PullOci) -> Any:
    """Make a template of an image in a registry."""
    if ":" not in p.reference.rpartition("/")[2]:
        raise ParameterError(
            {"reference": "invalid format - a tag is missing, such as in docker.io/library/nginx:1.27"}
        )
    reference = parse_reference("reference", p.reference)
    return call.start(fetching(call, str(reference), "container", p.storage, p.filename, force=False))


@endpoint(
    "GET",
    "/nodes/{node}/query-oci-repo-tags",
    params=QueryTags,
    permission=NETWORK,
    returns=list[str],
    proxy="node",
    waits=True,
)
def query_tags(call: Call, p: QueryTags) -> list[str]:
    """The tags of a repository, as its registry lists them."""
    web = Web(call.services.store)
    reference = parse_reference("reference", p.reference)
    tags = Registry(web, reference, web.sources.insecure).tags()
    if not tags:
        raise NotFound(f"repository '{reference.registry}/{reference.repository}' has no tags")
    return tags
