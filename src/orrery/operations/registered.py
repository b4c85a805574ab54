# SPDX-License-Identifier: AGPL-3.0-or-later
"""Imports every operation, so that it is registered by its kind: what the zygote loads before it forks tasks."""

from orrery.operations import (
    cloudinit,
    container_change,
    container_create,
    container_destroy,
    container_disk,
    container_power,
    guest_bulk,
    guest_change,
    guest_create,
    guest_destroy,
    guest_disk,
    guest_power,
    image_launch,
    image_oci,
    image_pull,
    volume,
    volume_download,
)

__all__ = [
    "cloudinit",
    "container_change",
    "container_create",
    "container_destroy",
    "container_disk",
    "container_power",
    "guest_bulk",
    "guest_change",
    "guest_create",
    "guest_destroy",
    "guest_disk",
    "guest_power",
    "image_launch",
    "image_oci",
    "image_pull",
    "volume",
    "volume_download",
]
