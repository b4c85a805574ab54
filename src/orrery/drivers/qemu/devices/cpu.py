# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processors: how many, which model, which flags."""

from typing import Final

from orrery.drivers.qemu.devices.parts import Context, Parts

_BASE_FLAGS: Final = {"kvm64": ("lahf_lm", "sep"), "kvm32": ("sep",)}
_KVM_FLAGS: Final = ("kvm_pv_eoi", "kvm_pv_unhalt")
_HYPERV: Final = (
    *("hv_relaxed", "hv_vapic", "hv_spinlocks=0x1fff", "hv_vpindex", "hv_runtime", "hv_time", "hv_synic"),
    *("hv_stimer", "hv_reset", "hv_ipi", "hv_frequencies"),
)
"""Interfaces of Hyper-V that make Windows run well under KVM, https://www.qemu.org/docs/master/system/i386/hyperv.html"""
_MODERN_WINDOWS: Final = frozenset(("win7", "win8", "win10", "win11"))
_HOST_MODELS: Final = ("host", "max")


def args(context: Context) -> Parts:
    """Options `-smp` and `-cpu`."""
    topology = context.view.topology
    smp = f"{topology.online},sockets={topology.sockets},cores={topology.cores},threads=1,maxcpus={topology.total}"
    return Parts(options=["-smp", smp, "-cpu", model(context)], notes=_notes(context))


def model(context: Context) -> str:
    """The value of `-cpu`."""
    cpu = context.view.cpu
    kvm = context.accelerator == "kvm"
    name = "max" if cpu.model == "host" and not kvm else cpu.qemu_model
    parts = [name]
    parts += [f"{flag}=on" for flag in (*_BASE_FLAGS.get(name, ()), *cpu.level_flags)]
    if kvm and context.view.is_windows:
        parts += list(_HYPERV) if context.view.ostype in _MODERN_WINDOWS else []
    elif kvm:
        parts += [f"{flag}=on" for flag in _KVM_FLAGS]
    for flag, on in cpu.flags.items():
        found = _flag(flag, context)
        if found:
            parts.append(f"{found}={'on' if on else 'off'}")
    if kvm and name not in _HOST_MODELS:
        parts.append("enforce")
    return ",".join(parts)


def _flag(name: str, context: Context) -> str | None:
    if name == "nested-virt":
        return context.nested
    if name.startswith("hv-") and context.accelerator != "kvm":
        return None
    return name


def _notes(context: Context) -> list[str]:
    if context.accelerator != "kvm" and context.view.cpu.model == "host":
        return ["processor model 'host' needs KVM; the guest sees model 'max'"]
    return []
