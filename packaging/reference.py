# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writes the reference pages, docs/reference/*.md, from the code: what the program declares is what the pages say.

packaging/reference.py           writes them
packaging/reference.py --check   exits with 1 when one of them is not what the code says
"""

import argparse
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from orrery import errors
from orrery.access import rules
from orrery.api.endpoint import Endpoint
from orrery.api.parameters import Declared
from orrery.api.routes import load_routes
from orrery.cli.main import NOUNS, application
from orrery.cli.verbs import PANEL
from orrery.model.access import BUILTIN_ROLES, PRIVILEGES
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.guest_options import Option, OptionTable
from orrery.model.machine_options import MACHINE_OPTIONS
from orrery.model.options import CLUSTER_OPTIONS
from orrery.model.propertystring import Property, PropertyString
from orrery.model.storage import STORAGE_OPTIONS, SUPPORTED_TYPES, StorageOption
from orrery.model.values import Scalar, print_value

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
MEANINGS: Mapping[str, Any] = tomllib.loads((Path(__file__).parent / "reference-meanings.toml").read_text())
"""What options mean, in words: `machine`, `container`, `storage`, `cluster`, and `machine-parts`, `container-parts` by
the option that has them."""

MADE = "<!-- Made from the code by `make docs`; changes made here are lost. -->\n"

CHANGES = {
    "stored": "at once",
    "live": "at once",
    "disk": "hotplug `disk`",
    "nic": "hotplug `network`",
    "restart": "next start",
}
"""What a change of a machine's option means while the machine runs."""

CONTAINER_CHANGES = CHANGES | {"disk": "new ones at once", "nic": "at once", "device": "at once"}
"""The same for containers."""

LONGEST_PATTERN = 48
"""Regular expressions that are longer explain nothing; `orrery api schema` has them."""

DISKS = ("ide[n]", "sata[n]", "scsi[n]", "virtio[n]")
MOUNTS = ("rootfs", "mp[n]")
LIMITS = {"bps": "Bytes per second", "iops": "Requests per second", "mbps": "Megabytes per second"}

FAMILIES: Mapping[frozenset[str], str] = {
    frozenset(MACHINE_OPTIONS): "[options of a machine](machine-options.md)",
    frozenset(CONTAINER_OPTIONS): "[options of a container](container-options.md)",
    frozenset(CLUSTER_OPTIONS): "[options of the cluster](cluster-options.md)",
    frozenset(STORAGE_OPTIONS): "[options of a storage](storage-options.md)",
}
"""Tables of options that a method may take as a whole, with the page that lists them."""


# Markdown -------------------------------------------------------------------------------------------------------------


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a `|` in a cell is written so that it does not end the cell."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: object) -> str:
    """Text in the typewriter face."""
    return f"`{text}`"


def codes(words: Iterable[object]) -> str:
    """Words in the typewriter face, separated by commas."""
    return ", ".join(map(code, words))


