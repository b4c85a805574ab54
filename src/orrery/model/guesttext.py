# SPDX-License-Identifier: AGPL-3.0-or-later
"""The text form of a guest's configuration, as `.conf` files of Proxmox hosts have it.

    #first line of the description, percent-encoded
    boot: order=scsi0
    cores: 2

    [PENDING]
    delete: balloon,!net1
    memory: 4096

    [before-upgrade]
    #description of the snapshot
    cores: 1
    snaptime: 1790000000

Options first, then what waits for the next start, then special sections, then snapshots; keys sorted. `!` before a
key that is to be deleted means force. Values are single lines; the description is split into lines and encoded, and
the variables of `env` are separated by NUL.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from orrery.errors import Corrupt

PENDING = "PENDING"
SPECIAL = "special:"
ENVIRONMENT = "env"

_KEY = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_SECTION = re.compile(r"\[(special:[A-Za-z0-9_-]+|[A-Za-z][A-Za-z0-9_-]*)\]")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_UNSAFE = re.compile(rb"[^\x20\x22-\x24\x26-\x39\x3b-\x7e]")


def is_key(text: str) -> bool:
    """Whether a text can be the key of an option."""
    return _KEY.fullmatch(text) is not None


def is_value(key: str, text: str) -> bool:
    """Whether a text can be the value of an option: one line, no control characters, no outer blanks, not empty."""
    return bool(text) and not _has_control(key, text) and text == text.strip()


def _has_control(key: str, text: str) -> bool:
    return _CONTROL.search(text.replace("\0", "") if key == ENVIRONMENT else text) is not None


def is_section_name(text: str) -> bool:
    """Whether a text can name a snapshot."""
    return _SECTION.fullmatch(f"[{text}]") is not None and text.upper() != PENDING and not text.startswith(SPECIAL)


def encode_text(text: str) -> str:
    """One line of free text with everything but plain ASCII percent-encoded; `%`, `:` and `!` are encoded too."""
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text.encode()).decode("ascii")


def decode_text(text: str) -> str:
    """Undo `encode_text`; UnicodeDecodeError when the bytes are no UTF-8."""
    return unquote(text, errors="strict") if "%" in text else text


@dataclass(slots=True)
class Section:
    """One section as the text has it; `name` is empty for the options at the top."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The description, its lines joined; empty when there is none."""
        return "\n".join(self.lines)


def read_sections(text: str, source: str) -> Iterator[Section]:
    """The sections of a text, the nameless first one always present.

    `source` names the text in the Corrupt error that anything raises that is no configuration.
    """
    section = Section("")
    seen = {PENDING: False}
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            if line[0] == "[":
                yield section
                section = Section(_section_name(line, seen))
            elif line[0] == "#":
                section.lines.append(decode_text(line[1:]))
            else:
                _read_option(section, line)
        except ValueError as error:
            raise Corrupt(
                f"{source} is not a guest configuration: line {number}: {error}. Nothing was changed; "
                "correct the line or restore the configuration from a backup."
            ) from None
    yield section


def write_options(options: Mapping[str, str]) -> Iterator[str]:
    """The lines of a section's options."""
    for key in sorted(options):
        yield f"{key}: {encode_text(options[key]) if key == 'description' else options[key]}\n"


def write_description(description: str) -> Iterator[str]:
    """The comment lines that hold a description."""
    if description:
        for line in description.split("\n"):
            yield f"#{encode_text(line)}\n"


def _section_name(line: str, seen: dict[str, bool]) -> str:
    match = _SECTION.fullmatch(line.rstrip())
    if not match:
        raise ValueError(f"'{line[:80]}' is not the head of a section")
    name = PENDING if match[1].upper() == PENDING else match[1]
    if seen.get(name):
        raise ValueError(f"section [{name}] is there twice")
    seen[name] = True
    return name


def _read_option(section: Section, line: str) -> None:
    key, colon, value = line.partition(":")
    value = value.strip()
    if not colon or not _KEY.fullmatch(key):
        raise ValueError(f"'{line[:80]}' is not 'key: value'")
    if key in section.options:
        raise ValueError(f"'{key}' is there twice")
    if _has_control(key, value):
        raise ValueError(f"the value of '{key}' contains control characters")
    if value:
        section.options[key] = decode_text(value) if key == "description" else value
