# SPDX-License-Identifier: AGPL-3.0-or-later
"""The reference pages say what the code says, and the script that writes them sees everything."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orrery.access import rules
from orrery.api.routes import load_routes
from orrery.cli.main import NOUNS
from orrery.model.container_options import CONTAINER_OPTIONS
from orrery.model.guest_options import OptionTable
from orrery.model.machine_options import MACHINE_OPTIONS
from orrery.model.options import CLUSTER_OPTIONS
from orrery.model.storage import STORAGE_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "packaging" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module


reference = load_reference()


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_a_page_says_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text() == reference.page(name), "run `make docs`"


def test_stale_pages_are_found(tmp_path: Path) -> None:
    assert reference.stale(FOLDER) == []
    for name in reference.PAGES:
        (tmp_path / name).write_text(reference.page(name))
    (tmp_path / "errors.md").write_text("old")
    (tmp_path / "api.md").unlink()
    (tmp_path / "gone.md").write_text("a page that nothing writes any more")
    assert reference.stale(tmp_path) == ["api.md", "errors.md", "gone.md"]
    assert reference.stale(tmp_path / "missing") == sorted(reference.PAGES)


def test_every_method_has_a_row() -> None:
    page = reference.page("api.md")
    for endpoint in load_routes():
        assert f"| `{endpoint.verb} {endpoint.path}` |" in page


def test_every_verb_has_a_section() -> None:
    sections = re.findall(r"^### orrery (\S+) \S+$", reference.page("cli.md"), re.MULTILINE)
    assert set(sections) == NOUNS.keys() - {"init", "serve", "down", "launch"}


def test_every_option_has_a_meaning_and_every_meaning_an_option() -> None:
    meanings = reference.MEANINGS
    for guest, options in (("machine", MACHINE_OPTIONS), ("container", CONTAINER_OPTIONS)):
        assert meanings[guest].keys() == {name for name, each in options.items() if each.support == "yes"}
    assert meanings["storage"].keys() <= STORAGE_OPTIONS.keys()
    assert meanings["cluster"].keys() == CLUSTER_OPTIONS.keys()


@pytest.mark.parametrize(("guest", "options"), [("machine", MACHINE_OPTIONS), ("container", CONTAINER_OPTIONS)])
def test_every_part_of_an_option_has_a_meaning(guest: str, options: OptionTable) -> None:
    for name, schemas in reference.part_tables(options).items():
        parts = {
            part
            for schema in schemas.values()
            for part, rule in schema.properties.items()
            if rule.alias is None and rule.support == "yes" and part.split("_")[0] not in reference.LIMITS
        }
        assert reference.MEANINGS[f"{guest}-parts"][name].keys() == parts, name


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (rules.World(), "nobody is asked"),
        (rules.Perm("/vms/{vmid}", ("A", "B")), "A and B on `/vms/{vmid}`"),
        (rules.Perm("/", ("A", "B"), any=True), "A or B on `/`"),
        (
            rules.AllOf((rules.Perm("/", ("A",)), rules.AnyOf((rules.RootOnly(), rules.Everyone())))),
            "A on `/` and (root@pam or any login)",
        ),
    ],
)
def test_rules_in_words(rule: rules.Rule, words: str) -> None:
    assert reference.permission(rule) == words


def test_a_bar_does_not_end_a_cell() -> None:
    assert reference.table(("A",), [("`a|b`",)]) == "| A |\n| --- |\n| `a\\|b` |\n"
