# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the documents name exists: files and headings that they link to, commands and options that they show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from orrery.cli.main import NOUNS, application

ROOT = Path(__file__).resolve().parents[2]
# Of the design, code blocks are drawings.
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changes/README.md")])
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PROGRAM: Any = get_command(application(list(NOUNS)))


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """Headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def commands(path: Path) -> Iterator[list[str]]:
    """Lines of code blocks that begin with our program, without comments."""
    for block in FENCE.findall(path.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("orrery ") else []
            if words:
                yield words[1 : words.index(">")] if ">" in words else words[1:]


@pytest.mark.parametrize("name", names(DOCUMENTS))
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for link in LINK.findall(prose(path)):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize(
    "name", [name for name in names(DOCUMENTS) if "/design/" not in name and any(commands(ROOT / name))]
)
def test_commands_exist(name: str) -> None:
    for words in commands(ROOT / name):
        if not words[0].startswith("-"):
            understand(words)


def understand(words: list[str]) -> None:
    """Lets the program read a command without carrying it out; fails for what it does not know."""
    command, rest = PROGRAM.commands[words[0]], words[1:]
    if hasattr(command, "commands") and not rest[0].startswith("-"):
        command, rest = command.commands[rest[0]], rest[1:]
    if rest == ["--help"]:
        return
    try:
        command.make_context(words[0], rest)
    except Exception as error:
        # A file that a document speaks of is not here, and need not be.
        if type(error).__name__ == "BadParameter" and "does not exist" in str(error):
            return
        pytest.fail(f"{' '.join(words)}: {error}")


@pytest.mark.parametrize("wrong", ["vm start", "vm start 100 --fast", "vm lift 100", "vm start one", "car list"])
def test_wrong_commands_would_be_noticed(wrong: str) -> None:
    with pytest.raises((pytest.fail.Exception, KeyError)):
        understand(wrong.split())
