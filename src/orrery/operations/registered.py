# SPDX-License-Identifier: AGPL-3.0-or-later
"""Imports every operation, so that it is registered by its kind: what the zygote loads before it forks tasks."""

from orrery.operations import (
    guest_change,
    guest_create,
    guest_destroy,
    guest_disk,
    guest_power,
    volume,
    volume_download,
)

__all__ = ["guest_change", "guest_create", "guest_destroy", "guest_disk", "guest_power", "volume", "volume_download"]
