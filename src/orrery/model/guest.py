# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's configuration and its record in the store.

The configuration is a flat set of options in text, what is pending, and snapshots; unknown options are kept. It is
never changed in place: every change gives a new one. The description is an option like the others to callers
(`get`, `with_options`), although the text form keeps it apart.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, cast

from orrery.errors import Corrupt, NotFound, ParameterError
from orrery.model import guesttext

GuestKind = Literal["qemu", "lxc"]
DESCRIPTION = "description"


@dataclass(frozen=True)
class SnapshotSection:
    """A snapshot: the options that held when it was taken, with `snaptime`, `parent`, `vmstate` among them."""

    options: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    @property
    def parent(self) -> str | None:
        """Name of the snapshot that this one follows."""
        return self.options.get("parent")

    @property
    def taken(self) -> int | None:
        """When it was taken, in seconds since 1970."""
        text = self.options.get("snaptime", "")
        return int(text) if text.isdecimal() else None


@dataclass(frozen=True)
class GuestConfig:
    """A guest's configuration. `pending_deletes` maps a key to whether its volume is to be removed for good (force)."""

    options: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    pending: Mapping[str, str] = field(default_factory=dict)
    pending_deletes: Mapping[str, bool] = field(default_factory=dict)
    snapshots: Mapping[str, SnapshotSection] = field(default_factory=dict)
    special: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    # Reading

    def get(self, key: str, default: str | None = None) -> str | None:
        """The current value of an option, the description included."""
        if key == DESCRIPTION:
            return self.description or default
        return self.options.get(key, default)

    def current(self) -> dict[str, str]:
        """All current options, the description included."""
        found = dict(self.options)
        if self.description:
            found[DESCRIPTION] = self.description
        return found

    @property
    def lock(self) -> str | None:
        """Which long work holds the guest (`backup`, `migrate`, …)."""
        return self.options.get("lock")

    @property
    def is_template(self) -> bool:
        """Whether the guest is a template, which cannot run."""
        return self.options.get("template") == "1"

    def has_pending(self) -> bool:
        """Whether anything waits for the next start."""
        return bool(self.pending or self.pending_deletes)

    # Changing

    def with_options(self, values: Mapping[str, str], delete: Iterable[str] = ()) -> Self:
        """A configuration with these current values set and others removed; an empty value removes its key.

        ParameterError when a value cannot be written (a line break or control character in it).
        """
        options = {key: value for key, value in self.options.items() if key not in values}
        description = self.description
        for key, value in _clean(values).items():
            if key == DESCRIPTION:
                description = value
            elif value:
                options[key] = value
        for key in delete:
            if key == DESCRIPTION:
                description = ""
            options.pop(key, None)
        return replace(self, options=options, description=description)

    def with_pending(self, values: Mapping[str, str], delete: Mapping[str, bool] | None = None) -> Self:
        """A configuration in which these changes wait for the next start; the description changes at once.

        A key is either set or deleted, the later request counts. What equals the current value does not stay pending.
        """
        cleaned = _clean(values)
        delete = delete or {}
        config = self.with_options(
            {key: value for key, value in cleaned.items() if key == DESCRIPTION},
            [key for key in delete if key == DESCRIPTION],
        )
        deletes = {key: force for key, force in self.pending_deletes.items() if key not in cleaned}
        deletes |= {key: force for key, force in delete.items() if key in self.options}
        deletes |= {key: False for key, value in cleaned.items() if not value and key in self.options}
        pending = {key: value for key, value in (dict(self.pending) | cleaned).items() if key not in delete and value}
        pending.pop(DESCRIPTION, None)
        pending = {key: value for key, value in pending.items() if self.options.get(key) != value}
        return replace(config, pending=pending, pending_deletes=deletes)

    def revert(self, keys: Iterable[str]) -> Self:
        """A configuration without what is pending for these keys."""
        dropped = set(keys)
        return replace(
            self,
            pending={key: value for key, value in self.pending.items() if key not in dropped},
            pending_deletes={key: force for key, force in self.pending_deletes.items() if key not in dropped},
        )

    def apply_pending(self) -> Self:
        """A configuration in which everything that was pending holds."""
        applied = self.with_options(self.pending, self.pending_deletes)
        return replace(applied, pending={}, pending_deletes={})

    def with_snapshot(self, name: str, snapshot: SnapshotSection) -> Self:
        """A configuration with a snapshot added or replaced; ParameterError for a name that cannot be one."""
        if not guesttext.is_section_name(name):
            raise ParameterError({"snapname": f"'{name}' cannot be the name of a snapshot"})
        options = {key: value for key, value in _clean(snapshot.options).items() if value}
        return replace(self, snapshots={**self.snapshots, name: replace(snapshot, options=options)})

    def without_snapshot(self, name: str) -> Self:
        """A configuration without that snapshot; NotFound when there is none."""
        if name not in self.snapshots:
            raise NotFound(f"snapshot '{name}' does not exist")
        return replace(self, snapshots={key: each for key, each in self.snapshots.items() if key != name})

    # Text

    def to_text(self) -> str:
        """The text form; the same configuration always gives the same text."""
        parts = [*guesttext.write_description(self.description), *guesttext.write_options(self.options)]
        if self.has_pending():
            parts.append(f"\n[{guesttext.PENDING}]\n")
            pending = dict(self.pending)
            if self.pending_deletes:
                marked = sorted(self.pending_deletes.items())
                pending["delete"] = ",".join(f"!{key}" if force else key for key, force in marked)
            parts += guesttext.write_options(pending)
        for name in sorted(self.special):
            parts += [f"\n[{guesttext.SPECIAL}{name}]\n", *guesttext.write_options(self.special[name])]
        for name in sorted(self.snapshots):
            snapshot = self.snapshots[name]
            parts.append(f"\n[{name}]\n")
            parts += guesttext.write_description(snapshot.description)
            parts += guesttext.write_options(snapshot.options)
        return "".join(parts)

    @classmethod
    def from_text(cls, text: str, source: str = "the text") -> Self:
        """Read the text form; Corrupt when it is none, with `source` as its name in the message."""
        sections = guesttext.read_sections(text, source)
        top = next(sections)
        snapshots: dict[str, SnapshotSection] = {}
        special: dict[str, Mapping[str, str]] = {}
        pending: dict[str, str] = {}
        for section in sections:
            if section.name == guesttext.PENDING:
                pending = section.options
            elif section.name.startswith(guesttext.SPECIAL):
                special[section.name.removeprefix(guesttext.SPECIAL)] = section.options
            else:
                own = section.options.pop(DESCRIPTION, "")
                snapshots[section.name] = SnapshotSection(section.options, section.description or own)
        own = top.options.pop(DESCRIPTION, "")
        deletes = _read_deletes(pending.pop("delete", ""), source)
        return cls(top.options, top.description or own, pending, deletes, snapshots, special)

    def digest(self) -> str:
        """SHA-1 of the text form in hex: what clients send back to say which state their change is based on."""
        return hashlib.sha1(self.to_text().encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """A guest as the store has it, under `/guests/VMID`: JSON of `kind`, `node` and `conf`, the text form."""

    vmid: int
    kind: GuestKind
    node: str
    config: GuestConfig

    def encode(self) -> bytes:
        """The value for the store."""
        return json.dumps(
            {"kind": self.kind, "node": self.node, "conf": self.config.to_text()},
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()

    @classmethod
    def decode(cls, vmid: int, data: bytes) -> Self:
        """Read a value of the store; Corrupt when it is no guest's."""
        source = f"the record of guest {vmid}"
        try:
            found = json.loads(data)
            kind, node, conf = found["kind"], found["node"], found["conf"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Corrupt(f"{source} cannot be read. Nothing was changed; restore it from a backup.") from None
        if kind not in ("qemu", "lxc") or not isinstance(node, str) or not isinstance(conf, str):
            raise Corrupt(f"{source} is not a guest's. Nothing was changed; restore it from a backup.")
        return cls(vmid, cast(GuestKind, kind), node, GuestConfig.from_text(conf, source))


def _clean(values: Mapping[str, str]) -> dict[str, str]:
    """Values as they can be written: outer blanks dropped; ParameterError for what a line cannot hold."""
    cleaned: dict[str, str] = {}
    errors: dict[str, str] = {}
    for key, value in values.items():
        cleaned[key] = value if key == DESCRIPTION else value.strip()
        if not guesttext.is_key(key):
            errors[key] = "this cannot be the name of an option"
        elif key == DESCRIPTION:
            if any("\ud800" <= char <= "\udfff" for char in value):
                errors[key] = "invalid format - the text is not valid Unicode"
        elif cleaned[key] and not guesttext.is_value(key, cleaned[key]):
            errors[key] = "invalid format - value contains a line break or control character"
    if errors:
        raise ParameterError(errors)
    return cleaned


def _read_deletes(text: str, source: str) -> dict[str, bool]:
    deletes: dict[str, bool] = {}
    for item in text.replace(";", ",").replace(" ", ",").split(","):
        key = item.removeprefix("!")
        if key and not guesttext.is_key(key):
            raise Corrupt(
                f"{source} is not a guest configuration: '{item[:80]}' cannot be deleted. Nothing was changed."
            )
        if key:
            deletes[key] = item.startswith("!")
    return deletes
