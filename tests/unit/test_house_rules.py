# SPDX-License-Identifier: AGPL-3.0-or-later
"""The rules of the house hold in this checkout, and the script that checks them sees what it should."""

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import orrery

ROOT = Path(__file__).resolve().parents[2]
HEADER = "# SPDX-License-Identifier: AGPL-3.0-or-later\n"


def load_rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house_rules", ROOT / "packaging" / "house_rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house_rules"] = module
    spec.loader.exec_module(module)
    return module


house_rules = load_rules()


def findings(root: Path, path: str, text: str) -> list[tuple[str, bool]]:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return [(finding.rule, finding.advice) for finding in house_rules.check_file(root, path)]


def test_this_checkout_keeps_the_rules() -> None:
    broken = [str(finding) for finding in house_rules.check(ROOT) if not finding.advice]
    assert broken == []


def test_a_good_file_passes(tmp_path: Path) -> None:
    assert findings(tmp_path, "src/disk.py", HEADER + "def size() -> int:\n    return 1\n") == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("a.py", HEADER + "x = 1\n" * 600, ("file-length", False)),
        ("a.py", HEADER + "x = 1\n" * 450, ("file-length", True)),
        ("a.py", HEADER + "def f():\n" + "    x = 1\n" * 80, ("function-length", False)),
        ("a.py", HEADER + "def f():\n" + "    x = 1\n" * 50, ("function-length", True)),
        ("a.py", HEADER + "async def f():\n" + "    x = 1\n" * 80, ("function-length", False)),
        ("a.py", HEADER + "def f(:\n", ("syntax", False)),
        ("a.py", "x = 1\n", ("licence", False)),
        ("a.sh", "#!/bin/sh\necho\n", ("licence", False)),
        ("net/utils.py", HEADER, ("name", False)),
        ("net_helpers/x.py", HEADER, ("name", False)),
        ("disk_manager.py", HEADER, ("name", False)),
        ("page.md", "see /" + "work/main\n", ("local-path", False)),
        ("page.md", "see .." + "/shared/facts\n", ("local-path", False)),
        ("a.py", HEADER + "# TO" + "DO: later\n", ("unfinished", False)),
        ("uv.lock", 'url = "https://mirror.example/simple"\n', ("registry", False)),
        ("packaging/x.txt", "--index-url https://user:secret@mirror.example/simple\n", ("registry", False)),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, path: str, text: str, expected: tuple[str, bool]) -> None:
    assert expected in findings(tmp_path, path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "https://example.org is a fine address in a text; /usr/share/network/ and homework/ too\n"),
        ("uv.lock", 'url = "https://files.pythonhosted.org/x.whl"\n'),
        ("web/src/generated/schema.ts", "x\n" * 900),
        ("logo.png", "\x89PNG"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, path: str, text: str) -> None:
    assert findings(tmp_path, path, text) == []


def test_an_exception_lets_through_and_must_be_needed() -> None:
    finding = house_rules.Finding("a.py", 700, "file-length", "too long")
    needed = {"file-length a.py": 2}
    assert list(house_rules.apply_exceptions([finding], needed)) == []
    assert list(house_rules.apply_exceptions([finding], {})) == [finding]
    left = list(house_rules.apply_exceptions([], needed))
    assert [(left[0].rule, left[0].line)] == [("exception", 2)]


def test_the_exception_list_has_not_grown() -> None:
    assert len(house_rules.read_exceptions(ROOT)) == 0


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == orrery.__version__


def test_packages_are_listed_with_a_reason() -> None:
    for name in ("debian-packages.txt", "debian-packages-test.txt"):
        rows = [line for line in (ROOT / "packaging" / name).read_text().splitlines() if line and line[0] != "#"]
        assert rows
        assert all(len(row.split(maxsplit=1)) == 2 for row in rows)
