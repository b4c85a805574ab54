# SPDX-License-Identifier: AGPL-3.0-or-later
"""What two containers from one template must not share: machine-id(5) and the host keys of SSH."""

import secrets
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from orrery.drivers.lxc.setup.blocks import write_text
from orrery.drivers.lxc.tree import Tree

_MACHINE_ID: Final = "/etc/machine-id"
_DBUS_ID: Final = "/var/lib/dbus/machine-id"
_SSH: Final = "/etc/ssh"
_KINDS: Final = ("ed25519", "ecdsa", "rsa")
_RSA_BITS: Final = 3072
_PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def machine_id(tree: Tree) -> None:
    """A number of its own, for a tree that has one or has systemd."""
    if tree.readlink(_MACHINE_ID) is None and not tree.exists(_MACHINE_ID) and not tree.exists("/usr/lib/systemd"):
        return
    write_text(tree, _MACHINE_ID, f"{secrets.token_hex(16)}\n", 0o444)
    if tree.is_file(_DBUS_ID) and tree.readlink(_DBUS_ID) is None:
        tree.symlink(_DBUS_ID, _MACHINE_ID)


def ssh_host_keys(tree: Tree, name: str) -> None:
    """New host keys: of the kinds that the template carries, or of all where it has a server without keys."""
    if not tree.is_dir(_SSH):
        return
    names = tree.list(_SSH)
    present = [kind for kind in _KINDS if f"ssh_host_{kind}_key" in names]
    for each in names:
        if each.startswith("ssh_host_") and each.removesuffix(".pub").endswith("_key"):
            tree.remove(f"{_SSH}/{each}")
    for kind in present or (_KINDS if "sshd_config" in names else ()):
        private, public = _pair(kind)
        write_text(tree, f"{_SSH}/ssh_host_{kind}_key", private, 0o600)
        write_text(tree, f"{_SSH}/ssh_host_{kind}_key.pub", f"{public} root@{name}\n", 0o644)


def _pair(kind: str) -> tuple[str, str]:
    key: _PrivateKey
    if kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, _RSA_BITS)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
