# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every named format that a parameter may have: single words, lists of them, and property strings."""

from orrery.model.container_properties import CONTAINER_FORMATS
from orrery.model.machine_properties import MACHINE_FORMATS
from orrery.model.properties import PROPERTY_FORMATS
from orrery.model.propertystring import PropertyString
from orrery.model.textformats import TEXT_FORMATS, check_text_format

PROPERTY_STRINGS: dict[str, PropertyString] = {**PROPERTY_FORMATS, **MACHINE_FORMATS, **CONTAINER_FORMATS}


def check_format(name: str, value: str, path: str = "") -> str:
    """Check a value against a format by its name (`pve-vmid`, `pve-vmid-list`, `prune-backups`, `$netN`, …).

    Returns the value in canonical form. ValueError for a bad value; its text is what follows `invalid format - ` in a
    parameter's error. `path` is the parameter's name, for the texts of property strings. LookupError for a name that
    does not exist, which is a mistake in a table and never in a request.
    """
    schema = PROPERTY_STRINGS.get(name)
    return check_text_format(name, value) if schema is None else schema.canonical(value, path)


def format_names() -> frozenset[str]:
    """All names that `check_format` knows, without the `-list` forms."""
    return frozenset(TEXT_FORMATS) | frozenset(PROPERTY_STRINGS)
