# SPDX-License-Identifier: AGPL-3.0-or-later
"""Guest configurations: text form, changes, pending, snapshots, records."""

import hashlib
import time
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.errors import Corrupt, NotFound, ParameterError
from orrery.model.guest import GuestConfig, GuestRecord, SnapshotSection

WEB = dedent("""\
    #Web server%3A 10 %25 of the load
    #
    #owner%3A Zo%C3%AB
    agent: 1
    boot: order=scsi0;net0
    cores: 2
    memory: 2048
    meta: creation-qemu=9.2.0,ctime=1790000000
    name: web
    net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
    parent: before-upgrade
    scsi0: local:100/vm-100-disk-0.qcow2,iothread=1,size=32G
    scsihw: virtio-scsi-single
    something-new: kept as it is

    [PENDING]
    delete: balloon,!net1
    memory: 4096

    [special:cloudinit]
    name: web

    [before-upgrade]
    #works
    cores: 1
    memory: 1024
    snaptime: 1790000001
    """)


def test_golden_text_round_trips() -> None:
    config = GuestConfig.from_text(WEB)
    assert config.to_text() == WEB
    assert config.description == "Web server: 10 % of the load\n\nowner: Zoë"
    assert config.options["something-new"] == "kept as it is"
    assert config.pending == {"memory": "4096"}
    assert config.pending_deletes == {"balloon": False, "net1": True}
    assert config.special == {"cloudinit": {"name": "web"}}
    assert config.snapshots["before-upgrade"].taken == 1790000001
    assert config.snapshots["before-upgrade"].parent is None
    assert config.snapshots["before-upgrade"].description == "works"
    assert config.digest() == hashlib.sha1(WEB.encode(), usedforsecurity=False).hexdigest()


def test_foreign_spellings_are_read() -> None:
    config = GuestConfig.from_text(
        "cores:2 \r\n\nmemory:   512\n#late note\nempty:\n[pending]\ndelete: a b;!c\n".replace("\r", "")
    )
    assert config == GuestConfig(
        {"cores": "2", "memory": "512"}, "late note", pending_deletes={"a": False, "b": False, "c": True}
    )
    assert GuestConfig.from_text("description: a%3Ab\n").description == "a:b"


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "cores 2",
        "Cores: 2",
        ": 2",
        "cores: 2\ncores: 3",
        "[a]\n[a]",
        "[PENDING]\n[pending]",
        "[a b]",
        "[a",
        "[]",
        "a: \x00",
        "a: b\rc",
        "#%FF",
        "[PENDING]\ndelete: ../x",
        "\x7fELF",
        "description: %C3",
    ],
)
def test_garbage_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt, match="the disk is not a guest configuration"):
        GuestConfig.from_text(text, "the disk")


def test_digest_follows_every_part() -> None:
    config = GuestConfig.from_text(WEB)
    others = [
        config.with_options({"cores": "3"}),
        config.with_options({"description": "x"}),
        config.with_pending({"cores": "3"}),
        config.without_snapshot("before-upgrade"),
        config.apply_pending(),
    ]
    assert len({config.digest(), *(other.digest() for other in others)}) == 6
    assert config.with_options({"cores": "2"}).digest() == config.digest()


def test_changes_leave_the_old_one_alone() -> None:
    config = GuestConfig({"cores": "2", "name": "a"})
    changed = config.with_options({"cores": " 3 ", "memory": "512", "description": "x", "name": ""})
    assert config.options == {"cores": "2", "name": "a"}
    assert changed.current() == {"cores": "3", "memory": "512", "description": "x"}
    assert (changed.get("description"), changed.get("name"), changed.get("name", "?")) == ("x", None, "?")
    assert changed.with_options({}, ["cores", "description", "nothing"]).current() == {"memory": "512"}


@pytest.mark.parametrize(
    "values", [{"a": "b\nc"}, {"a": "b\0"}, {"a b": "c"}, {"": "c"}, {"[x]": "y"}, {"a": "\ud800"}]
)
def test_what_a_line_cannot_hold_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ParameterError) as caught:
        GuestConfig().with_options(values)
    assert list(caught.value.errors) == list(values)
    with pytest.raises(ParameterError):
        GuestConfig().with_pending(values)
    with pytest.raises(ParameterError):
        GuestConfig().with_snapshot("a", SnapshotSection(values))
    with pytest.raises(ParameterError):
        GuestConfig().with_options({"description": "\ud800"})


