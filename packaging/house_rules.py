# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks the rules of the house that no other tool knows: lengths, names, licence headers, what may not be named.

Run without arguments it checks every file that git tracks (or would track) and exits with 1 if a rule is broken.
`--advice` also lists what is longer than it should be, though not yet too long.

`packaging/house-rules-exceptions.txt` names what is let through, one `RULE PATH` each with its reason. An entry that
is not needed any more is itself an error, so the list only shrinks.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LIMIT, FILE_ADVICE = 600, 400
FUNCTION_LIMIT, FUNCTION_ADVICE = 80, 40

EXCEPTIONS = "packaging/house-rules-exceptions.txt"
SOURCE_SUFFIXES = frozenset({".py", ".sh", ".ts", ".js", ".mjs", ".vue", ".css", ".html"})
GENERATED = re.compile(r"(^|/)generated(/|\.|$)|\.d\.ts$|(^|/)locales/")
# A file with such a name says nothing about what belongs in it, so everything ends up there.
EMPTY_NAMES = frozenset({"util", "utils", "helper", "helpers", "common", "manager", "misc", "stuff"})
LICENCE_HEADER = "SPDX-License-Identifier: AGPL-3.0-or-later"

# What belongs to one machine and not to the project.
LOCAL_PATHS = re.compile(r"(?<![\w.$}])/(?:work|farm)/|(?<![\w])\.\.[/]shared\b|/root/[b]rief|[D]EVELOPERS\.md")
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E)\b")
# Files that decide where programs are downloaded from, and the only hosts that they may name.
DOWNLOADERS = re.compile(
    r"(^|/)(uv\.lock|pyproject\.toml|package(-lock)?\.json|\.npmrc|Makefile)$|^packaging/[^/]*\.(txt|in|sh)$|^\.ci/"
)
REGISTRIES = frozenset({"pypi.org", "files.pythonhosted.org", "registry.npmjs.org", "deb.debian.org"})
# Addresses inside package-lock.json that are about money and not about downloads.
HOST = re.compile(r"https?://(?:[^@/\s\"']*@)?([A-Za-z0-9.-]+)")


@dataclass(frozen=True, order=True)
class Finding:
    """One broken rule (or, with `advice`, one that is about to be)."""

    path: str
    line: int
    rule: str
    text: str
    advice: bool = False

    @property
    def key(self) -> str:
        """What an entry of the exception list says to let this through."""
        return f"{self.rule} {self.path}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.rule}] {self.text}"


def check_length(path: str, lines: list[str]) -> Iterator[Finding]:
    """A file is cut by what it knows before it grows past what one can hold in the head."""
    count = len(lines)
    if count > FILE_LIMIT:
        yield Finding(path, count, "file-length", f"{count} lines, at most {FILE_LIMIT}")
    elif count > FILE_ADVICE:
        yield Finding(path, count, "file-length", f"{count} lines, better {FILE_ADVICE}", advice=True)


def check_functions(path: str, text: str) -> Iterator[Finding]:
    """Functions of Python files, measured from `def` to the last line, docstring included."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield Finding(path, error.lineno or 1, "syntax", f"cannot be parsed: {error.msg}")
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LIMIT:
            text = f"{node.name} has {length} lines, at most {FUNCTION_LIMIT}"
            yield Finding(path, node.lineno, "function-length", text)
        elif length > FUNCTION_ADVICE:
            text = f"{node.name} has {length} lines, better {FUNCTION_ADVICE}"
            yield Finding(path, node.lineno, "function-length", text, advice=True)


def check_name(path: str) -> Iterator[Finding]:
    """No part of a path may be a word that fits everything."""
    for part in Path(path).parts:
        stem = part.split(".")[0].lower()
        for word in re.split(r"[_-]", stem):
            if word in EMPTY_NAMES:
                yield Finding(path, 1, "name", f"{part!r} does not say what it holds")


def check_header(path: str, lines: list[str]) -> Iterator[Finding]:
    """The licence stands in the first three lines (a `#!` line or a doctype may come before it)."""
    if lines and not any(LICENCE_HEADER in line for line in lines[:3]):
        yield Finding(path, 1, "licence", f"the first lines lack {LICENCE_HEADER!r}")


def check_words(path: str, lines: list[str]) -> Iterator[Finding]:
    """Neither paths of one machine, nor marks of unfinished work, nor strange hosts to download from."""
    for number, line in enumerate(lines, 1):
        if found := LOCAL_PATHS.search(line):
            yield Finding(path, number, "local-path", f"{found.group()!r} belongs to one machine")
        if found := UNFINISHED.search(line):
            yield Finding(path, number, "unfinished", f"{found.group()}: finish it, or describe it in docs/")
        if not DOWNLOADERS.search(path) or '"funding"' in line:
            continue
        for host in HOST.findall(line):
            if host not in REGISTRIES and not host.startswith(("127.", "localhost")):
                yield Finding(path, number, "registry", f"{host} is none of the registries to download from")


def check_file(root: Path, path: str) -> Iterator[Finding]:
    """Everything about one file; what is not text is only judged by its name."""
    yield from check_name(path)
    try:
        text = (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    lines = text.splitlines()
    if path != "LICENSE":
        yield from check_words(path, lines)
    if Path(path).suffix not in SOURCE_SUFFIXES or GENERATED.search(path):
        return
    yield from check_length(path, lines)
    yield from check_header(path, lines)
    if path.endswith(".py"):
        yield from check_functions(path, text)


def read_exceptions(root: Path) -> dict[str, int]:
    """The exception list: `RULE PATH` and the line that it stands in."""
    file = root / EXCEPTIONS
    entries: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], 1):
        words = line.split("#", 1)[0].split()
        if words:
            entries[" ".join(words[:2])] = number
    return entries


def apply_exceptions(findings: Iterable[Finding], exceptions: dict[str, int]) -> Iterator[Finding]:
    """What is left, and every entry that lets nothing through."""
    unused = dict(exceptions)
    for finding in findings:
        if finding.advice or finding.key not in exceptions:
            yield finding
        else:
            unused.pop(finding.key, None)
    for key, line in unused.items():
        yield Finding(EXCEPTIONS, line, "exception", f"{key!r} is not needed any more: remove it")


def project_files(root: Path) -> list[str]:
    """What git tracks, or would once it is added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=30).stdout
    return sorted(name for name in listing.decode().split("\0") if name and (root / name).is_file())


def check(root: Path) -> list[Finding]:
    """All findings of a checkout, advice included."""
    findings = [finding for path in project_files(root) for finding in check_file(root, path)]
    return sorted(apply_exceptions(findings, read_exceptions(root)))


def main() -> int:
    """Prints what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--advice", action="store_true", help="also list what is longer than it should be")
    arguments = parser.parse_args()
    findings = check(Path(__file__).resolve().parent.parent)
    for finding in findings:
        if arguments.advice or not finding.advice:
            print(f"{'advice: ' if finding.advice else ''}{finding}")
    broken = [finding for finding in findings if not finding.advice]
    if broken:
        print(f"{len(broken)} broken rules", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
