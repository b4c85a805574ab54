# SPDX-License-Identifier: AGPL-3.0-or-later
"""The judge of tar archives."""

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.drivers.storage.archives import (
    BLOCKDEV,
    CHAR,
    FIFO,
    FOLDER,
    LINK,
    SYMLINK,
    archive,
    entry,
)

from orrery.drivers.storage import tarstream
from orrery.drivers.storage.tarstream import TarFilter
from orrery.errors import Failure

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def judged(data: bytes, step: int = 1 << 20, **options: Any) -> tuple[bytes, TarFilter]:
    judge = TarFilter(**options)
    out = b"".join(bytes(part) for at in range(0, len(data), step) for part in judge.feed(data[at : at + step]))
    judge.finish()
    return out, judge


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("step", [1, 511, 513, 4096, 1 << 20])
def test_what_is_harmless_passes_untouched(form: int, step: int) -> None:
    long = "d" * 90 + "/" + "n" * 95 if form == tarfile.USTAR_FORMAT else "d" * 100 + "/" + "n" * 200
    entries = [
        entry("etc", FOLDER),
        entry("etc/file", data=b"x" * 1000, uid=65535, gid=65535),
        entry("etc/exact", data=b"x" * 1024),
        entry("etc/link", LINK, linkname="etc/file"),
        entry("etc/symlink", SYMLINK, linkname="/nowhere"),
        entry("etc/fifo", FIFO),
        entry("line\nbreak", data=b"y"),
        entry(long, data=b"z" * 513),
    ]
    data = archive(entries, form)
    out, judge = judged(data, step)
    assert data.startswith(out)
    assert set(data[len(out) :]) <= {0}
    assert names(out) == [info.name for info, _ in entries]
    assert (judge.entries, judge.skipped, judge.notes) == (len(entries), 0, [])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("step", [1, 700, 1 << 20])
def test_devices_are_left_out(form: int, step: int) -> None:
    long = "dev/" + "n" * (90 if form == tarfile.USTAR_FORMAT else 200)
    data = archive(
        [
            entry("dev", FOLDER),
            entry("./dev/sda", BLOCKDEV, devmajor=8),
            entry("one", data=b"x" * 2000),
            entry(long, CHAR, devmajor=1, devminor=3),
            entry("dev/copy", LINK, linkname="dev/sda"),
            entry("two", data=b"y"),
        ],
        form,
    )
    out, judge = judged(data, step)
    assert names(out) == ["dev", "one", "two"]
    assert judge.skipped == 3
    assert "left out './dev/sda': it is a device" in judge.notes[0]
    assert "dev/copy" in judge.notes[2]


@pytest.mark.parametrize("form", FORMATS)
def test_whiteouts_pass(form: int) -> None:
    """Where Docker ran inside, they say which files of its layers are gone: without them those would be back."""
    data = archive([entry("layer/gone", CHAR), entry("zero", CHAR, devmajor=1), entry("block", BLOCKDEV)], form)
    out, judge = judged(data)
    assert names(out) == ["layer/gone"]
    assert judge.skipped == 2


def test_only_so_many_notes() -> None:
    _, judge = judged(archive(entry(f"dev/{number}", CHAR, devmajor=1) for number in range(100)))
    assert (judge.skipped, len(judge.notes)) == (100, 20)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("ids", [{"uid": 65536}, {"gid": 3_000_000}, {"uid": 1 << 33}])
def test_ids_that_containers_do_not_have(form: int, ids: dict[str, Any]) -> None:
    with pytest.raises(Failure, match=r"'a\?b' belongs to user .* ids up to 65535 only"):
        judged(archive([entry("a\nb", **ids)], form))


def test_global_headers_count() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "70000"}) as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(Failure, match="user 70000"):
        judged(buffer.getvalue())


