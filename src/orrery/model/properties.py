# SPDX-License-Identifier: AGPL-3.0-or-later
"""Property strings that are not a guest's: limits, retention, start order, realms, and the cluster's options."""

from collections.abc import Mapping
from dataclasses import replace

from orrery.model.propertystring import Property, PropertyString, schema
from orrery.model.values import Value

_RETENTION = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_TAG_COLOR = rf"{_TAG}:[0-9a-fA-F]{{6}}(?::[0-9a-fA-F]{{6}})?"


def enum(*words: str, default: str | None = None, optional: bool = True, requires: str | None = None) -> Property:
    """A key that takes one of a few words."""
    return Property(enum=words, default=default, optional=optional, requires=requires)


def flag(default: bool | None = None, *, optional: bool = True) -> Property:
    """A boolean key."""
    return Property(type="boolean", default=default, optional=optional)


def not_yet(rule: Property) -> Property:
    """The same key, known but not acted on by this version: refused where its value is not the default."""
    return replace(rule, support="not-yet")


def address_rule(values: Mapping[str, Value]) -> None:
    """A gateway is of use only beside an address; raises ValueError."""
    for gateway, address in (("gw", "ip"), ("gw6", "ip6")):
        if gateway in values and address not in values:
            raise ValueError(f"gateway '{gateway}' needs an address '{address}'")


def _prune_rule(values: Mapping[str, Value]) -> None:
    if values.get("keep-all") and any(value for key, value in values.items() if key != "keep-all"):
        raise ValueError("keep-all cannot stand beside other keep options")


def _next_id_rule(values: Mapping[str, Value]) -> None:
    lower, upper = int(values.get("lower", 100)), int(values.get("upper", 1_000_000))
    if not 100 <= lower < upper <= 1_000_000_000:
        raise ValueError(f"lower ({lower}) must be at least 100 and below upper ({upper}), upper at most 1000000000")


def _remote_rule(values: Mapping[str, Value]) -> None:
    if not str(values["apitoken"]).startswith("PVEAPIToken="):
        raise ValueError("apitoken must be PVEAPIToken=USER@REALM!TOKEN=SECRET")


_kibibytes = Property(type="number", minimum=0)
_count = Property(type="integer", minimum=0)

BWLIMIT = schema(dict.fromkeys(("clone", "default", "migration", "move", "restore"), _kibibytes))
"""Limits in KiB/s per kind of copy."""

PRUNE_BACKUPS = schema({"keep-all": flag()}, {f"keep-{period}": _count for period in _RETENTION}, rule=_prune_rule)

STARTUP = schema(
    {
        "order": Property(type="integer", minimum=0, default_key=True),
        "up": Property(type="integer", minimum=0),
        "down": Property(type="integer", minimum=0),
    }
)
"""Order among the guests that start with the node, and seconds to wait after starting and for shutting down (when
`orrery down` ends all guests: they outlive the daemon)."""

REALM_SYNC = schema(
    {
        "enable-new": flag(True),
        "full": flag(),
        "purge": flag(),
        "remove-vanished": Property(pattern=r"none|(acl|properties|entry)(;(acl|properties|entry))*", default="none"),
        "scope": enum("users", "groups", "both"),
    }
)

TFA = schema(
    {
        "type": enum("yubico", "oath", optional=False),
        "digits": Property(type="integer", minimum=6, maximum=8, default=6),
        "id": Property(),
        "key": Property(),
        "step": Property(type="integer", minimum=10, default=30),
        "url": Property(),
    }
)

REMOTE = schema(
    {
        "apitoken": Property(optional=False),
        "host": Property(format="address", optional=False),
        "fingerprint": Property(pattern=r"([A-Fa-f0-9]{2}:){31}[A-Fa-f0-9]{2}"),
        "port": Property(type="integer", minimum=1, maximum=65535),
    },
    rule=_remote_rule,
)

_REBALANCE = "ha-auto-rebalance"
CRS = schema(
    {
        "ha": enum("basic", "static", "dynamic", default="basic"),
        "ha-auto-rebalance": flag(False),
        "ha-auto-rebalance-hold-duration": Property(type="number", minimum=0, default=3, requires=_REBALANCE),
        "ha-auto-rebalance-margin": Property(type="number", minimum=0, default=0.1, requires=_REBALANCE),
        "ha-auto-rebalance-method": enum("bruteforce", "topsis", default="bruteforce", requires=_REBALANCE),
        "ha-auto-rebalance-threshold": Property(type="number", minimum=0, default=0.3, requires=_REBALANCE),
        "ha-rebalance-on-start": flag(False),
    }
)

HA = schema(
    {"shutdown_policy": enum("freeze", "failover", "conditional", "migrate", default="conditional", optional=False)}
)

MIGRATION = schema(
    {
        "type": Property(enum=("secure", "insecure"), default="secure", default_key=True, optional=False),
        "network": Property(format="CIDR"),
    }
)

NEXT_ID = schema(
    {"lower": Property(type="integer", default=100), "upper": Property(type="integer", default=1_000_000)},
    rule=_next_id_rule,
)

NOTIFY = schema(
    {
        "fencing": enum("always", "never"),
        "package-updates": enum("auto", "always", "never", default="auto"),
        "replication": enum("always", "never"),
        "target-fencing": Property(),
        "target-package-updates": Property(),
        "target-replication": Property(),
    }
)

TAG_STYLE = schema(
    {
        "case-sensitive": flag(False),
        "color-map": Property(pattern=rf"{_TAG_COLOR}(;{_TAG_COLOR})*"),
        "ordering": enum("config", "alphabetical", default="alphabetical"),
        "shape": enum("full", "circle", "dense", "none", default="circle"),
    }
)

U2F = schema({"appid": Property(), "origin": Property()})

USER_TAG_ACCESS = schema(
    {
        "user-allow": enum("none", "list", "existing", "free", default="free"),
        "user-allow-list": Property(pattern=rf"{_TAG}(;{_TAG})*"),
    }
)

WEBAUTHN = schema({"allow-subdomains": flag(True), "id": Property(), "origin": Property(), "rp": Property()})

PROPERTY_FORMATS: dict[str, PropertyString] = {
    "$bwlimit": BWLIMIT,
    "$crs": CRS,
    "$ha": HA,
    "$migration": MIGRATION,
    "$next-id": NEXT_ID,
    "$notify": NOTIFY,
    "$tag-style": TAG_STYLE,
    "$u2f": U2F,
    "$user-tag-access": USER_TAG_ACCESS,
    "$webauthn": WEBAUTHN,
    "proxmox-remote": REMOTE,
    "prune-backups": PRUNE_BACKUPS,
    "pve-startup-order": STARTUP,
    "pve-tfa-config": TFA,
    "realm-sync-options": REALM_SYNC,
}
"""Schemas by the format's name in the API description; `$` marks those that have no registered name there."""