def summary(text: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((text or "").partition("\n\n")[0].split())


# Values ---------------------------------------------------------------------------------------------------------------


def kind(rule: Scalar) -> str:
    """What a value may be, in a few words."""
    if rule.enum is not None:
        return " ".join(map(code, rule.enum))
    words = {"string": "text", "integer": "whole number", "boolean": "0 or 1"}.get(rule.type, rule.type)
    if rule.format is not None:
        words = f"text, {code(rule.format)}"
    elif rule.pattern is not None and len(rule.pattern) <= LONGEST_PATTERN:
        words = f"text like {code(rule.pattern)}"
    low, high = (None if limit is None else print_value(limit) for limit in (rule.minimum, rule.maximum))
    if low is not None:
        words += f", {low} to {high}" if high is not None else f", at least {low}"
    elif high is not None:
        words += f", at most {high}"
    return words if rule.max_length is None else f"{words}, at most {rule.max_length} characters"


def default(rule: Scalar) -> str:
    """The value that holds when nothing is said."""
    return "" if rule.default is None else code(print_value(rule.default))


def parts(schemas: Mapping[str, PropertyString], meanings: Mapping[str, str] | None) -> str:
    """The parts of a property string as a table; options that share most of their parts share the table."""
    aliases: dict[str, list[str]] = {}
    found: dict[str, Property] = {}
    for schema in schemas.values():
        for name, rule in schema.properties.items():
            if rule.alias is None:
                found.setdefault(name, rule)
            elif rule.key_alias is None and name not in aliases.setdefault(rule.alias, []):
                aliases[rule.alias].append(name)
    rows = []
    for name, rule in sorted(found.items()):
        having = [option for option, schema in schemas.items() if name in schema.properties]
        remarks = ". ".join(_remarks(rule, aliases.get(name, ()), having if len(having) < len(schemas) else ()))
        row = (code(name), kind(rule), default(rule), remarks)
        rows.append((*row, "" if rule.support != "yes" else _meaning(meanings, name)) if meanings is not None else row)
    columns = ("Part", "Values", "Default", "Remarks", *(("Meaning",) if meanings is not None else ()))
    return table(columns, rows)


def _meaning(meanings: Mapping[str, str], name: str) -> str:
    """What a part means. Limits of disks are many and follow one pattern."""
    unit, *rest = name.split("_")
    if unit not in LIMITS:
        return meanings[name]
    if "length" in rest:
        return "Seconds that a burst may last."
    way = {"rd": ", reading", "wr": ", writing"}.get(rest[0] if rest else "", "")
    return f"{LIMITS[unit]}{way}{', in a burst' if 'max' in rest else ''}."


def _remarks(rule: Property, aliases: Sequence[str], only: Sequence[str]) -> Iterator[str]:
    if rule.default_key:
        yield "its name may be left out"
    if not rule.optional:
        yield "required"
    if aliases:
        yield f"also {codes(aliases)}"
    if only:
        yield f"only {codes(only)}"
    if rule.requires is not None:
        yield f"only beside {code(rule.requires)}"
    if rule.support != "yes":
        yield "**not yet**"
    if rule.later_values:
        yield f"**not yet**: {codes(rule.later_values)}"


# Pages ----------------------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Every method with what it takes and who may call it."""
    registry = load_routes()
    sections: dict[str, list[Endpoint]] = {}
    for endpoint in sorted(registry, key=lambda e: (e.path, e.verb)):
        sections.setdefault(_section(endpoint), []).append(endpoint)
    text = [
        "# Methods of the API\n",
        "Paths stand below `https://NODE:8006/api2/json`. Parameters in **bold** are required; those that are part of",
        "the path are not repeated. `(task)` marks methods that answer with the UPID of a task. Everything else that",
        "the compatible API knows answers 501.\n",
        "Permissions: `PRIVILEGE on PATH`. *Any login* means that the method itself limits what is shown or done to",
        "what the caller may see. [Privileges and roles](privileges.md) lists the privileges. The same in a form for",
        "programs: `orrery api schema` prints an OpenAPI 3.1 document.\n",
    ]
    for name, endpoints in sorted(sections.items()):
        rows = [(_method(each), _parameters(each), permission(each.permission), _does(each)) for each in endpoints]
        text += [f"## {name}\n", table(("Method", "Parameters", "Permission", "What it does"), rows)]
    return "\n".join(text)


def _section(endpoint: Endpoint) -> str:
    """The part of the tree in which a method is listed."""
    first = endpoint.segments[:1]
    if first != ("nodes",):
        return "/" + "".join(first)
    third = endpoint.segments[2:3]
    return "/nodes/{node}/" + third[0] if third and third[0] in ("lxc", "qemu", "storage", "tasks") else "/nodes"


def _method(endpoint: Endpoint) -> str:
    return code(f"{endpoint.verb} {endpoint.path}")


def _does(endpoint: Endpoint) -> str:
    without = "" if endpoint.tokens else " Not for tokens."
    return endpoint.description + (" (task)" if endpoint.task else "") + without


def _parameters(endpoint: Endpoint) -> str:
    declared = {name: each for name, each in endpoint.params.declared().items() if name not in endpoint.names}
    families = []
    for names, link in FAMILIES.items():
        if len(names & declared.keys()) * 2 > len(names):
            declared = {name: each for name, each in declared.items() if name not in names}
            families.append(link)
    return ", ".join([*(_parameter(name, each) for name, each in declared.items()), *families])


def _parameter(name: str, declared: Declared) -> str:
    return f"**{code(name)}**" if declared.required else code(name)


def permission(rule: rules.Rule) -> str:
    """A rule in words."""
    match rule:
        case rules.World():
            return "nobody is asked"
        case rules.Everyone():
            return "any login"
        case rules.RootOnly():
            return "root@pam"
        case rules.Perm(path=path, privs=privileges, any=any_of):
            return f"{(' or ' if any_of else ' and ').join(privileges)} on {code(path)}"
        case rules.PermModify(path=path):
            return f"Permissions.Modify on {code(path)}, or the right to allocate what it names"
        case rules.UseridParam(what="self"):
            return "about oneself"
        case rules.UseridParam():
            return "Realm.AllocateUser on the user's realm"
        case rules.UseridGroup(privs=privileges, groups_param=groups):
            where = "every group given" if groups == "create" else "a group of the user"
            more = " and every group given" if groups == "update" else ""
            return f"{' or '.join(privileges)} on `/access/groups`, or on {where}{more}"
        case rules.AllOf(rules=inner):
            return " and ".join(_nested(each) for each in inner)
        case rules.AnyOf(rules=inner):
            return " or ".join(_nested(each) for each in inner)
    raise TypeError(f"{rule} has no words yet")


def _nested(rule: rules.Rule) -> str:
    return f"({permission(rule)})" if isinstance(rule, rules.AllOf | rules.AnyOf) else permission(rule)


def cli_page() -> str:
    """Every command with its arguments and options."""
    program: Any = get_command(application(list(NOUNS)))
    text = [
        "# The command line\n",
        "`orrery` is a client of the REST API, except for `init`, `serve` and `down`, which are the node itself.",
        "`orrery NOUN VERB --help` prints the same as this page. [Exit codes](errors.md) tell errors apart.\n",
        "## Connection and output\n",
        "Every verb takes these. Without them it speaks to the node of this machine, as root.\n",
        _options(each for each in program.commands["vm"].commands["list"].params if _is_shared(each)),
    ]
    for noun, command in program.commands.items():
        text.append(f"## orrery {noun}\n")
        verbs = getattr(command, "commands", None)
        if verbs is None:
            text.append(_command(f"orrery {noun}", command))
            continue
        text += [f"{NOUNS[noun]}\n"]
        for verb, each in verbs.items():
            text += [f"### orrery {noun} {verb}\n", _command(f"orrery {noun} {verb}", each)]
    return "\n".join(text)


def _is_shared(parameter: Any) -> bool:
    return getattr(parameter, "rich_help_panel", None) == PANEL


def _command(name: str, command: Any) -> str:
    description, _, example = (command.help or "").replace("\b\n", "").replace("\\\n", "").partition("Example:")
    text = f"{summary(description)}\n"
    if example:
        text += f"\n```\n{' '.join(example.split())}\n```\n"
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not _is_shared(each)]
    if arguments:
        rows = ((_argument(each), each.help or "") for each in arguments)
        text += "\n" + table(("Argument", "Meaning"), rows)
    if options:
        text += "\n" + _options(options)
    return text


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = name.strip("[]").removesuffix("]...")
    repeated = "..." if argument.nargs == -1 else ""
    return code(f"{name}{repeated}" if argument.required else f"[{name}]{repeated}")


