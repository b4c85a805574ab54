# SPDX-License-Identifier: AGPL-3.0-or-later
"""The daemon's own nouns find the node by ORRERY_ROOT as the others do: otherwise they would touch another node."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orrery.cli.main import application
from orrery.errors import AlreadyExists


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORRERY_ROOT", str(tmp_path))
    return tmp_path


def test_serve(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: become.append(words))
    assert CliRunner().invoke(application(["serve"]), ["serve"]).exit_code == 0
    assert [words[-2] for words in become] == [str(root)]


def test_init(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/node.json").touch()
    password = root / "password"
    password.write_text("long enough\n")
    arguments = ["init", "--admin-password-file", str(password)]
    error = CliRunner().invoke(application(["init"]), arguments).exception
    assert isinstance(error, AlreadyExists)
    assert str(root / "etc/node.json") in error.message
