# SPDX-License-Identifier: AGPL-3.0-or-later
"""Small optical media, read back by a reader that is not the writer."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.drivers.storage.iso9660 import image
from orrery.errors import Failure

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=30).filter(lambda n: n.strip("."))


def read(tmp_path: Path, made: bytes, path: str, view: str) -> bytes:
    file = tmp_path / "made.iso"
    file.write_bytes(made)
    return subprocess.run(["isoinfo", view, "-i", file, "-x", path], capture_output=True, check=True).stdout


@pytest.mark.parametrize("view", ["-R", "-J"])
def test_every_reader_finds_the_same_names(tmp_path: Path, view: str) -> None:
    files = {"user-data": b"one", "openstack/latest/meta_data.json": b"{}" * 4000, "empty": b""}
    made = image("cidata", files)
    assert len(made) % 2048 == 0
    for name, content in files.items():
        assert read(tmp_path, made, f"/{name}", view) == content
    said = subprocess.run(["isoinfo", "-d", "-i", tmp_path / "made.iso"], capture_output=True, text=True, check=True)
    assert "Volume id: cidata\n" in said.stdout
    assert "Joliet with UCS level 3 found" in said.stdout
    assert "Rock Ridge signatures version 1 found" in said.stdout


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(NAMES, st.binary(max_size=5000), max_size=8))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    made = image("config-2", files)
    for name, content in files.items():
        assert read(tmp_path_factory.mktemp("iso"), made, f"/{name}", "-R") == content


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "x" * 65, "ü", "a\nb", "a/b/c/d/e/f/g/h"]
)
def test_paths_that_cannot_be(name: str) -> None:
    with pytest.raises(Failure, match="cannot be the path of a file"):
        image("cidata", {name: b""})


@pytest.mark.parametrize("label", ["", "a label", "x" * 17, "ü", "a/b"])
def test_labels_that_cannot_be(label: str) -> None:
    with pytest.raises(Failure, match="cannot be a medium's label"):
        image(label, {})