def _options(options: Iterable[Any]) -> str:
    rows = [(codes([*each.opts, *each.secondary_opts]), _default(each), each.help or "") for each in options]
    return table(("Option", "Default", "Meaning"), rows)


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag and option.secondary_opts:
        return code(option.opts[0] if option.default else option.secondary_opts[0])
    if option.is_flag or option.default in (None, [], ()) or option.name == "node_name":
        return "the host's name" if option.name == "node_name" else ""
    return code(option.default)


def errors_page() -> str:
    """The tree of errors with their codes."""
    text = (
        "# Errors\n\n"
        "Every error is one of these. Over the API it is the HTTP status, with the message as the reason phrase and\n"
        "as `message` in the body; status 400 also has `errors`, one text per parameter. The command line prints the\n"
        "message on standard error and ends with the exit code. A task that fails ends with the message as its\n"
        "status.\n\n"
    )
    rows = [
        (code(each.__name__), code(each.code), str(each.status), str(each.exit_code), summary(each.__doc__))
        for each in sorted(_tree(errors.OrreryError), key=lambda each: each.exit_code)
    ]
    return text + table(("Error", "Code", "HTTP status", "Exit code", "Meaning"), rows)


def _tree(top: type[errors.OrreryError]) -> Iterator[type[errors.OrreryError]]:
    yield top
    for below in top.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _tree(below)


