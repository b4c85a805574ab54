# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where each device sits on the machine's PCI buses.

Every device has one place by its name (`net3`, `virtio0`), whatever else the machine has, so that plugging a device
never moves another and a guest finds its network cards under the same names after every start. On `i440fx` the places
are those that guests of the compatible product know; on `q35` pluggable devices sit behind root ports of their own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from orrery.errors import Failure

Chipset = Literal["i440fx", "q35"]

_NUMBERED: Final = re.compile(r"([a-z]+)(\d+)")
_PORTS_PER_SLOT: Final = 8  # functions of one PCI slot

# --- i440fx: bus 0 is the root bus, 1 to 3 are bridges on it

_BRIDGES: Final = {1: 0x1E, 2: 0x1F, 3: 0x05}
_I440FX: Final[dict[str, tuple[int, int]]] = {
    "vga": (0, 0x02),
    "balloon0": (0, 0x03),
    "watchdog": (0, 0x04),
    "scsihw0": (0, 0x05),
    "scsihw1": (0, 0x06),
    "ahci0": (0, 0x07),
    "serialbus": (0, 0x08),
    **{f"virtio{n}": (0, 0x0A + n) for n in range(6)},
    **{f"net{n}": (0, 0x12 + n) for n in range(6)},
    **{f"scsihw{n}": (0, 0x18 + n - 2) for n in range(2, 5)},
    **{f"net{n}": (1, n - 5) for n in range(6, 32)},
    "rng0": (1, 0x1D),
    **{f"virtio{n}": (2, n - 5) for n in range(6, 16)},
    **{f"scsisingle{n}": (3, n + 1) for n in range(31)},
}

# --- q35: fixed devices on the root bus, slots of eight root ports for what can be plugged

_Q35_FIXED: Final[dict[str, int]] = {
    "vga": 0x01,
    "balloon0": 0x03,
    "watchdog": 0x04,
    "scsihw0": 0x05,
    "scsihw1": 0x06,
    "ahci0": 0x07,
    "serialbus": 0x08,
    "rng0": 0x09,
    "scsihw2": 0x0A,
    "scsihw3": 0x0B,
    "scsihw4": 0x0C,
    "usb": 0x1D,
}
_Q35_PORTS: Final[dict[str, int]] = {"net": 0x10, "virtio": 0x14, "scsisingle": 0x16}
"""First slot of each kind's root ports; `net` has four slots, `virtio` two, `scsisingle` four."""
_Q35_LEGACY_SLOT: Final = 0x1E
_LEGACY_BUS: Final = "pci.1"
_LEGACY_PLACES: Final = 31


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of one chipset."""

    chipset: Chipset

    def place(self, name: str, *, legacy: bool = False) -> dict[str, str]:
        """Properties `bus` and `addr` of a device. `legacy`: it is no PCI Express device.

        Raises Failure when the chipset has no place for it.
        """
        if self.chipset == "i440fx":
            if name == "usb":
                return {"bus": "pci.0", "addr": "0x1.2"}
            bus, slot = _I440FX[name]
            return {"bus": f"pci.{bus}", "addr": f"{slot:#x}"}
        if name in _Q35_FIXED:
            return {"bus": "pcie.0", "addr": f"{_Q35_FIXED[name]:#x}"}
        kind, index = _split(name)
        if not legacy:
            return {"bus": f"port.{name}", "addr": "0x0"}
        if kind != "net" or index >= _LEGACY_PLACES:
            raise Failure(f"a q35 machine has no place for '{name}' with this model; use a PCI Express model or virtio")
        return {"bus": _LEGACY_BUS, "addr": f"{index + 1:#x}"}

    def buses(self, names: Iterable[str], *, legacy: bool, kinds: Iterable[str]) -> list[dict[str, Any]]:
        """Bridges and root ports for the devices `names`, and for plugging more of `kinds`, as device properties."""
        if self.chipset == "i440fx":
            return self._bridges(set(names), set(kinds))
        return self._ports(set(names), set(kinds)) + (self._legacy_bridge() if legacy else [])

    def _bridges(self, names: set[str], kinds: set[str]) -> list[dict[str, Any]]:
        wanted = [1, 2, *([3] if "scsisingle" in kinds or any(n.startswith("scsisingle") for n in names) else [])]
        return [
            {
                "driver": "pci-bridge",
                "id": f"pci.{number}",
                "chassis_nr": number,
                "bus": "pci.0",
                "addr": f"{_BRIDGES[number]:#x}",
            }
            for number in wanted
        ]

    def _ports(self, names: set[str], kinds: set[str]) -> list[dict[str, Any]]:
        """All eight ports of every slot in which one is used: a slot without function 0 is not found by guests."""
        used = {kind: {0} if kind in kinds else set[int]() for kind in _Q35_PORTS}
        for kind, index in (_split(name) for name in names if name not in _Q35_FIXED):
            if kind in used:
                used[kind].add(index // _PORTS_PER_SLOT)
        return [
            self._port(kind, block, function)
            for kind, blocks in used.items()
            for block in sorted(blocks)
            for function in range(_PORTS_PER_SLOT)
        ]

    def _port(self, kind: str, block: int, function: int) -> dict[str, Any]:
        slot = _Q35_PORTS[kind] + block
        number = (slot - 0x10) * _PORTS_PER_SLOT + function + 1
        return {
            "driver": "pcie-root-port",
            "id": f"port.{kind}{block * _PORTS_PER_SLOT + function}",
            "bus": "pcie.0",
            "addr": f"{slot:#x}.{function:#x}",
            "chassis": number,
            "slot": number,
            **({"multifunction": True} if function == 0 else {}),
        }

    def _legacy_bridge(self) -> list[dict[str, Any]]:
        number = (_Q35_LEGACY_SLOT - 0x10) * _PORTS_PER_SLOT + 1
        port = {
            "driver": "pcie-root-port",
            "id": "port.legacy",
            "bus": "pcie.0",
            "addr": f"{_Q35_LEGACY_SLOT:#x}",
            "chassis": number,
            "slot": number,
        }
        return [port, {"driver": "pcie-pci-bridge", "id": _LEGACY_BUS, "bus": "port.legacy", "addr": "0x0"}]


def _split(name: str) -> tuple[str, int]:
    match = _NUMBERED.fullmatch(name)
    if match is None:
        raise KeyError(name)
    return match[1], int(match[2])