def test_pending() -> None:
    config = GuestConfig({"cores": "2", "memory": "512", "net0": "virtio"})
    first = config.with_pending({"memory": "1024", "cores": "2"}, {"net0": True, "net9": False})
    assert (first.pending, first.pending_deletes) == ({"memory": "1024"}, {"net0": True})
    assert first.options == config.options
    second = first.with_pending({"net0": "e1000"}, {"memory": False})
    assert (second.pending, second.pending_deletes) == ({"net0": "e1000"}, {"memory": False})
    assert second.apply_pending().options == {"cores": "2", "net0": "e1000"}
    assert not second.apply_pending().has_pending()
    assert first.revert(["net0"]).pending_deletes == {}
    assert first.revert(["memory"]).pending == {}
    assert not first.with_pending({"memory": "512", "net0": "virtio"}).has_pending()
    described = config.with_pending({"description": "now"})
    assert (described.description, described.pending) == ("now", {})
    assert config.with_pending({"memory": ""}).pending_deletes == {"memory": False}


def test_snapshots() -> None:
    config = GuestConfig().with_snapshot("a", SnapshotSection({"parent": "b"}, "x"))
    assert config.snapshots["a"].parent == "b"
    for name in ("PENDING", "pending", "a b", "special:x", "", "a]", "1a"):
        with pytest.raises(ParameterError):
            config.with_snapshot(name, SnapshotSection())
    with pytest.raises(NotFound, match="snapshot 'b' does not exist"):
        config.without_snapshot("b")


def test_records() -> None:
    record = GuestRecord(100, "qemu", "node1", GuestConfig.from_text(WEB))
    assert GuestRecord.decode(100, record.encode()) == record
    assert record.encode().startswith(b'{"kind":"qemu","node":"node1","conf":"#Web')
    for data in (
        b"",
        b"[]",
        b"{}",
        b'{"kind":"x","node":"n","conf":""}',
        b'{"kind":"qemu","node":1,"conf":""}',
        b"\xff",
        b"null",
    ):
        with pytest.raises(Corrupt, match="guest 100"):
            GuestRecord.decode(100, data)
    with pytest.raises(Corrupt, match="guest 100"):
        GuestRecord.decode(100, b'{"kind":"qemu","node":"n","conf":"nonsense"}')


def test_decoding_ten_thousand_records_is_fast() -> None:
    data = GuestRecord(100, "qemu", "node1", GuestConfig.from_text(WEB)).encode()
    started = time.process_time()
    for vmid in range(10_000):
        GuestRecord.decode(vmid, data)
    assert time.process_time() - started < 2


keys = st.from_regex(r"\A[a-z][a-z0-9_-]{0,8}\Z").filter(lambda key: key not in ("description", "delete"))
line_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip).filter(bool)
options = st.dictionaries(keys, line_text, max_size=6)
free_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,8}\Z").filter(lambda name: name.upper() != "PENDING")
configs = st.builds(
    GuestConfig,
    options,
    free_text,
    options,
    st.dictionaries(keys, st.booleans(), max_size=3),
    st.dictionaries(names, st.builds(SnapshotSection, options, free_text), max_size=3),
    st.dictionaries(names, options, max_size=2),
)


@given(configs)
def test_text_round_trips(config: GuestConfig) -> None:
    text = config.to_text()
    assert GuestConfig.from_text(text) == config
    assert GuestConfig.from_text(text).to_text() == text
    record = GuestRecord(100, "lxc", "n", config)
    assert GuestRecord.decode(100, record.encode()) == record


@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(["a: b", "[x]", "#y", "[PENDING]", "", "delete: a", "z"]), max_size=8).map("\n".join),
    )
)
def test_any_text_is_read_or_corrupt(text: str) -> None:
    try:
        config = GuestConfig.from_text(text)
    except Corrupt:
        return
    assert GuestConfig.from_text(config.to_text()) == config


@given(configs, st.dictionaries(keys, line_text, max_size=4), st.dictionaries(keys, st.booleans(), max_size=3))
def test_changes_keep_the_text_readable(config: GuestConfig, values: dict[str, str], deletes: dict[str, bool]) -> None:
    changed = config.with_pending(values, deletes)
    assert changed.options == config.options
    assert not set(changed.pending) & set(changed.pending_deletes) - set(config.pending_deletes)
    assert GuestConfig.from_text(changed.to_text()) == changed
    applied = changed.apply_pending()
    assert all(applied.options[key] == value for key, value in values.items() if key not in deletes)
    assert all(key not in applied.options for key in deletes)
