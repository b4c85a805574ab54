# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the command line says when there is no way to a node."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from orrery.cli.client import Client, Target
from orrery.errors import Failure, Forbidden, OrreryError

REMOTE = "https://127.0.0.1:1"


def text_of(kind: type[OrreryError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        act()
    return caught.value.message


def test_no_node(tmp_path: Path) -> None:
    assert "start it with `orrery serve`" in text_of(Failure, lambda: Client(Target(tmp_path / "local.sock")))


def test_a_socket_that_a_dead_node_left(tmp_path: Path) -> None:
    path = tmp_path / "local.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert "nobody listens" in text_of(Failure, lambda: Client(Target(path)).call("GET", "/version"))


def test_a_socket_that_others_may_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    assert "only root" in text_of(Forbidden, lambda: Client(Target(tmp_path / "local.sock")))


@pytest.mark.parametrize("content", [None, ""])
def test_files_of_a_login_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    assert str(file) in text_of(Failure, lambda: Client(Target(tmp_path, server=REMOTE, token_file=file)))


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    target = Target(tmp_path, server=REMOTE, ca_file=tmp_path / "missing.pem")
    assert "missing.pem" in text_of(Failure, lambda: Client(target))


def test_a_login_is_needed(tmp_path: Path) -> None:
    assert "--token-file" in text_of(Failure, lambda: Client(Target(tmp_path, server=REMOTE)))
