# SPDX-License-Identifier: AGPL-3.0-or-later
"""An unprivileged container's root tries to get out: every attempt must fail, and the host shows that they are real."""

import contextlib
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.lxc_lab import Lab

from orrery.drivers.lxc.driver import LxcDriver
from orrery.system import cgroup, process
from orrery.system.mounts import ContainerMount, Folder
from orrery.system.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
PYTHON = "/usr/bin/python3"
INSIDE, OTHER = 640, 641
PLANTED = ("planted_disk", "planted_memory")
NO_ATTEMPT = ("BROKEN", "ended with")
# What root may not do either where the host is itself a container, or a limited machine.
WITHHELD = frozenset({"escape_the_memory_killer", "raise_a_hard_limit"})
# Kernels without these cannot show that the attempt would work.
MAY_LACK = frozenset({"ENOSYS", "ENODEV", "ENOENT", "ENXIO", "EINVAL", "EOPNOTSUPP"})


@pytest.fixture
def lab(tmp_path):
    if os.geteuid() != 0 or not Path(PYTHON).exists():
        pytest.skip("needs root and the system's own Python")
    paths = Paths.of(tmp_path / "root")
    paths.create()
    lab = Lab(LxcDriver(paths), tmp_path)
    yield lab
    for vmid in [*lab.driver.running(), *lab.driver.leftovers()]:
        lab.driver.discard(vmid)
    cgroup.remove_root(paths.root_hash)


def a_disk(folder: Path) -> tuple[int, int]:
    """Numbers of a disk of the host: of one that root may open here, if there is any."""
    disks = [tuple(map(int, path.read_text().split(":"))) for path in sorted(Path("/sys/block").glob("*/dev"))]
    for major, minor in disks:
        path = folder / f"disk-{major}-{minor}"
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            return major, minor
    return disks[0][0], disks[0][1]


def plant(folder: Path, disk: tuple[int, int]) -> dict[str, str]:
    """Device nodes that anybody may open, as a careless template might carry."""
    nodes = {"disk": (stat.S_IFBLK, disk), "memory": (stat.S_IFCHR, (1, 1))}
    for name, (kind, numbers) in nodes.items():
        path = folder / f"planted-{name}"
        os.mknod(path, kind | 0o666, os.makedev(*numbers))
        path.chmod(0o666)
    return {f"planted_{name}": f"/planted-{name}" for name in nodes}


def prepare(folder: Path) -> dict[str, object]:
    """Folders of the host that the container sees, and in them what it must not reach."""
    word = secrets.token_hex(8)
    for name, mode in (("seen", 0o755), ("read-only", 0o777), ("both", 0o777)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    (folder / "read-only/here").touch()
    (folder / "seen/marker").write_text("nothing\n")
    (folder / "seen/secret").write_text("of the host's root\n")
    (folder / "seen/secret").chmod(0o600)
    (folder / "seen/probes.py").write_bytes(Path(__file__).with_name("escape_probes.py").read_bytes())
    (folder / "marker").write_text(word)
    return {"word": word, "marker_on_host": str(folder / "marker")}


def attempts(facts: dict[str, object], path: Path, run) -> dict[str, tuple[bool, str]]:
    path.write_text(json.dumps(facts))
    path.chmod(0o644)
    done = run()
    assert done.returncode == 0, done
    found = {name: (bool(through), str(how)) for name, (through, how) in json.loads(done.stdout).items()}
    assert not [each for each in found.items() if each[1][1].startswith(NO_ATTEMPT) and not each[1][0]]
    return found


def mounts(folder: Path) -> list[ContainerMount]:
    def shown(number: int, source: Path, target: str, *, read_only: bool) -> ContainerMount:
        return ContainerMount(f"mp{number}", Folder(source, recursive=False), target, read_only=read_only, mapped=False)

    return [
        shown(0, Path("/usr"), "/usr", read_only=True),
        shown(1, folder / "seen", "/seen", read_only=True),
        shown(2, folder / "read-only", "/read-only", read_only=True),
        shown(3, folder / "both", "/both", read_only=False),
    ]


def give_libraries(tree: Path) -> None:
    for name in ("lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")


@contextlib.contextmanager
def things_outside() -> Iterator[dict[str, object]]:
    """A process, an abstract socket, a port and a card of the host."""
    process_outside = process.spawn(["sleep", "600"])
    abstract = f"orrery-{secrets.token_hex(6)}"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
            named.bind("\0" + abstract)
            named.listen()
            card = next(name for _, name in socket.if_nameindex() if name != "lo")
            numbers = {"pid": process_outside.pid, "port": server.getsockname()[1]}
            yield {**numbers, "abstract": abstract, "card": card}
    finally:
        process.terminate(process_outside)


def from_inside(lab: Lab, folder: Path, facts: dict[str, object]) -> dict[str, tuple[bool, str]]:
    places = {"scratch": "/tmp/scratch", "secret": "/seen/secret", "marker": "/seen/marker"}
    places |= {"read_only": "/read-only", "other": "/both/other"}
    return attempts(
        {**facts, **places, "inside": True},
        folder / "seen/facts.json",
        lambda: lab.run(INSIDE, PYTHON, "-I", "/seen/probes.py", "/seen/facts.json"),
    )


def from_the_host(folder: Path, tree: Path, facts: dict[str, object]) -> dict[str, tuple[bool, str]]:
    places = {"scratch": str(folder / "scratch"), "secret": str(folder / "seen/secret")}
    places |= {"marker": str(folder / "seen/marker"), **{name: f"{tree}{facts[name]}" for name in PLANTED}}
    command = [PYTHON, "-I", str(folder / "seen/probes.py"), str(folder / "control.json"), "control"]
    return attempts({**facts, **places}, folder / "control.json", lambda: process.run(command, timeout=120))


def test_nothing_gets_out_of_an_unprivileged_container(lab, tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    tree = lab.tree(INSIDE)
    give_libraries(tree)
    disk = a_disk(folder)
    facts = {**prepare(folder), **plant(tree, disk), "disk": disk}
    lab.start(INSIDE, lab.folder_root(INSIDE), *mounts(folder))
    lab.start(OTHER, None, mounts(folder)[3], idmap="own")
    lab.out(OTHER, "umask 077; echo mine >/both/other; test -s /both/other")
    with things_outside() as outside:
        found = from_inside(lab, folder, {**facts, **outside})
        control = from_the_host(folder, tree, {**facts, **outside})
    print(json.dumps({"inside": found, "host": control}, indent=1))
    assert len(found) >= 30
    assert {name: how for name, (through, how) in found.items() if through} == {}
    refused = {name: how for name, (through, how) in control.items() if not through}
    assert {name: how for name, how in refused.items() if how not in MAY_LACK and name not in WITHHELD} == {}
    assert len(control) - len(refused) >= 25, refused
    assert not (folder / "read-only/written").exists()
    assert lab.driver.state(INSIDE) == lab.driver.state(OTHER) == "running"
