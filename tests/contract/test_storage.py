# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every storage driver must do, on real files. A later driver adds one entry to `storages.DRIVERS`."""

import json
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.storages import DRIVERS, MIB, child, everything, mounting, payload

from orrery.drivers.storage.base import StorageDriver
from orrery.errors import AlreadyExists, Cancelled, Failure, NotFound, OrreryError


def as_raw(path: Path, image_format: str) -> bytes:
    target = path.with_suffix(".asraw")
    command = ["qemu-img", "convert", "-f", image_format, "-O", "raw", path, target]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    data = target.read_bytes()
    target.unlink()
    return data


# --- images


def test_says_what_it_is(driver: StorageDriver) -> None:
    assert driver.name == "tank"
    assert driver.contents == {"images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import"}
    assert set(driver.formats) <= {"raw", "qcow2", "vmdk"}
    driver.activate()
    assert driver.list(driver.contents) == []
    usage = driver.usage()
    assert 0 < usage.available <= usage.total
    assert usage.used <= usage.total


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_allocated_image_is_found(make: Callable[..., StorageDriver], image_format: str, preallocation: str) -> None:
    driver = make(preallocation=preallocation)
    name = driver.next_name(100, image_format)
    driver.allocate(name, 3 * MIB)
    info = driver.info(name)
    assert (info.volid, info.content, info.format, info.vmid) == (f"tank:{name}", "images", image_format, 100)
    assert info.size == 3 * MIB
    if preallocation in ("falloc", "full") and image_format != "vmdk":
        assert info.used >= 3 * MIB
    if preallocation == "off":
        assert info.used < 3 * MIB
    assert abs(info.ctime - time.time()) < 60
    assert driver.list({"images"}) == [info]
    assert driver.list({"images"}, 100) == [info]
    assert driver.list({"images"}, 101) == []
    assert as_raw(driver.path(name), image_format) == bytes(3 * MIB)


def test_images_are_private(driver: StorageDriver) -> None:
    driver.allocate("100/vm-100-disk-0.qcow2", MIB)
    assert driver.path("100/vm-100-disk-0.qcow2").stat().st_mode & 0o777 == 0o600


def test_taken_name_is_refused_and_untouched(driver: StorageDriver) -> None:
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    driver.path("100/vm-100-disk-0.raw").write_bytes(payload(MIB))
    with pytest.raises(AlreadyExists, match="vm-100-disk-0"):
        driver.allocate("100/vm-100-disk-0.raw", 2 * MIB)
    assert driver.path("100/vm-100-disk-0.raw").read_bytes() == payload(MIB)


def test_next_name_is_the_lowest_free(driver: StorageDriver) -> None:
    assert driver.next_name(100, "qcow2") == "100/vm-100-disk-0.qcow2"
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    driver.allocate("100/vm-100-disk-2.raw", MIB)
    assert driver.next_name(100, "qcow2") == "100/vm-100-disk-1.qcow2"
    assert driver.next_name(100, "raw", "state") == "100/vm-100-state-0.raw"
    assert driver.next_name(101, "raw") == "101/vm-101-disk-0.raw"
    assert driver.list({"images"}, 101) == []


