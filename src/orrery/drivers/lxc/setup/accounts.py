# SPDX-License-Identifier: AGPL-3.0-or-later
"""How one gets in: root's password (shadow(5)) and root's keys (authorized_keys)."""

from typing import Final

from orrery.drivers.lxc.setup.blocks import read_text, write_text
from orrery.drivers.lxc.tree import Tree

_PASSWD: Final = "/etc/passwd"
_SHADOW: Final = "/etc/shadow"


def password(tree: Tree, hashed: str) -> None:
    """Root's password by its hash. A tree without a shadow file gets one that root alone may read."""
    shadow = read_text(tree, _SHADOW)
    mode = None if shadow is not None else 0o600
    write_text(tree, _SHADOW, _with_field(shadow or "", hashed, "::0:99999:7:::"), mode)
    accounts = read_text(tree, _PASSWD)
    if accounts is not None:
        write_text(tree, _PASSWD, _with_field(accounts, "x", ":0:0:root:/root:/bin/sh"))


def _with_field(text: str, value: str, rest: str) -> str:
    """Lines with root's second field replaced; without a line for root, one with `rest` behind."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        fields = line.split(":")
        if fields[0] == "root" and len(fields) > 1:
            lines[number] = ":".join([fields[0], value, *fields[2:]])
            break
    else:
        lines.insert(0, f"root:{value}{rest}")
    return "".join(f"{line}\n" for line in lines)


def authorized_keys(tree: Tree, keys: str) -> None:
    """Add these keys to root's, each once."""
    home = _home_of_root(tree)
    folder, path = f"{home}/.ssh", f"{home}/.ssh/authorized_keys"
    if not tree.is_dir(home):
        tree.mkdir(home, mode=0o700)
    tree.mkdir(folder, mode=0o700)
    present = (read_text(tree, path) or "").splitlines()
    wanted = [key.strip() for key in keys.splitlines() if key.strip()]
    added = [key for key in dict.fromkeys(wanted) if key not in present]
    if added:
        write_text(tree, path, "".join(f"{line}\n" for line in [*present, *added]), 0o600)


def _home_of_root(tree: Tree) -> str:
    for line in (read_text(tree, _PASSWD) or "").splitlines():
        fields = line.split(":")
        if fields[0] == "root" and len(fields) > 5 and fields[5].startswith("/") and fields[5] != "/":
            return fields[5].rstrip("/")
    return "/root"
