# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks that everything which runs as a part of Orrery may be combined with AGPL-3.0-or-later.

Looks at the installed distributions that `orrery` needs, directly or not, as their metadata describe them.
"""

import importlib.metadata
import re
import sys

COMPATIBLE = re.compile(
    r"MIT|BSD|ISC|Apache|PSF|Python Software Foundation|MPL|Mozilla Public License 2"
    r"|LGPL|Lesser General Public License v2 or later|GPL-3|GPLv3|GPL-2\.0-or-later|AGPL"
)
# One distribution with two licences: its module `legacy` and its programs are GPL-2.0-only, and are not imported.
REVIEWED = {"qemu.qmp": "LGPL-2.0-or-later for all that is imported"}


def canonical(name: str) -> str:
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(root: str) -> list[importlib.metadata.Distribution]:
    """The distribution and all that it needs on this machine, by name."""
    installed = {canonical(each.metadata["Name"]): each for each in importlib.metadata.distributions()}
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [canonical(root)]
    while waiting:
        name = waiting.pop()
        if name in found or name not in installed:
            continue
        found[name] = installed[name]
        needed = (each for each in installed[name].requires or () if "extra ==" not in each)
        waiting += [canonical(re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0]) for each in needed]
    return [found[name] for name in sorted(found)]


def licence(found: importlib.metadata.Distribution) -> str:
    """What the metadata say of the licence: expression, classifiers, or the first line of the free text."""
    metadata = found.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [each for each in metadata.get_all("Classifier") or () if each.startswith("License ::")]
    if classifiers:
        return "; ".join(each.rpartition("::")[2].strip() for each in classifiers)
    return metadata["License"].partition("\n")[0] if "License" in metadata else ""


def main() -> int:
    """Prints what is not compatible; 1 if there is any, or nothing was found at all."""
    everything = closure("orrery")
    wrong = [
        f"{each.metadata['Name']}: {licence(each) or 'no licence named'}"
        for each in everything
        if each.metadata["Name"] not in REVIEWED and not COMPATIBLE.search(licence(each))
    ]
    for line in wrong:
        print(f"not compatible with AGPL-3.0-or-later, or unknown: {line}")
    if len(everything) < 2:
        print("orrery is not installed here, so nothing was checked")
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
