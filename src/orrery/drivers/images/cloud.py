# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cloud images: one file on a web server, and a list of checksums that tells whether there is a newer one."""

from urllib.parse import unquote, urlsplit

from orrery.drivers.images.base import Digest, Fetched, Workshop, read
from orrery.drivers.images.checksums import find_checksum


def published(workshop: Workshop, url: str, checksums: str, algorithm: str) -> Digest:
    """The checksum of the image that lies there now. Raises Failure."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return find_checksum(read(workshop, checksums), name, algorithm)


def fetch(workshop: Workshop, url: str, digest: Digest) -> Fetched:
    """The image. Raises Failure."""
    return Fetched(workshop.download(url, digest, what="image"), "qcow2", str(digest), url)