@pytest.mark.parametrize("size", [0, -1, 1 << 60])
def test_absurd_sizes_are_refused(driver: StorageDriver, root: Path, size: int) -> None:
    with pytest.raises(Failure):
        driver.allocate("100/vm-100-disk-0.qcow2", size)
    assert everything(root) == set()


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_resize_grows_and_keeps_the_data(driver: StorageDriver, tmp_path: Path, image_format: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(payload(MIB))
    name = f"100/vm-100-disk-0.{image_format}"
    driver.copy_in(source, "raw", name)
    driver.resize(name, 4 * MIB)
    driver.resize(name, 4 * MIB)
    assert driver.info(name).size == 4 * MIB
    assert as_raw(driver.path(name), image_format) == payload(MIB) + bytes(3 * MIB)
    with pytest.raises(Failure, match="shrink"):
        driver.resize(name, 2 * MIB)
    assert driver.info(name).size == 4 * MIB


def test_resize_of_nothing(driver: StorageDriver) -> None:
    with pytest.raises(NotFound):
        driver.resize("100/vm-100-disk-0.raw", MIB)


def test_free_leaves_nothing_and_may_be_repeated(driver: StorageDriver, root: Path) -> None:
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    driver.allocate("100/vm-100-disk-1.raw", MIB)
    driver.free("100/vm-100-disk-0.raw")
    assert [info.volid for info in driver.list({"images"})] == ["tank:100/vm-100-disk-1.raw"]
    driver.free("100/vm-100-disk-0.raw")
    driver.free("100/vm-100-disk-1.raw")
    assert everything(root) == set()
    with pytest.raises(NotFound):
        driver.info("100/vm-100-disk-0.raw")


# --- copies


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
@pytest.mark.parametrize("source_format", ["raw", "qcow2", "vmdk"])
def test_copy_converts(
    driver: StorageDriver, tmp_path: Path, source_format: str, image_format: str, trusted: bool
) -> None:
    raw, source = tmp_path / "raw", tmp_path / "json:{source"
    raw.write_bytes(payload(MIB) + bytes(MIB))
    command = ["qemu-img", "convert", "-f", "raw", "-O", source_format, raw, f"file:{source}"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    seen: list[tuple[int, int]] = []
    name = f"100/vm-100-disk-0.{image_format}"
    driver.copy_in(source, source_format, name, lambda done, total: seen.append((done, total)), trusted=trusted)
    assert driver.info(name).size == 2 * MIB
    assert as_raw(driver.path(name), image_format) == raw.read_bytes()
    assert driver.path(name).stat().st_uid == os.getuid()
    assert seen[-1] == (2 * MIB, 2 * MIB)
    assert seen == sorted(seen)


def test_copy_stays_sparse(driver: StorageDriver, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"")
    os.truncate(source, 512 * MIB)
    driver.copy_in(source, "raw", "100/vm-100-disk-0.raw")
    info = driver.info("100/vm-100-disk-0.raw")
    assert info.size == 512 * MIB
    assert info.used < 8 * MIB


@pytest.mark.parametrize("trusted", [False, True])
def test_cancelled_copy_leaves_nothing(driver: StorageDriver, root: Path, tmp_path: Path, trusted: bool) -> None:
    source = tmp_path / "source"
    source.write_bytes(payload(64 * MIB))

    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        driver.copy_in(source, "raw", "100/vm-100-disk-0.qcow2", cancel, trusted=trusted)
    assert everything(root) == set()


def test_copy_over_an_image_is_refused(driver: StorageDriver, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(payload(MIB))
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    with pytest.raises(AlreadyExists):
        driver.copy_in(source, "raw", "100/vm-100-disk-0.raw")
    assert driver.path("100/vm-100-disk-0.raw").read_bytes() == bytes(MIB)


def test_untrusted_source_cannot_reach_other_files(driver: StorageDriver, root: Path, tmp_path: Path) -> None:
    secret, source = tmp_path / "secret", tmp_path / "source.qcow2"
    secret.write_bytes(payload(MIB))
    command = ["qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", source]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    with pytest.raises(Failure, match="another file"):
        driver.copy_in(source, "qcow2", "100/vm-100-disk-0.raw")
    assert everything(root) == set()
    driver.copy_in(source, "qcow2", "100/vm-100-disk-0.raw", trusted=True)
    assert driver.path("100/vm-100-disk-0.raw").read_bytes() == payload(MIB)


def test_source_that_is_no_image(driver: StorageDriver, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.qcow2"
    source.write_bytes(b"QFI\xfb" + bytes(3000))
    with pytest.raises(Failure):
        driver.copy_in(source, "qcow2", "100/vm-100-disk-0.raw")
    with pytest.raises(NotFound):
        driver.copy_in(tmp_path / "absent", "raw", "100/vm-100-disk-0.raw")
    assert everything(root) == set()


# --- files that come from outside


def test_publish_gives_the_name(driver: StorageDriver, root: Path) -> None:
    staged = driver.staging("iso/debian.iso")
    assert staged.stat().st_mode & 0o777 == 0o600
    staged.write_bytes(b"cd")
    assert driver.list({"iso"}) == []
    driver.publish(staged, "iso/debian.iso")
    (info,) = driver.list({"iso"})
    assert (info.volid, info.format, info.size, info.vmid) == ("tank:iso/debian.iso", "iso", 2, None)
    assert driver.info("iso/debian.iso") == info
    assert len(everything(root)) == 1


def test_publish_refuses_a_taken_name(driver: StorageDriver) -> None:
    for data, replace in ((b"one", False), (b"two", True)):
        staged = driver.staging("iso/x.iso")
        staged.write_bytes(data)
        driver.publish(staged, "iso/x.iso", replace=replace)
    assert driver.path("iso/x.iso").read_bytes() == b"two"
    staged = driver.staging("iso/x.iso")
    with pytest.raises(AlreadyExists):
        driver.publish(staged, "iso/x.iso")
    assert driver.path("iso/x.iso").read_bytes() == b"two"
    driver.discard(staged)
    driver.discard(staged)


def test_staged_file_changes_hands(driver: StorageDriver, root: Path) -> None:
    staged = driver.staging("iso/x.iso")
    adopted = driver.adopt(staged)
    driver.discard(staged)
    assert everything(root) == set()
    with pytest.raises(NotFound):
        driver.adopt(adopted)


def test_only_staged_files_are_published_or_discarded(driver: StorageDriver, tmp_path: Path) -> None:
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    stranger = tmp_path / ".staging.n1.0123456789abcdef.1.1"
    stranger.write_bytes(b"")
    for path in (stranger, driver.path("100/vm-100-disk-0.raw"), driver.path("iso/x.iso")):
        with pytest.raises(Failure):
            driver.publish(path, "iso/x.iso")
        with pytest.raises(Failure):
            driver.discard(path)
        with pytest.raises(Failure):
            driver.adopt(path)
    assert stranger.exists()
    assert driver.info("100/vm-100-disk-0.raw").size == MIB


def test_protected_backups_stay(driver: StorageDriver, root: Path) -> None:
    name = "backup/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    driver.publish(driver.staging(name), name)
    driver.set_attributes(name, notes="äpfel\nzwei", protected=True)
    (info,) = driver.list({"backup"}, 100)
    assert (info.notes, info.protected, info.format) == ("äpfel\nzwei", True, "vma.zst")
    with pytest.raises(Failure, match="protected"):
        driver.free(name)
    assert driver.list({"backup"}, 100) == [info]
    driver.set_attributes(name, notes="", protected=False)
    assert driver.info(name).notes is None
    driver.set_attributes(name, notes="again")
    driver.free(name)
    assert everything(root) == set()


def test_attributes_need_a_backup(driver: StorageDriver) -> None:
    driver.allocate("100/vm-100-disk-0.raw", MIB)
    with pytest.raises(OrreryError):
        driver.set_attributes("100/vm-100-disk-0.raw", notes="x")
    with pytest.raises(NotFound):
        driver.set_attributes("backup/vzdump-qemu-100-2026_01_02-03_04_05.vma", notes="x")


# --- names that attack


CRAFTED = st.lists(
    st.sampled_from(
        ["..", ".", "/", "iso", "100", "import", "backup", "vm-100-disk-0", ".raw", ".iso", "~", "\0", "\n"]
    )
    | st.text(max_size=6),
    max_size=8,
).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(name=CRAFTED | st.text(max_size=40))
def test_no_name_leads_out(driver: StorageDriver, root: Path, name: str) -> None:
    try:
        path = driver.path(name)
    except OrreryError:
        return
    assert path.resolve().is_relative_to(root.resolve())
    assert path.resolve() != root.resolve()


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x.iso", "iso/../../x.iso", "iso/..", "iso/a/b.iso", "100/../101/vm-101-disk-0.raw",
     "iso/.x.iso", "100/vm-101-disk-0.raw", "iso/x.exe", "100/vm-100-disk-0", "iso/x\n.iso",
     "iso/" + "x" * 300 + ".iso"],
)  # fmt: skip
def test_bad_names_are_refused_everywhere(driver: StorageDriver, root: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(512))
    attempts: list[Callable[[], object]] = [
        lambda: driver.path(name),
        lambda: driver.info(name),
        lambda: driver.allocate(name, MIB),
        lambda: driver.resize(name, MIB),
        lambda: driver.free(name),
        lambda: driver.copy_in(source, "raw", name),
        lambda: driver.staging(name),
        lambda: driver.set_attributes(name, notes="x"),
    ]
    for attempt in attempts:
        with pytest.raises(OrreryError, match="unable to parse"):
            attempt()
    assert everything(root) == set()


# --- many at once, and sudden deaths


def test_sixteen_threads_get_names_of_their_own(driver: StorageDriver) -> None:
    def allocate(_: int) -> str:
        while True:
            name = driver.next_name(100, "raw")
            try:
                driver.allocate(name, MIB)
            except AlreadyExists:
                continue
            return name

    with ThreadPoolExecutor(16) as pool:
        names = list(pool.map(allocate, range(64)))
    assert sorted(names) == sorted(f"100/vm-100-disk-{number}.raw" for number in range(64))
    assert len(driver.list({"images"}, 100)) == 64


def test_one_name_for_sixteen_threads(driver: StorageDriver) -> None:
    def allocate(_: int) -> bool:
        try:
            driver.allocate("100/vm-100-disk-0.qcow2", MIB)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(allocate, range(16))) == 1


def test_allocate_and_free_meet(driver: StorageDriver) -> None:
    """Freeing a guest's last image removes its folder, also while another thread makes a new one."""

    def churn(number: int) -> None:
        for _ in range(25):
            driver.allocate(f"100/vm-100-disk-{number}.raw", MIB)
            driver.free(f"100/vm-100-disk-{number}.raw")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    assert driver.list({"images"}) == []


@pytest.mark.parametrize(
    "act",
    [
        "driver.allocate('100/vm-100-disk-0.raw', 3 << 30)",
        "driver.copy_in(Path(sys.argv[0] or {source!r}), 'raw', '100/vm-100-disk-0.qcow2', trusted=True)",
        "driver.copy_in(Path({source!r}), 'raw', '100/vm-100-disk-0.raw')",
        "staged = driver.staging('iso/x.iso'); staged.write_bytes(bytes(1 << 20)); import time; time.sleep(60)",
    ],
    ids=["allocate", "copy", "jailed copy", "upload"],
)
def test_sudden_death_leaves_nothing_half_made(driver: StorageDriver, root: Path, tmp_path: Path, act: str) -> None:
    source = tmp_path / "source"
    with source.open("wb") as stream:
        for _ in range(64):
            stream.write(os.urandom(MIB) * 4)
    act = act.replace("sys.argv[0] or ", "").format(source=str(source))
    victim = child(driver.kind, root, f"print('go', flush=True)\n{act}", preallocation="full")
    assert victim.stdout is not None
    with victim.stdout:
        victim.stdout.readline()
        end = time.monotonic() + 20
        while not (made := everything(root)) and victim.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        assert made, "the victim was not seen at work"
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    driver.activate()
    assert [info.volid for info in driver.list(driver.contents) if info.vmid != 100] == []
    leftovers = {name for name in everything(root) if ".staging" in name}
    assert leftovers == set()
    assert driver.list({"images"}) == []
    assert everything(root) == set()


def test_the_living_and_other_nodes_keep_their_staged_files(driver: StorageDriver, root: Path) -> None:
    mine = driver.staging("iso/x.iso")
    foreign = mine.with_name(".staging.n2.0123456789abcdef.4194000.1")
    foreign.write_bytes(b"")
    driver.activate()
    assert mine.exists()
    assert foreign.exists()


@pytest.mark.root
@pytest.mark.parametrize("preallocation", ["falloc", "full"])
@pytest.mark.parametrize("kind", DRIVERS)
def test_full_disk(kind: str, tmp_path: Path, preallocation: str) -> None:
    code = """
    import json
    from orrery.errors import OrreryError
    source = Path({source!r})
    source.write_bytes(bytes(range(1, 256)) * 65536 * 5)
    driver.activate()
    answers = []
    def attempt(act):
        try:
            act()
        except OrreryError as error:
            answers.append([error.code, error.message])
        else:
            answers.append(['none', ''])
        answers[-1].append([str(p) for p in Path({root!r}).rglob('*') if p.is_file() or p.parent.name == 'images'])
    attempt(lambda: driver.allocate('100/vm-100-disk-0.raw', 80 << 20))
    attempt(lambda: driver.allocate('100/vm-100-disk-0.qcow2', 80 << 20))
    attempt(lambda: driver.copy_in(source, 'raw', '100/vm-100-disk-0.raw'))
    attempt(lambda: driver.copy_in(source, 'raw', '100/vm-100-disk-0.qcow2', trusted=True))
    print(json.dumps(answers))
    """
    root = tmp_path / "storage"
    root.mkdir()
    run = child(
        kind,
        root,
        textwrap.dedent(code).format(root=str(root), source=str(tmp_path / "source")),
        mounting(kind, root),
        preallocation=preallocation,
    )
    out, _ = run.communicate(timeout=120)
    answers = json.loads(out.splitlines()[-1])
    assert [code for code, _, _ in answers] == ["no-space"] * 4, answers
    assert all(left == [] for _, _, left in answers), answers
    assert all("not enough space on storage 'tank'" in text for _, text, _ in answers), answers


# --- many


def test_ten_thousand_volumes_are_listed_fast(driver: StorageDriver) -> None:
    driver.allocate("100/vm-100-disk-0.qcow2", MIB)
    template = driver.path("100/vm-100-disk-0.qcow2").read_bytes()[:4096]
    images = driver.path("100/vm-100-disk-0.qcow2").parent.parent
    for vmid in range(1000, 3000):
        folder = images / str(vmid)
        folder.mkdir()
        for number in range(5):
            (folder / f"vm-{vmid}-disk-{number}.qcow2").write_bytes(template)
    started = time.process_time()  # what the list itself costs, however busy the machine is
    volumes = driver.list({"images"})
    seconds = time.process_time() - started
    assert len(volumes) == 10_001
    assert {info.size for info in volumes} == {MIB}
    assert seconds < 3, f"{seconds:.1f} s"
    print(f"10,001 volumes in {seconds:.2f} s")
