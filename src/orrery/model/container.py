# SPDX-License-Identifier: AGPL-3.0-or-later
"""What may be said about a container: checking values, rules between options, who may set what.

The table itself is `CONTAINER_OPTIONS`, typed views are in `orrery.model.container_devices`.
"""

from collections.abc import Callable, Mapping

from orrery.model import idmap
from orrery.model.container_devices import parse_entrypoint, parse_features, parse_idmap, parse_mount, parse_nic
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.container_properties import FEATURES
from orrery.model.guest_options import Requirement
from orrery.model.values import Value

ALLOCATE = "VM.Allocate"
MODIFY_NODE = Requirement(("Sys.Modify",), "/")
FIXED = ("unprivileged",)
"""Options that hold for a container's life: another value would leave its files with the wrong owners."""

REQUIRED = ("rootfs",)


def is_mount(key: str) -> bool:
    """Whether a key names the root file system or a mount point (unused volumes not counted)."""
    return key == "rootfs" or is_mount_point(key)


def is_mount_point(key: str) -> bool:
    """Whether a key is `mpN`."""
    indexed = CONTAINER_OPTIONS.expand(key)
    return indexed is not None and indexed[0] == "mp"


def validate_options(
    options: Mapping[str, str], *, sort_tags: bool = True, case_sensitive_tags: bool = False
) -> dict[str, str]:
    """Values in canonical text; ParameterError with all faults by parameter."""
    canonical = CONTAINER_OPTIONS.validate(
        options, check=_check, sort_tags=sort_tags, case_sensitive_tags=case_sensitive_tags
    )
    if "idmap" in canonical:
        canonical["idmap"] = idmap.canonical(canonical["idmap"])
    return canonical


def unsupported(options: Mapping[str, str]) -> dict[str, str]:
    """What this version knows but does not act on, by parameter; values that equal the default are fine.

    The options must have passed `validate_options`.
    """
    return CONTAINER_OPTIONS.unsupported(options)


def check_container(options: Mapping[str, str]) -> dict[str, str]:
    """Faults between the options of a whole container, by parameter; empty when it could be built.

    The options must have passed `validate_options`.
    """
    errors: dict[str, str] = {}
    for key in REQUIRED:
        if key not in options:
            errors[key] = "property is missing and it is not optional"
    if "idmap" in options and options.get("unprivileged") != "1":
        errors["idmap"] = "a privileged container has no map of ids; it needs unprivileged=1"
    _check_mounts(options, errors)
    _check_once(options, "net", "name", lambda text: parse_nic(text).name, errors)
    _check_once(options, "dev", "path", lambda text: text.partition(",")[0].removeprefix("path="), errors)
    return errors


def fixed_faults(changes: Mapping[str, str | None], current: Mapping[str, str]) -> dict[str, str]:
    """Why changes of an existing container cannot be, by parameter; a value of None deletes the option."""
    errors: dict[str, str] = {}
    for key, value in changes.items():
        option = CONTAINER_OPTIONS.find(key)
        default = option.default if option is not None else None
        if key in FIXED and (value or default) != current.get(key, default):
            errors[key] = f"unable to modify read-only option: '{key}'"
        elif key in REQUIRED and not value:
            errors["delete"] = f"unable to delete required option '{key}'"
        elif key == "rootfs" and value is not None and _volume(value) != _volume(current.get(key, value)):
            errors[key] = "another volume cannot become the root file system; move or resize the volume instead"
    return errors


def root_only(key: str, value: str | None, old: str | None = None, *, unprivileged: bool = True) -> str | None:
    """Why only root@pam may set (or, with value None, delete) this, as a message; None when privileges are enough.

    Reserved is what reaches the host: hook scripts, devices, paths of the host, features that open its kernel, and
    which of its ids a container has.
    """
    option = CONTAINER_OPTIONS.find(key)
    if option is None or option.root_only:
        return f"only root can set '{key}' config"
    if is_mount(key):
        for text, verb in ((value, "set"), (old, "change")):
            source = parse_mount(key, text).source if text is not None else "volume"
            if source != "volume":
                return f"only root@pam can {verb} a mount point of type {source} ('{key}')"
    if key == "features":
        if not unprivileged:
            return "changing feature flags for privileged container is only allowed for root@pam"
        if _changed_features(value, old) - {"nesting"}:
            return "changing feature flags (except nesting) is only allowed for root@pam"
    if key == "idmap" and any(isinstance(parse_idmap(text), idmap.IdMap) for text in (value, old) if text is not None):
        return "only root@pam can say which ids of the host a container has; others may set 'shared' or 'own'"
    return None


def privileges_for(
    key: str, value: str | None, old: str | None = None, *, unprivileged: bool = True
) -> tuple[Requirement, ...]:
    """What a user other than root needs to set an option to a value, or (None) to delete it.

    Reserved options need root (`root_only`) and nothing else is listed for them. Space on storages is not judged here.
    """
    option = CONTAINER_OPTIONS.find(key)
    if option is None or option.root_only:
        return ()
    own = Requirement((option.privilege,))
    if key == "features":
        return (Requirement((ALLOCATE,)),) if _changed_features(value, old) else ()
    if key == "startup" or (key == "unprivileged" and value == "0"):
        return (own, MODIFY_NODE)
    return (own,)


def _check(key: str, value: str) -> None:
    """Raises ValueError for what the table cannot know of a value."""
    if key == "idmap":
        idmap.canonical(value)
    elif key == "entrypoint":
        parse_entrypoint(value)
    elif is_mount(key):
        parse_mount(key, value)
    elif key == "features" and "mount" in FEATURES.parse(value) and not parse_features(value).mount:
        raise ValueError("mount names no file system")


def _check_mounts(options: Mapping[str, str], errors: dict[str, str]) -> None:
    places: dict[str, str] = {}
    volumes: dict[str, str] = {}
    for key in sorted(key for key in options if is_mount(key)):
        mount = parse_mount(key, options[key])
        if mount.mp in places:
            errors[key] = f"'{mount.mp}' is the mount path of '{places[mount.mp]}' already"
        places.setdefault(mount.mp, key)
        if mount.volume is not None and mount.new is None:
            name = str(mount.volume)
            if name in volumes:
                errors[key] = f"volume '{name}' is that of '{volumes[name]}' already"
            volumes.setdefault(name, key)


def _check_once(
    options: Mapping[str, str], base: str, what: str, read: Callable[[str], str], errors: dict[str, str]
) -> None:
    """Refuses numbered options that say the same where each must say something else."""
    seen: dict[str, str] = {}
    for key, _, text in CONTAINER_OPTIONS.each(options, base):
        value = read(text)
        if value in seen:
            errors[key] = f"{what} '{value}' is that of '{seen[value]}' already"
        seen.setdefault(value, key)


def _changed_features(value: str | None, old: str | None) -> set[str]:
    """The features that a change turns on or off; one that is named with its default is not set."""

    def read(text: str | None) -> dict[str, Value]:
        values = FEATURES.parse(text) if text else {}
        return {key: each for key, each in values.items() if each is not False}

    before, after = read(old), read(value)
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def _volume(text: str) -> str:
    return text.partition(",")[0].removeprefix("volume=")
