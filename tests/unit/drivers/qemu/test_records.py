# SPDX-License-Identifier: AGPL-3.0-or-later
"""Records of running machines, the users that they run as, and images that QEMU must not get."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.drivers.qemu import facts, launching
from orrery.drivers.qemu.records import MachineRecord, Records, guest_uid
from orrery.errors import Failure
from orrery.system import process
from orrery.system.paths import Paths
from orrery.system.process import Completed, ProcessId

VMIDS = st.integers(100, 999_999_999)
_LAST_RESERVED = 2_147_483_647  # above 2^31 no system assigns users


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths.of(tmp_path)
    made.create()
    return made


def record(pid: int) -> MachineRecord:
    found = process.identity(pid)
    assert found is not None
    return MachineRecord(found, "pc-i440fx-7.2", "7.2.22", "tcg", 1.5)


def folder(paths: Paths, vmid: int) -> Path:
    made = paths.guest_run(vmid)
    made.mkdir()
    return made


@given(VMIDS, VMIDS)
def test_no_two_machines_of_a_root_share_a_user(one: int, other: int) -> None:
    paths = Paths.of(Path("/srv/a"))
    assert (guest_uid(paths, one) == guest_uid(paths, other)) == (one == other)
    assert _LAST_RESERVED < guest_uid(paths, one) < (1 << 32) - 2


def test_equal_machines_of_two_roots_have_different_users() -> None:
    assert guest_uid(Paths.of(Path("/srv/a")), 100) != guest_uid(Paths.of(Path("/srv/b")), 100)


def test_records_are_read_back(paths: Paths) -> None:
    folder(paths, 100)
    written = record(os.getpid())
    Records(paths).write(100, written)
    assert Records(paths).read(100) == written
    assert Records(paths).running() == {100: written}


def test_a_number_that_now_belongs_to_another_is_not_the_machine(paths: Paths) -> None:
    folder(paths, 100)
    alive = record(os.getpid())
    records = Records(paths)
    records.write(100, MachineRecord(ProcessId(alive.process.pid, alive.process.start - 1), "", "", "", 0))
    assert records.read(100) is None
    assert records.running() == {}


def test_a_new_record_replaces_what_was_remembered(paths: Paths) -> None:
    folder(paths, 100)
    records = Records(paths)
    records.write(100, MachineRecord(ProcessId(1 << 22, 1), "", "", "", 0))
    assert records.read(100) is None
    records.write(100, record(os.getpid()))
    assert records.read(100) == record(os.getpid())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": 1}', '{"process": {"pid": "x", "start": 1}}'])
def test_damaged_records_are_of_nobody(paths: Paths, text: str) -> None:
    (folder(paths, 100) / "process.json").write_text(text)
    assert Records(paths).read(100) is None


def test_foreign_things_in_the_folder_are_ignored(paths: Paths) -> None:
    (paths.guests_run / "lost+found").mkdir()
    (paths.guests_run / "100").write_text("no folder")
    assert Records(paths).running() == {}


def test_running_machines_are_not_forgotten(paths: Paths) -> None:
    folder(paths, 100)
    records = Records(paths)
    records.write(100, record(os.getpid()))
    with pytest.raises(Failure, match="VM 100 is running"):
        records.forget(100)
    records.write(100, MachineRecord(ProcessId(1 << 22, 1), "", "", "", 0))
    records.forget(100)
    records.forget(100)
    assert not paths.guest_run(100).exists()


# --- images


def header(*, magic: bytes = b"QFI\xfb", version: int = 3, incompatible: int = 0) -> bytes:
    return struct.pack(">4sI64xQ", magic, version, incompatible)


def test_images_that_are_sound() -> None:
    launching.check_qcow2(header(), Path("x"))
    launching.check_qcow2(header(incompatible=1), Path("x"))
    launching.check_qcow2(header(version=2, incompatible=4), Path("x"))  # version 2 has no such field


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "too short"),
        (b"QFI\xfb", "too short"),
        (header(magic=b"XXXX"), "is not a qcow2 image"),
        (header(incompatible=4), "keeps its data in another file"),
    ],
)
def test_images_that_qemu_does_not_get(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.qcow2"
    path.write_bytes(data)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Failure, match=words):
        launching.open_file(path, writable=True, image="qcow2")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.binary(max_size=200))
def test_no_header_makes_trouble(data: bytes) -> None:
    try:
        launching.check_qcow2(data, Path("x"))
    except Failure:
        return
    assert data.startswith(b"QFI\xfb")


def test_last_words_are_short(tmp_path: Path) -> None:
    assert launching.said(tmp_path) == ""
    (tmp_path / "qemu.log").write_text("x" * 10_000 + "\nqemu-system-x86_64: one\nqemu-system-x86_64: two\n")
    said = launching.said(tmp_path)
    assert said.endswith("\none\ntwo")
    assert len(said) < 5000


# --- the host


def test_version_is_asked_for_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda name: "/bin/sh")
    text = b"QEMU emulator version 9.2.1 (Debian 1:9.2.1)\nCopyright"
    with process.recording(lambda call: Completed(call.argv, 0, text)) as recorder:
        assert facts.detect(paths).version == "9.2.1"
        assert facts.detect(paths).machine_version == "9.2"
    assert [call.argv for call in recorder.calls] == [("/bin/sh", "-version")]


def test_qemu_that_tells_no_version(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda name: "/bin/sh")
    with process.recording(lambda call: Completed(call.argv, 0, b"hello")), pytest.raises(Failure, match="hello"):
        facts.detect(paths)


def test_missing_qemu(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "BINARY", "qemu-system-none")
    with pytest.raises(Failure, match="'qemu-system-none' is not installed"):
        facts.detect(paths)


def test_kvm_is_judged_by_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert facts._why_not(None) == "the processor has neither vmx nor svm"
    monkeypatch.setattr(facts, "_KVM", tmp_path / "kvm")
    assert "is missing" in (facts._why_not("svm") or "")
    (tmp_path / "kvm").touch()
    assert facts._why_not("svm") is None
