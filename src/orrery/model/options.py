# SPDX-License-Identifier: AGPL-3.0-or-later
"""The options of the cluster as a whole: defaults of the page, range of guest numbers, tags, limits, mail."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from orrery.errors import ParameterError
from orrery.model import properties
from orrery.model.machine_options import KEYBOARDS
from orrery.model.propertystring import PropertyString
from orrery.model.values import UNKNOWN, Scalar, Value

LANGUAGES = (
    *("ar", "ca", "da", "de", "en", "es", "eu", "fa", "fr", "hr", "he", "it", "ja", "ka", "kr", "nb", "nl", "nn"),
    *("pl", "pt_BR", "ru", "sl", "sv", "tr", "ukr", "zh_CN", "zh_TW"),
)
MAC_PREFIX = "BC:24:11"
NEXT_ID_RANGE = (100, 1_000_000)
_TAG_LIST = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(;[A-Za-z0-9_][A-Za-z0-9_.+-]*)*"

CLUSTER_OPTIONS: Mapping[str, Scalar | PropertyString] = {
    "bwlimit": properties.BWLIMIT,
    "consent-text": Scalar(max_length=65536),
    "console": Scalar(enum=("applet", "vv", "html5", "xtermjs")),
    "crs": properties.CRS,
    "description": Scalar(max_length=65536),
    "email_from": Scalar(format="email-opt"),
    "fencing": Scalar(enum=("watchdog", "hardware", "both"), default="watchdog"),
    "ha": properties.HA,
    "http_proxy": Scalar(pattern=r"http://\S+"),
    "keyboard": Scalar(enum=KEYBOARDS),
    "language": Scalar(enum=LANGUAGES),
    "mac_prefix": Scalar(format="mac-prefix", default=MAC_PREFIX),
    "max_workers": Scalar(type="integer", minimum=1),
    "migration": properties.MIGRATION,
    "migration_unsecure": Scalar(type="boolean"),
    "next-id": properties.NEXT_ID,
    "notify": properties.NOTIFY,
    "registered-tags": Scalar(pattern=_TAG_LIST),
    "replication": properties.MIGRATION,
    "tag-style": properties.TAG_STYLE,
    "u2f": properties.U2F,
    "user-tag-access": properties.USER_TAG_ACCESS,
    "webauthn": properties.WEBAUTHN,
}
"""Every option with its rule."""

AS_OBJECTS = frozenset(
    ("bwlimit", "crs", "ha", "migration", "next-id", "notify", "replication", "tag-style", "u2f", "user-tag-access")
) | {"webauthn"}
"""Options that replies carry as objects rather than as property strings."""


@dataclass(frozen=True)
class ClusterOptions:
    """The stored options in canonical text, and what follows from them."""

    values: Mapping[str, str] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Value]:
        """The parts of an option that is a property string; empty when it is absent."""
        schema = CLUSTER_OPTIONS[name]
        text = self.values.get(name)
        return schema.parse(text, name) if text and isinstance(schema, PropertyString) else {}

    def next_id_range(self) -> tuple[int, int]:
        """First number for new guests, and the first one beyond the range."""
        part = self.part("next-id")
        return int(part.get("lower", NEXT_ID_RANGE[0])), int(part.get("upper", NEXT_ID_RANGE[1]))

    @property
    def mac_prefix(self) -> str:
        """First octets of automatic MAC addresses."""
        return self.values.get("mac_prefix", MAC_PREFIX)

    @property
    def sort_tags(self) -> bool:
        """Whether a guest's tags are kept sorted."""
        return self.part("tag-style").get("ordering", "alphabetical") == "alphabetical"

    @property
    def case_sensitive_tags(self) -> bool:
        """Whether tags that differ in case alone are different tags."""
        return bool(self.part("tag-style").get("case-sensitive", False))

    def reply(self) -> dict[str, Any]:
        """The options as replies carry them: property strings as objects, numbers as numbers."""
        return {name: _reply(name, text) for name, text in sorted(self.values.items())}


def cluster_options(document: Mapping[str, object]) -> ClusterOptions:
    """The options from their document in the store; what is not text there is ignored."""
    return ClusterOptions({name: value for name, value in document.items() if isinstance(value, str)})


def validate_options(changes: Mapping[str, str], delete: Collection[str] = ()) -> dict[str, str]:
    """Changed options in canonical text; ParameterError with all faults by parameter."""
    canonical: dict[str, str] = {}
    errors: dict[str, str] = {}
    for name, text in changes.items():
        if name not in CLUSTER_OPTIONS:
            errors[name] = UNKNOWN
            continue
        try:
            canonical[name] = canonical_option(name, text)
        except ValueError as error:
            errors[name] = str(error)
    for name in delete:
        if name not in CLUSTER_OPTIONS:
            errors["delete"] = f"unknown option '{name}'"
        elif name in changes:
            errors["delete"] = f"cannot set and delete '{name}' at the same time"
    if errors:
        raise ParameterError(errors)
    return canonical


def canonical_option(name: str, text: str) -> str:
    """An option's text in canonical form; ValueError with the text for the parameter."""
    rule = CLUSTER_OPTIONS[name]
    if isinstance(rule, Scalar):
        return rule.canonical(text)
    try:
        return rule.canonical(text, name)
    except ValueError as error:
        raise ValueError(f"invalid format - {error}") from None


def _reply(name: str, text: str) -> object:
    rule = CLUSTER_OPTIONS.get(name)
    try:
        if isinstance(rule, PropertyString) and name in AS_OBJECTS:
            parts = rule.parse(text, name)
            return {key: int(value) if isinstance(value, bool) else value for key, value in parts.items()}
        if isinstance(rule, Scalar) and rule.type != "string":
            value = rule.parse(text)
            return int(value) if isinstance(value, bool) else value
    except ValueError:
        return text
    return text
