# SPDX-License-Identifier: AGPL-3.0-or-later
"""Registries of OCI images, by the distribution protocol (OCI Distribution Specification 1.1, and Docker's before it).

A registry that wants a token says where to get one (`WWW-Authenticate: Bearer realm=…`); only anonymous ones are asked
for. Everything that a manifest names is named by its digest and verified against it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

from orrery.drivers.images.base import SMALL, Digest, Reply, Workshop, parse_json
from orrery.errors import Failure, NotFound
from orrery.model.images import Reference

MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPT: Final = ", ".join((*MANIFESTS, *INDEXES))
_MANIFEST_BYTES: Final = 4 << 20
_MAX_TAGS: Final = 10_000
_PAGES: Final = 20
_CHALLENGE = re.compile(r'([a-z_]+)="([^"\\]*)"')
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


@dataclass
class Registry:
    """One repository of a registry. `insecure` names the registries that are spoken to by HTTP."""

    workshop: Workshop
    reference: Reference
    insecure: Collection[str] = ()
    _headers: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """Address of the repository."""
        scheme = "http" if self.reference.registry in self.insecure else "https"
        return f"{scheme}://{self.reference.host}/v2/{self.reference.repository}"

    def manifest(self, which: str) -> tuple[dict[str, Any], bytes]:
        """A manifest or an index, by its tag or digest, and its bytes. Raises NotFound, Failure."""
        reply = self._ask(f"{self.base}/manifests/{which}", {"accept": _ACCEPT}, _MANIFEST_BYTES)
        if reply.status == 404:
            raise NotFound(f"image '{self.reference}' does not exist")
        _require(reply, f"the manifest of '{self.reference}'")
        if which.startswith("sha"):
            Digest.of_text(which).check(reply.body, "the manifest")
        return parse_json(reply.body, "the manifest"), reply.body

    def config(self, digest: Digest) -> bytes:
        """The configuration of an image, verified. Raises Failure."""
        reply = self._ask(f"{self.base}/blobs/{digest}", {}, _MANIFEST_BYTES)
        _require(reply, f"the configuration of '{self.reference}'")
        digest.check(reply.body, "the image's configuration")
        return reply.body

    def blob(self, digest: Digest, size: int, what: str) -> Any:
        """A private file with a layer, verified. Raises Failure."""
        url = f"{self.base}/blobs/{digest}"
        return self.workshop.download(url, digest, headers=self._headers, size=size, what=what)

    def tags(self) -> list[str]:
        """The tags of the repository, in the registry's order. Raises NotFound, Failure."""
        url: str | None = f"{self.base}/tags/list?n=1000"
        found: list[str] = []
        for _ in range(_PAGES):
            if url is None or len(found) >= _MAX_TAGS:
                break
            reply = self._ask(url, {}, SMALL)
            if reply.status == 404:
                raise NotFound(f"repository '{self.reference.registry}/{self.reference.repository}' does not exist")
            _require(reply, f"the tags of '{self.reference.repository}'")
            tags = parse_json(reply.body, "the list of tags").get("tags")
            found += (
                [tag for tag in tags if isinstance(tag, str) and _TAG.fullmatch(tag)] if isinstance(tags, list) else []
            )
            url = self._next(url, reply)
        return found[:_MAX_TAGS]

    def _next(self, url: str, reply: Reply) -> str | None:
        match = _NEXT.search(reply.headers.get("link", ""))
        if match is None:
            return None
        following: str = urljoin(url, str(match[1]))
        if urlsplit(following)[:2] != urlsplit(url)[:2]:
            raise Failure("the registry continues its list of tags on another server")
        return following

    def _ask(self, url: str, headers: Mapping[str, str], limit: int) -> Reply:
        reply = self.workshop.ask(url, {**headers, **self._headers}, limit=limit)
        if reply.status == 401 and not self._headers:
            self._headers = self._token(reply.headers.get("www-authenticate", ""))
            reply = self.workshop.ask(url, {**headers, **self._headers}, limit=limit)
        if reply.status in (401, 403):
            # A registry says the same of what is private and of what is not there.
            raise Failure(f"registry '{self.reference.registry}' does not let everybody have '{self.reference}'")
        return reply

    def _token(self, challenge: str) -> dict[str, str]:
        scheme, _, rest = challenge.partition(" ")
        asked = dict(_CHALLENGE.findall(rest))
        realm = asked.get("realm", "")
        if scheme.lower() != "bearer" or not re.fullmatch(r"https?://[^\s#]+", realm):
            raise Failure(f"registry '{self.reference.registry}' wants a login, which is not supported")
        if realm.startswith("http:") and self.reference.registry not in self.insecure:
            raise Failure(f"registry '{self.reference.registry}' wants a token from an http address: refused")
        query = {"scope": f"repository:{self.reference.repository}:pull"}
        if service := asked.get("service"):
            query["service"] = service
        reply = self.workshop.ask(realm + ("&" if "?" in realm else "?") + urlencode(query))
        _require(reply, f"a token of registry '{self.reference.registry}'")
        document = parse_json(reply.body, "the token")
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,16384}", token):
            raise Failure(f"registry '{self.reference.registry}' answered with no token")
        return {"authorization": f"Bearer {token}"}


def _require(reply: Reply, what: str) -> None:
    if reply.status != 200:
        raise Failure(f"the registry answered {reply.status} for {what}")
