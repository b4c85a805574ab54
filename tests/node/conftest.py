# SPDX-License-Identifier: AGPL-3.0-or-later
"""One guest that runs, for the tests of a module that leave it as they found it."""

from collections.abc import Iterator

import pytest
from tests.node.harness import Guest, Node


@pytest.fixture(scope="module")
def guest(node: Node, demo_volume: str) -> Iterator[Guest]:
    """The demonstration guest, up, with an address."""
    made = node.guest(disk=demo_volume, start=True, scsihw="virtio-scsi-pci")
    made.address()
    yield made
    made.destroy()