def test_nothing_is_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes an archive has no say in how much memory its judge takes."""
    monkeypatch.setattr(tarstream, "MAX_LEFT_OUT", 50)
    assert judged(archive(entry(f"dev/{number}", CHAR, devmajor=1) for number in range(50)))[1].skipped == 50
    with pytest.raises(Failure, match="too many devices"):
        judged(archive(entry(f"dev/{number}", CHAR, devmajor=1) for number in range(51)))
    with pytest.raises(Failure, match="absurdly long name"):
        judged(archive([entry("n" * 5000, CHAR, devmajor=1)], tarfile.PAX_FORMAT))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"vendor": "x"}) as tar:
        tar.addfile(tarfile.TarInfo("x"))
    assert judged(buffer.getvalue())[1]._defaults == {}


def test_limit() -> None:
    data = archive([entry("x", data=bytes(10_000))])
    assert judged(data, limit=len(data))[1].size == len(data)
    with pytest.raises(Failure, match=f"holds more than {len(data) - 1} bytes.*larger size"):
        judged(data, limit=len(data) - 1)


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 1536])
def test_cut_off(cut: int) -> None:
    data = archive([entry("x", data=bytes(600)), entry("y")])
    with pytest.raises(Failure, match="cut off"):
        judged(data[:cut])


def damaged(**fields: Any) -> bytes:
    """An archive with one plain header that says strange things, its checksum being right."""
    size, kind = fields.get("size", b"0"), fields.get("kind", b"0")
    data: bytes = fields.get("data", b"")
    block = bytearray(512)
    block[:100] = b"x".ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    block[108:116] = fields.get("uid", b"0").ljust(8, b"\0")
    block[116:124] = b"0".ljust(8, b"\0")
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(1024)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no archive at all" * 100, "no tar archive"),
        (b"\x01" * 1024, "no tar archive"),
        (damaged()[:20] + b"!" + damaged()[21:], "checksum"),
        (damaged(size=b"99999999999"), "number"),
        (damaged(uid=b"-1"), "number"),
        (damaged(size=b"\xff" * 12), "negative"),
        (damaged(kind=b"5", size=b"1000"), "cannot have contents"),
        (damaged(kind=b"3", size=b"1000"), "cannot have contents"),
        (damaged(kind=b"M"), "unknown kind"),
        (damaged(kind=b"~"), "unknown kind"),
        (damaged(kind=b"x", size=b"7777777"), "too long"),
        (damaged(kind=b"x", size=b"10", data=b"99 a=b\n".ljust(512, b"\0")), "records"),
        (damaged(kind=b"x", size=b"10", data=b"junkjunk".ljust(512, b"\0")), "records"),
        (damaged(kind=b"x", size=b"7", data=b"7 a=b\nx".ljust(512, b"\0")), "records"),
        (damaged(kind=b"x", size=b"12", data=b"10 uid=-1\n".ljust(512, b"\0")) + damaged(), "no uid|within"),
        (damaged(kind=b"L", size=b"1", data=bytes(512)), "within an entry"),
        (damaged(kind=b"L", size=b"0")[:512] * 3000, "no end"),
    ],
)
def test_damaged(data: bytes, words: str) -> None:
    for step in (1 << 20, 512):
        with pytest.raises(Failure, match=words):
            judged(data, step)


def test_nothing_after_the_end_passes() -> None:
    first, second = archive([entry("x")]), archive([entry("y")])
    out, judge = judged(first + second, 512)
    assert names(out) == ["x"]
    assert judge.ended


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=3000), st.integers(1, 700), st.integers(0, 3000), st.binary(min_size=1, max_size=12))
def test_any_bytes_are_judged(data: bytes, step: int, at: int, change: bytes) -> None:
    """No other error than ours, and nothing that was not in the archive."""
    whole = bytearray(archive([entry("x" * 120, data=b"y" * 700, uid=1), entry("s", SYMLINK, linkname="x")]))
    whole[at : at + len(change)] = change
    for each in (data, bytes(whole)):
        try:
            out, _ = judged(each, step)
        except Failure:
            continue
        assert out.rstrip(b"\0") in each
