# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processor models of virtual machines: known names, flags, and the typed view of `cpu`, sockets and cores."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from orrery.model.machine_properties import CPU
from orrery.model.values import Value

DEFAULT_MODEL = "kvm64"

_GENERIC = frozenset(
    (
        *("host", "max", "kvm32", "kvm64", "qemu32", "qemu64"),
        *("486", "pentium", "pentium2", "pentium3", "coreduo", "core2duo", "athlon", "phenom"),
    )
)
_INTEL = (
    "Conroe Penryn Nehalem Westmere SandyBridge IvyBridge Haswell Broadwell Skylake-Client Skylake-Server"
    " Cascadelake-Server Cooperlake Icelake-Client Icelake-Server SapphireRapids GraniteRapids SierraForest"
    " ClearwaterForest KnightsMill Denverton Snowridge"
)
_AMD = "Opteron_G1 Opteron_G2 Opteron_G3 Opteron_G4 Opteron_G5 EPYC EPYC-Rome EPYC-Milan EPYC-Genoa EPYC-Turin"
_FAMILIES = "|".join(map(re.escape, [*_INTEL.split(), *_AMD.split()]))
_VERSIONED = re.compile(rf"(?:{_FAMILIES})(?:-noTSX)?(?:-IBRS|-IBPB)?(?:-v[1-9])?")

_V2 = ("popcnt", "pni", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "aes", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
LEVELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"x86-64-v2": _V2, "x86-64-v2-AES": (*_V2, "aes"), "x86-64-v3": _V3, "x86-64-v4": _V4}
)
"""Levels of the x86-64 psABI as flags to add to `qemu64`, which QEMU itself has no names for."""

FLAGS = (
    *("nested-virt", "md-clear", "pcid", "spec-ctrl", "ssbd", "ibpb", "virt-ssbd", "amd-ssbd", "amd-no-ssb"),
    *("pdpe1gb", "hv-tlbflush", "hv-evmcs", "aes"),
)
"""Flags that may be switched per machine. Others would make a guest that cannot move between hosts."""


@dataclass(frozen=True, slots=True)
class CpuModel:
    """Which processor a machine sees. `flags` maps a flag to on (True) or off, in the order written."""

    model: str = DEFAULT_MODEL
    flags: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read the value of `cpu`; ValueError when it is none. None is the default model."""
        if text is None:
            return cls()
        values = CPU.parse(text)
        return cls(str(values.get("cputype", DEFAULT_MODEL)), _parse_flags(values))

    @property
    def qemu_model(self) -> str:
        """The name by which QEMU knows the model (`qemu64` for the levels)."""
        return "qemu64" if self.model in LEVELS else self.model

    @property
    def level_flags(self) -> tuple[str, ...]:
        """Flags that make `qemu_model` the level that was asked for."""
        return LEVELS.get(self.model, ())


@dataclass(frozen=True, slots=True)
class Topology:
    """Sockets and cores; `vcpus` of them run at start. `limit`: processors, 0 for none; `units`: cgroup weight."""

    sockets: int = 1
    cores: int = 1
    vcpus: int | None = None
    limit: float = 0.0
    units: int | None = None
    numa: bool = False

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self:
        """Read from a machine's options, which must be valid."""
        return cls(
            sockets=int(options.get("sockets", "1")),
            cores=int(options.get("cores", "1")),
            vcpus=int(options["vcpus"]) if "vcpus" in options else None,
            limit=float(options.get("cpulimit", "0")),
            units=int(options["cpuunits"]) if "cpuunits" in options else None,
            numa=options.get("numa") == "1",
        )

    @property
    def total(self) -> int:
        """All processors the machine could have."""
        return self.sockets * self.cores

    @property
    def online(self) -> int:
        """Processors it has at start."""
        return min(self.vcpus or self.total, self.total)


def is_known_model(name: str) -> bool:
    """Whether a name is that of a model (which of them the installed QEMU has is its driver's to say)."""
    return name in _GENERIC or name in LEVELS or name.startswith("custom-") or _VERSIONED.fullmatch(name) is not None


def check_cpu(values: Mapping[str, Value]) -> None:
    """Check a parsed `cpu`: model and flags must be known; ValueError says which is not."""
    model = str(values.get("cputype", DEFAULT_MODEL))
    if not is_known_model(model):
        raise ValueError(f"invalid format - format error\ncpu.cputype: unknown processor model '{model}'")
    for flag in _parse_flags(values):
        if flag not in FLAGS:
            raise ValueError(
                f"invalid format - format error\ncpu.flags: flag '{flag}' cannot be switched; use {', '.join(FLAGS)}"
            )


def _parse_flags(values: Mapping[str, Value]) -> dict[str, bool]:
    words = str(values.get("flags", "")).split(";")
    return {word[1:]: word[0] == "+" for word in words if word}