def privileges_page() -> str:
    """Privileges, the built-in roles, and which methods ask for which privilege."""
    used: dict[str, int] = {}
    for endpoint in load_routes():
        for name in sorted(set(_privileges(endpoint.permission))):
            used[name] = used.get(name, 0) + 1
    holders = {name: [role for role, held in BUILTIN_ROLES.items() if name in held] for name in PRIVILEGES}
    rows = [(code(name), str(used.get(name, 0) or ""), codes(holders[name])) for name in PRIVILEGES]
    roles = [(code(role), codes(held) or "nothing; cancels every other role") for role, held in BUILTIN_ROLES.items()]
    return (
        "# Privileges and roles\n\n"
        "A role is a set of privileges; an access control rule gives somebody a role on a path. How rules combine is\n"
        "told in [users and permissions](../guide/access.md).\n\n## Privileges\n\n"
        "*Methods* counts the methods whose declared permission names the privilege; others look at it while they\n"
        "work, such as those that filter lists. Privileges without a number belong to parts that do not exist yet, or\n"
        "are asked for in that way only.\n\n"
        + table(("Privilege", "Methods", "Built-in roles that have it"), rows)
        + "\n## Built-in roles\n\nThey cannot be changed or removed.\n\n"
        + table(("Role", "Privileges"), roles)
    )


def _privileges(rule: rules.Rule) -> Iterator[str]:
    match rule:
        case rules.Perm(privs=privileges) | rules.UseridGroup(privs=privileges):
            yield from privileges
        case rules.UseridParam(what="Realm.AllocateUser"):
            yield "Realm.AllocateUser"
        case rules.PermModify():
            yield "Permissions.Modify"
        case rules.AllOf(rules=inner) | rules.AnyOf(rules=inner):
            for each in inner:
                yield from _privileges(each)


def machine_page() -> str:
    """A machine's options: first the table, then the parts of those that are property strings."""
    head = [
        "# Options of a machine\n",
        "`net[n]` stands for `net0`, `net1` and so on. *Privilege* is what a user needs on `/vms/VMID` to change the",
        "option; *root* means root@pam alone. *Takes effect* is for a running machine: hotplug `disk` means at once if",
        "the machine's `hotplug` option has `disk` and the device can be plugged, else at the next start.\n",
    ]
    notes = ["\nDisks and CD-ROM drives need `VM.Config.Disk` or `VM.Config.CDROM` depending on what is in them.\n"]
    return _guest_page(head, notes, MACHINE_OPTIONS, "machine", CHANGES, part_tables(MACHINE_OPTIONS))


def container_page() -> str:
    """A container's options in the same form."""
    head = [
        "# Options of a container\n",
        "`mp[n]` stands for `mp0`, `mp1` and so on. *Privilege* is what a user needs on `/vms/VMID` to change the",
        "option; *root* means root@pam alone. *Takes effect* is for a running container; what cannot take effect stays",
        "pending until its next start.\n",
    ]
    notes = [
        "\nWhatever the privilege, only root@pam sets mount points that are folders or devices of the host, features",
        "other than `nesting` (and all of those of a privileged container), and entries of `idmap`. `nesting` needs",
        "`VM.Allocate` on the container, `unprivileged=0` and `startup` need `Sys.Modify` on `/`. `unprivileged` holds",
        "for good.\n",
    ]
    tables = part_tables(CONTAINER_OPTIONS)
    return _guest_page(head, notes, CONTAINER_OPTIONS, "container", CONTAINER_CHANGES, tables)


def _guest_page(
    head: list[str],
    notes: list[str],
    options: OptionTable,
    name: str,
    changes: Mapping[str, str],
    tables: Mapping[str, Mapping[str, PropertyString]],
) -> str:
    done = [option for option in options.values() if option.support == "yes"]
    later = [option for option in options.values() if option.support != "yes"]
    rows = [_option_row(option, MEANINGS[name][option.name], changes[option.hotplug]) for option in done]
    text = [
        *head,
        table(("Option", "Meaning", "Values", "Default", "Privilege", "Takes effect"), rows),
        *notes,
        "## Known, not supported yet\n",
        "Setting one of these to anything but its default is refused with status 501 and the option's name:",
        codes(option.name for option in later) + ".\n",
        "## Parts of options\n",
        "An option marked *parts* is a list `part=value,part=value`. A part marked **not yet** is refused like an",
        "option that is not supported yet.\n",
    ]
    for key, schemas in tables.items():
        text += [f"### {', '.join(schemas)}\n", parts(schemas, MEANINGS[f"{name}-parts"].get(key, {}))]
    return "\n".join(text)


