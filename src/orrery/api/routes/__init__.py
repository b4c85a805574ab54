# SPDX-License-Identifier: AGPL-3.0-or-later
"""The methods of the API, a module for each part of the tree."""

import importlib
import pkgutil

from orrery.api.directory import declare_directories
from orrery.api.endpoint import REGISTRY, Registry


def load_routes(registry: Registry = REGISTRY) -> Registry:
    """Imports every module of this package, so that all endpoints are declared, then adds the listings."""
    for module in sorted(found.name for found in pkgutil.walk_packages(__path__, f"{__name__}.")):
        importlib.import_module(module)
    declare_directories(registry)
    return registry
