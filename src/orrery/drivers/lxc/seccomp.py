# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which system calls a container may not make, in the format of lxc.container.conf(5), version 2.

What a container's root may not do is decided by its user namespace and capabilities; this list closes doors into the
kernel that no container needs, should one of those fail, and that a privileged container would find open.
"""

from typing import Final

_NOT_PERMITTED, _NOT_THERE = 1, 38

_NEVER: Final = (
    *("kexec_load", "kexec_file_load"),
    *("init_module", "finit_module", "delete_module"),
    "open_by_handle_at",  # would open files of the whole file system that the container's tree lies on
)
_NEVER_PRIVILEGED: Final = (
    *("acct", "swapon", "swapoff"),
    *("iopl", "ioperm"),
    *("clock_settime", "clock_adjtime", "settimeofday", "adjtimex"),
)
_KEYS: Final = ("keyctl", "add_key", "request_key")
_SUBVOLUMES: Final = (0x5000940E, 0x50009418, 0x50009401, 0x50009417)
"""Requests that make subvolumes and snapshots of btrfs (linux/btrfs.h), which everybody may; what lies in one does not
count for the limit of the volume around it."""
_LOWER_HALF: Final = 0xFFFFFFFF


def profile(*, privileged: bool, nesting: bool = False, keyctl: bool = False) -> str:
    """The text of a profile. With `nesting`, containers inside may unmount by force."""
    lines = ["2", "denylist"]
    if not nesting:
        lines.append("reject_force_umount")
    lines.append("[all]")
    never = (*_NEVER, *(_NEVER_PRIVILEGED if privileged else ()))
    lines += [f"{name} errno {_NOT_PERMITTED}" for name in never]
    # The kernel reads the lower half of the number, so a comparison of all of it could be got around.
    lines += [f"ioctl errno {_NOT_PERMITTED} [1,{each},SCMP_CMP_MASKED_EQ,{_LOWER_HALF}]" for each in _SUBVOLUMES]
    if not keyctl:  # keys are not apart by container; programs do without where the kernel has none
        lines += [f"{name} errno {_NOT_THERE}" for name in _KEYS]
    return "\n".join(lines) + "\n"
