# SPDX-License-Identifier: AGPL-3.0-or-later
"""The program as a whole: every noun loads, help is complete, and bash completes what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orrery.cli.main import NOUNS, application, asked

PROGRAM = Path(sys.executable).with_name("orrery")
COMPLETE = """
eval "$(_ORRERY_COMPLETE=source_bash "$0")"
COMP_WORDS=("orrery" "$@" ) COMP_CWORD=$#
_orrery_completion "$0"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_explains_itself(noun: str) -> None:
    shown = CliRunner().invoke(application([noun]), [noun, "--help"])
    assert shown.exit_code == 0
    assert f"Usage: root {noun}" in shown.output


@pytest.mark.parametrize("noun", NOUNS)
def test_lists_of_verbs_cut_no_sentence(noun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(application([noun]), [noun, "--help"]).output
    assert "..." not in shown.replace("[ARGS]...", "")
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_an_example_that_is_longer_than_the_terminal_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(application(["vm"]), ["vm", "create", "--help"]).output.splitlines()
    first = next(number for number, line in enumerate(lines) if "orrery vm create" in line and "Usage" not in line)
    assert lines[first].endswith(" \\")
    assert lines[first + 1].split()[-1] == "--start"


def test_a_size_with_a_hyphen_is_no_option(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "vm", "resize", "100", "virtio0", "-1G", "--root", tmp_path], capture_output=True, text=True
    )
    assert "can only grow" in done.stderr
    assert "No such option" not in done.stderr


def test_help_names_every_noun_without_loading_any() -> None:
    code = "import sys; from orrery.cli.main import application, NOUNS; application([]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {f"orrery.cli.{noun}" for noun in NOUNS} & set(loaded)
    shown = CliRunner().invoke(application([]), ["--help"]).output
    assert all(f"\n  {noun} " in shown and text in shown for noun, text in NOUNS.items())


def test_a_noun_that_was_not_loaded_does_nothing() -> None:
    assert CliRunner().invoke(application([]), ["vm"]).exit_code != 0


@pytest.mark.parametrize(
    ("arguments", "environment", "noun"),
    [
        (["vm", "list"], {}, ["vm"]),
        (["--", "vm"], {}, ["vm"]),
        (["--version"], {}, []),
        ([], {"_ORRERY_COMPLETE": "complete_bash", "COMP_WORDS": "orrery\nvm\nst"}, ["vm"]),
        ([], {"_ORRERY_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "orrery task "}, ["task"]),
        ([], {"_ORRERY_COMPLETE": "source_bash"}, []),
    ],
)
def test_the_noun_that_is_asked_for(arguments: list[str], environment: dict[str, str], noun: list[str]) -> None:
    assert asked(arguments, environment) == noun


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["v"], {"vm"}),
        (["vm", "st"], {"start", "stop", "status"}),
        (["storage", "upload", "local", "--content", ""], {"iso", "vztmpl", "import"}),
        (["vm", "start", "--root", "/nonexistent", ""], {""}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str]) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        ["/bin/bash", "-c", COMPLETE, PROGRAM, *words], env=environment, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split("\n")[:-1]) == expected
    assert done.stderr == ""
