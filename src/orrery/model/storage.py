# SPDX-License-Identifier: AGPL-3.0-or-later
"""The table of a storage's options, and the rules for creating and changing one.

Names, types and which option belongs to which kind of storage are those of the compatible API. This version acts on
storages of the types `btrfs` and `dir`; options of the other types are known, so that they can be refused by name.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from orrery.errors import ParameterError
from orrery.model.properties import BWLIMIT, PRUNE_BACKUPS
from orrery.model.propertystring import PropertyString
from orrery.model.textformats import split_list
from orrery.model.values import UNKNOWN, Scalar, print_value

STORAGE_TYPES = (
    *("btrfs", "cephfs", "cifs", "dir", "esxi", "iscsi", "iscsidirect", "lvm", "lvmthin", "nfs", "pbs", "rbd", "zfs"),
    "zfspool",
)
SUPPORTED_TYPES = ("btrfs", "dir")
FOLDER_TYPES = ("btrfs", "dir")
"""The types that keep files in a folder of this host."""
DIR_CONTENT = ("images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import", "none")
_NO, _YES = ("0", "no", "off", "false"), ("1", "yes", "on", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOption:
    """One option. `types`: the kinds of storage that have it; `fixed`: it cannot be changed once the storage exists."""

    name: str
    rule: Scalar
    properties: PropertyString | None = None
    types: frozenset[str] = frozenset()
    fixed: bool = False
    support: Literal["yes", "not-yet"] = "yes"

    @property
    def default(self) -> str | None:
        """The value that holds when the option is absent, in canonical text."""
        return None if self.rule.default is None else print_value(self.rule.default)

    def canonical(self, text: str) -> str:
        """The value in canonical text; ValueError with the text for the parameter."""
        value = self.rule.canonical(text)
        if self.properties is None:
            return value
        try:
            return self.properties.canonical(value, self.name)
        except ValueError as error:
            raise ValueError(f"invalid format - {error}") from None


_ANY = frozenset(STORAGE_TYPES)
_FILES = frozenset(("dir", "nfs", "cifs", "cephfs", "btrfs"))
_DIR = frozenset(("dir",))


def _option(
    name: str,
    rule: Scalar | PropertyString,
    types: Collection[str],
    *,
    fixed: bool = False,
    support: Literal["yes", "not-yet"] = "yes",
) -> StorageOption:
    schema = rule if isinstance(rule, PropertyString) else None
    scalar = Scalar() if isinstance(rule, PropertyString) else rule
    return StorageOption(
        name=name, rule=scalar, properties=schema, types=frozenset(types), fixed=fixed, support=support
    )


def _of(types: str, name: str, rule: Scalar | None = None, *, fixed: bool = False) -> StorageOption:
    """A row of storages that this version does not have."""
    return _option(name, rule or Scalar(), types.split(), fixed=fixed)


def _flag(default: bool | None = None) -> Scalar:
    return Scalar(type="boolean", default=default)


def _text(format_: str) -> Scalar:
    return Scalar(format=format_)


_PREALLOCATION = Scalar(enum=("off", "metadata", "falloc", "full"), default="metadata")
_STEP_SIZES = Scalar(type="integer", enum=("1", "2", "4", "8", "16", "32"), default=32)
_SMB_VERSIONS = Scalar(enum=("default", "2.0", "2.1", "3", "3.0", "3.11"), default="default")
_FINGERPRINT = Scalar(pattern=r"([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}")
_NETWORKED = "nfs cifs pbs iscsi esxi"

_ROWS: tuple[StorageOption, ...] = (
    # Every storage
    _option("type", Scalar(enum=STORAGE_TYPES), _ANY, fixed=True),
    _option("content", _text("pve-storage-content-list"), _ANY),
    _option("disable", _flag(), _ANY),
    _option("nodes", _text("pve-node-list"), _ANY),
    _option("bwlimit", BWLIMIT, _ANY),
    _option("shared", _flag(), _DIR | {"lvm", "zfspool", "btrfs"}),
    # Storages that keep files in folders
    _option("path", _text("pve-storage-path"), _FILES, fixed=True),
    _option("content-dirs", _text("pve-dir-override-list"), _FILES),
    _option("create-base-path", _flag(True), _FILES),
    _option("create-subdirs", _flag(True), _FILES),
    _option("format", Scalar(enum=("raw", "qcow2", "subvol", "vmdk")), _FILES),
    _option("is_mountpoint", Scalar(default="no"), ("dir", "btrfs")),
    _option("max-protected-backups", Scalar(type="integer", minimum=-1), _FILES | {"pbs"}),
    _option("mkdir", _flag(True), _FILES),
    _option("preallocation", _PREALLOCATION, _FILES),
    _option("prune-backups", PRUNE_BACKUPS, _FILES | {"pbs"}),
    _option("snapshot-as-volume-chain", _flag(False), _FILES | {"lvm"}, support="not-yet"),
    # The rest
    _of("rbd", "authsupported", fixed=True),
    _of("lvm", "base", _text("pve-volume-id"), fixed=True),
    _of("zfspool zfs", "blocksize"),
    _of("zfs", "comstar_hg"),
    _of("zfs", "comstar_tg"),
    _of("rbd", "data-pool"),
    _of("pbs", "datastore", fixed=True),
    _of("cifs", "domain", Scalar(max_length=256)),
    _of("pbs", "encryption-key"),
    _of("nfs", "export", _text("pve-storage-path"), fixed=True),
    _of("pbs", "fingerprint", _FINGERPRINT),
    _of("cephfs", "fs-name", _text("pve-configid")),
    _of("cephfs", "fuse", _flag()),
    _of("zfs", "iscsiprovider", fixed=True),
    _of("rbd cephfs", "keyring"),
    _of("rbd", "krbd", _flag(False)),
    _of("zfs", "lio_tpg"),
    _of("pbs", "master-pubkey"),
    _of("rbd cephfs", "monhost", _text("pve-storage-portal-dns-list")),
    _of("zfspool", "mountpoint", _text("pve-storage-path")),
    _of("rbd pbs", "namespace"),
    _of("btrfs", "nocow", _flag(False)),
    _of("zfs", "nowritecache", _flag()),
    _of("nfs cifs cephfs", "options", _text("pve-storage-options")),
    _of("cifs pbs esxi", "password", Scalar(max_length=256)),
    _of("rbd zfs zfspool", "pool"),
    _of("pbs", "port", Scalar(type="integer", minimum=1, maximum=65535)),
    _of("iscsi iscsidirect zfs", "portal", _text("pve-storage-portal-dns"), fixed=True),
    _of("lvm", "saferemove", _flag()),
    _of("lvm", "saferemove-stepsize", _STEP_SIZES),
    _of("lvm", "saferemove_throughput"),
    _of(_NETWORKED, "server", _text("pve-storage-server")),
    _of("cifs", "share", fixed=True),
    _of("esxi", "skip-cert-verification", _flag(False)),
    _of("cifs", "smbversion", _SMB_VERSIONS),
    _of("zfspool zfs", "sparse", _flag()),
    _of("cifs cephfs", "subdir", _text("pve-storage-path")),
    _of("lvm", "tagged_only", _flag()),
    _of("iscsi iscsidirect zfs", "target", fixed=True),
    _of("lvmthin", "thinpool", _text("pve-storage-vgname"), fixed=True),
    _of("cifs pbs esxi rbd", "username"),
    _of("lvm lvmthin", "vgname", _text("pve-storage-vgname"), fixed=True),
    _of("zfs", "zfs-base-path", _text("pve-storage-path")),
)

STORAGE_OPTIONS: Mapping[str, StorageOption] = {option.name: option for option in _ROWS}
"""All options by name; `storage`, `delete` and `digest` are parameters of the methods, not options."""


def validate_storage(options: Mapping[str, str]) -> dict[str, str]:
    """The options of a new storage, `type` among them, in canonical text; ParameterError with all faults."""
    canonical, errors = _canonical(options)
    kind = canonical.get("type")
    if kind is None and "type" not in errors:
        errors["type"] = "property is missing and it is not optional"
    errors |= _misplaced(kind, canonical)
    if kind in FOLDER_TYPES and "path" not in options:
        errors["path"] = "property is missing and it is not optional"
    _finish(kind, canonical, errors)
    return canonical


def validate_change(
    current: Mapping[str, str], changes: Mapping[str, str], delete: Collection[str] = ()
) -> dict[str, str]:
    """The whole options of a storage after a change, in canonical text; ParameterError with all faults."""
    canonical, errors = _canonical(changes)
    kind = current["type"]
    errors |= _misplaced(kind, canonical)
    for name, value in canonical.items():
        if STORAGE_OPTIONS[name].fixed and current.get(name) != value:
            errors[name] = f"can't change value of fixed parameter '{name}'"
    for name in delete:
        if name not in STORAGE_OPTIONS or kind not in STORAGE_OPTIONS[name].types:
            errors["delete"] = f"unknown option '{name}'"
        elif STORAGE_OPTIONS[name].fixed:
            errors["delete"] = f"can't delete fixed option '{name}'"
        elif name in changes:
            errors["delete"] = f"cannot set and delete '{name}' at the same time"
    kept = {name: value for name, value in current.items() if name not in delete}
    _finish(kind, canonical, errors)
    return kept | canonical


def unsupported_storage(options: Mapping[str, str]) -> dict[str, str]:
    """What this version knows but does not act on, by parameter; the options must have been validated."""
    kind = options.get("type", "dir")
    if kind not in SUPPORTED_TYPES:
        return {"type": f'storage type "{kind}" is not supported yet'}
    return {
        name: f'"{name}" is not supported yet'
        for name, value in options.items()
        if name in STORAGE_OPTIONS and STORAGE_OPTIONS[name].support != "yes" and value != STORAGE_OPTIONS[name].default
    }


def _canonical(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    canonical: dict[str, str] = {}
    errors: dict[str, str] = {}
    for name, text in options.items():
        option = STORAGE_OPTIONS.get(name)
        if option is None:
            errors[name] = UNKNOWN
            continue
        try:
            canonical[name] = option.canonical(text)
        except ValueError as error:
            errors[name] = str(error)
    if "is_mountpoint" in canonical:
        try:
            canonical["is_mountpoint"] = _mount_point(canonical["is_mountpoint"])
        except ValueError as error:
            errors["is_mountpoint"] = str(error)
    return canonical, errors


def _mount_point(text: str) -> str:
    """A boolean word, or the folder that must be mounted."""
    if text.lower() in _YES + _NO:
        return "yes" if text.lower() in _YES else "no"
    return Scalar(format="pve-storage-path").canonical(text)


def _misplaced(kind: str | None, options: Mapping[str, str]) -> dict[str, str]:
    if kind is None:
        return {}
    return {
        name: f"unexpected property '{name}': a storage of type {kind} has none"
        for name in options
        if kind not in STORAGE_OPTIONS[name].types
    }


def _finish(kind: str | None, canonical: dict[str, str], errors: dict[str, str]) -> None:
    content = split_list(canonical.get("content", ""))
    wrong = [word for word in content if word not in DIR_CONTENT]
    if kind in FOLDER_TYPES and wrong:
        errors["content"] = f"a storage of type {kind} cannot hold '{wrong[0]}'"
    if "none" in content and len(content) > 1:
        errors["content"] = "'none' cannot stand beside other content types"
    if content:
        canonical["content"] = ",".join(sorted(set(content)))
    if errors:
        raise ParameterError(errors)