def part_tables(options: OptionTable) -> dict[str, dict[str, PropertyString]]:
    """The property strings of the supported options, those of all of a machine's disks together, of mounts too."""
    found: dict[str, dict[str, PropertyString]] = {}
    for name, option in options.items():
        if option.support == "yes" and option.properties is not None and name != "cdrom":
            group = "disk" if name in DISKS else "mount" if name in MOUNTS else name
            found.setdefault(group, {})[name] = option.properties
    return found


def _option_row(option: Option, meaning: str, change: str) -> tuple[str, ...]:
    values = "parts" if option.properties is not None else kind(option.rule)
    if option.later_values:
        values += f"; **not yet**: {codes(option.later_values)}"
    name = f"{code(option.name)} (0 to {option.count - 1})" if option.count else code(option.name)
    return name, meaning, values, default(option.rule), option.privilege or "root", change


def storage_page() -> str:
    """A storage's options by the types that have them."""
    done: list[StorageOption] = []
    later: list[StorageOption] = []
    for option in STORAGE_OPTIONS.values():
        usable = option.support == "yes" and not option.types.isdisjoint(SUPPORTED_TYPES)
        (done if usable else later).append(option)
    text = [
        "# Options of a storage\n",
        f"This version has storages of type {codes(SUPPORTED_TYPES)}. *Fixed* options cannot be changed later.\n",
        table(("Option", "Meaning", "Values", "Default", "Fixed"), map(_storage_row, done)),
        "\n## Known, not supported yet\n",
        "These belong to types that do not exist yet, or are refused by name:",
        codes(option.name for option in later) + ".\n",
    ]
    for option in done:
        if option.properties is not None:
            text += [f"## {option.name}\n", parts({option.name: option.properties}, None)]
    return "\n".join(text)


def _storage_row(option: StorageOption) -> tuple[str, ...]:
    values = "parts" if option.properties is not None else kind(option.rule)
    meaning = MEANINGS["storage"][option.name]
    return code(option.name), meaning, values, default(option.rule), "fixed" if option.fixed else ""


def cluster_page() -> str:
    """The options of the whole installation."""
    rows = []
    text = []
    for name, rule in CLUSTER_OPTIONS.items():
        if isinstance(rule, PropertyString):
            rows.append((code(name), MEANINGS["cluster"][name], "parts", ""))
            text += [f"## {name}\n", parts({name: rule}, None)]
        else:
            rows.append((code(name), MEANINGS["cluster"][name], kind(rule), default(rule)))
    head = [
        "# Options of the cluster\n",
        "Options of the whole installation: `/cluster/options`. Most belong to parts that do not exist yet: they are",
        "kept for them and have no effect.\n",
        table(("Option", "Meaning", "Values", "Default"), rows),
    ]
    return "\n".join([*head, *text])


PAGES: Mapping[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli.md": cli_page,
    "errors.md": errors_page,
    "privileges.md": privileges_page,
    "machine-options.md": machine_page,
    "container-options.md": container_page,
    "storage-options.md": storage_page,
    "cluster-options.md": cluster_page,
}


def page(name: str) -> str:
    """The text of a page as it should be."""
    return MADE + PAGES[name]().rstrip("\n") + "\n"


def stale(folder: Path) -> list[str]:
    """Pages that are missing or not what the code says, and files that are no pages."""
    present = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    wrong = [name for name in PAGES if name not in present or (folder / name).read_text() != page(name)]
    return sorted([*wrong, *(present - PAGES.keys())])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 1 when `--check` finds stale pages."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    if parser.parse_args(arguments).check:
        found = stale(FOLDER)
        for name in found:
            typer.echo(f"docs/reference/{name} is stale: run `make docs`", err=True)
        return 1 if found else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        (FOLDER / name).write_text(page(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
