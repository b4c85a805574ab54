# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is written inside a container before it starts: names, addresses, resolver, accounts; one file per family."""

from orrery.drivers.lxc.setup.apply import set_up
from orrery.drivers.lxc.setup.detection import detect
from orrery.drivers.lxc.setup.plan import Setup

__all__ = ["Setup", "detect", "set_up"]
