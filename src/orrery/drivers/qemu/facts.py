# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this host offers to machines: which QEMU, whether KVM, how files are best read and written."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from orrery.errors import Failure, OrreryError
from orrery.system import files, host, io_uring, process
from orrery.system.paths import Paths

BINARY: Final = "qemu-system-x86_64"
_KVM: Final = Path("/dev/kvm")
_VERSION: Final = re.compile(r"version (\d+(?:\.\d+)+)")
_CACHE_FILE: Final = "qemu.json"
_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`version` of QEMU as `7.2.22`; `nested`: the flag for machines in machines, `vmx` or `svm`, where KVM has one.

    `no_kvm` says why there is no KVM, None when there is.
    """

    binary: str
    version: str
    no_kvm: str | None
    nested: str | None
    aio: str

    @property
    def machine_version(self) -> str:
        """Version of the newest machine types: `7.2`."""
        return ".".join(self.version.split(".")[:2])


def detect(paths: Paths) -> HostFacts:
    """Look at the host. Raises Failure when QEMU is not installed. QEMU's version is asked for once per QEMU."""
    binary = process.find(BINARY)
    nested = host.cpu().hardware_virtualization
    return HostFacts(
        binary=binary,
        version=_version(binary, paths),
        no_kvm=_why_not(nested),
        nested=nested,
        aio="io_uring" if io_uring.available() else "threads",
    )


def _why_not(nested: str | None) -> str | None:
    # /dev/kvm may open where the processor cannot do it, and guests then hang: the flags decide.
    if nested is None:
        return "the processor has neither vmx nor svm"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return f"{_KVM} is missing or not accessible"
    return None


def _version(binary: str, paths: Paths) -> str:
    state = Path(binary).stat()
    key: dict[str, Any] = {"binary": binary, "changed": state.st_mtime_ns, "size": state.st_size}
    cache = paths.run / _CACHE_FILE
    try:
        found = files.read_json(cache)
        if {name: found[name] for name in key} == key:
            return str(found["version"])
    except (OSError, OrreryError, KeyError, TypeError):
        pass
    text = process.run([binary, "-version"], timeout=_TIMEOUT).text
    match = _VERSION.search(text)
    if match is None:
        raise Failure(f"'{binary}' does not say which version it is: {text.strip()[:200]}")
    if paths.run.is_dir():
        files.write_json(cache, {**key, "version": match[1]})
    return match[1]


def as_text(facts: HostFacts) -> str:
    """The facts on one line, for logs."""
    return " ".join(f"{name}={value}" for name, value in asdict(facts).items())
