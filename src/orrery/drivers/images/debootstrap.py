# SPDX-License-Identifier: AGPL-3.0-or-later
"""Root archives of Debian and Ubuntu, built from signed packages by mmdebstrap(1).

Programs of the packages run while they are installed, so the build is shut in: a user namespace in which root is an
ordinary id of the host, namespaces of its own for mounts, processes and System V objects, and of the host's folders
those of homes and state hidden. Its working folder is shown at a short path, since the one it has may lie below a
folder that only root may enter. It has the network, for the mirrors. When it is killed, the first process of its
process namespace dies, and everything with it.
"""

import os
import select
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from orrery.errors import Failure
from orrery.model.images import Debootstrap
from orrery.system import files, mounts, process

ENDING: Final = "tar.zst"
PROGRAMS: Final = ("mmdebstrap", "lxc-usernsexec", "unshare", "zstd")
_FIRST_ID: Final = 100000
_IDS: Final = 65536
_SEEN: Final = "/mnt"
_HIDDEN: Final = ("/root", "/home", "/srv", "/media", "/opt")
_SECONDS: Final = 3600.0
_TICK: Final = 0.5
_ENDING_SECONDS: Final = 30.0
_LINE_MAX: Final = 500
_LINES_MAX: Final = 2000

_PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "iproute2", "iputils-ping", "netbase", "ca-certificates"),
    "sensible-utils",
)
_NETWORK: Final = {
    "bookworm": ("ifupdown", "isc-dhcp-client"),
    "trixie": ("ifupdown", "dhcpcd-base"),
    "jammy": ("netplan.io",),
    "noble": ("netplan.io",),
}

_SSH_KEYS: Final = """\
# Every container makes keys of its own when it first starts.
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""


@dataclass(frozen=True, slots=True)
class Build:
    """What to build. `lines` are those of its sources.list; `ssh` adds a server for SSH, `packages` whatever else."""

    source: Debootstrap
    lines: Sequence[str]
    ssh: bool = False
    packages: Sequence[str] = ()


def require_programs(source: Debootstrap) -> None:
    """Raises Failure when something that a build needs is not installed."""
    for program in PROGRAMS:
        process.find(program)
    if not Path(source.keyring).exists():
        raise Failure(
            f"'{source.keyring}' is missing, which says whose packages of {source.suite} to trust: "
            "install the package with the distribution's archive keys"
        )


def build(what: Build, folder: Path, target: Path, log: Callable[[str], None], tick: Callable[[], None]) -> None:
    """Writes the packed root archive into the file `target`, working below the empty folder `folder`.

    `tick` is called twice a second; what it raises ends the build. Raises Failure with what mmdebstrap said last.
    """
    _prepare(what, folder)
    with ExitStack() as stack:
        packed = stack.enter_context(target.open("wb", buffering=0))
        reading, writing = _pipe(stack)
        hearing, telling = _pipe(stack)
        zstd = ("zstd", "-q", "-T0", "-6", "-c")
        packer = process.spawn(
            zstd, stdin=reading.fileno(), stdout=packed.fileno(), stderr=telling.fileno(), die_with_parent=True
        )
        stack.callback(_end, packer)
        reading.close()
        child = process.spawn(
            _command(what),
            name="mmdebstrap",
            view=_view(folder),
            stdout=writing.fileno(),
            stderr=telling.fileno(),
            die_with_parent=True,
        )
        stack.callback(_end, child)
        writing.close()
        telling.close()
        last = _listen(hearing.fileno(), log, tick)
        for program, name in ((child, "mmdebstrap"), (packer, "zstd")):
            if not process.wait(program, _ENDING_SECONDS) or process.reap(program) != 0:
                raise Failure(f"{name} failed: {last or 'it did not say why'}")
    try:
        with target.open("rb") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        raise files.failure(error, "unable to write the root archive") from error


def clear(folder: Path) -> None:
    """Removes what a build left; absent is fine. Raises Failure."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise files.failure(error, f"unable to remove '{folder}'") from error


def _prepare(what: Build, folder: Path) -> None:
    """Writes what the build reads. The tree gets a folder of the mapped root; the rest stays ours."""
    files_to_write = {"sources.list": "".join(f"{line}\n" for line in what.lines), "keys.conf": _SSH_KEYS}
    try:
        folder.chmod(0o755)
        for name, text in files_to_write.items():
            file = folder / name
            file.write_text(text)
            file.chmod(0o644)
        (folder / "hidden").mkdir(mode=0o755)
        (folder / "tree").mkdir(mode=0o700)
        os.chown(folder / "tree", _FIRST_ID, _FIRST_ID)
    except OSError as error:
        raise files.failure(error, f"unable to prepare '{folder}'") from error


def _view(folder: Path) -> list[mounts.Mount]:
    """The working folder at its short path, and an empty one over those of the host that a build must not read."""
    empty = mounts.Folder(Path(_SEEN) / "hidden")
    hidden = [mounts.Mount(empty, Path(path), read_only=True) for path in _HIDDEN if Path(path).is_dir()]
    return [mounts.Mount(mounts.Folder(folder), Path(_SEEN)), *hidden]


def _command(what: Build) -> list[str]:
    packages = [*_PACKAGES, *_NETWORK.get(what.source.suite, ()), *(["openssh-server"] if what.ssh else [])]
    packages += what.packages
    mapped = ["-m", f"u:0:{_FIRST_ID}:{_IDS}", "-m", f"g:0:{_FIRST_ID}:{_IDS}"]
    environment = [f"PATH={process.SEARCH_PATH}", f"TMPDIR={_SEEN}/tree", f"HOME={_SEEN}/tree", "LC_ALL=C.UTF-8"]
    return [
        *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--ipc", "--uts", "--mount-proc"),
        # Without newuidmap in sight it writes the map itself, and the host's /etc/subuid does not matter.
        *("/usr/bin/env", "PATH=/nonexistent", process.find("lxc-usernsexec"), *mapped, "--"),
        *("/usr/bin/env", "-i", *environment, process.find("mmdebstrap")),
        *("--mode=unshare", "--variant=minbase", "--format=tar", f"--include={','.join(packages)}"),
        *(f"--customize-hook={hook}" for hook in _hooks(what)),
        *(what.source.suite, "-", f"{_SEEN}/sources.list"),
    ]


def _hooks(what: Build) -> list[str]:
    """What makes the tree nobody's in particular; mmdebstrap's own hook verbs, or programs with the tree as $1."""
    hooks = ['rm -f "$1/etc/hostname" "$1/etc/resolv.conf" "$1/var/lib/dbus/machine-id"', ': >"$1/etc/machine-id"']
    if what.ssh:
        folder = "/etc/systemd/system/ssh.service.d"
        hooks += [
            'rm -f "$1"/etc/ssh/ssh_host_*',
            f'mkdir -p "$1{folder}"',
            f"upload {_SEEN}/keys.conf {folder}/keys.conf",
        ]
    return hooks


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    ends = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
    return stack.enter_context(ends[0]), stack.enter_context(ends[1])


def _end(child: process.ProcessId) -> None:
    if process.alive(child):
        process.terminate(child, grace=2.0)
    process.reap(child)


def _listen(hearing: int, log: Callable[[str], None], tick: Callable[[], None]) -> str:
    """Writes down what the programs say until they have closed their ends; the last line. Raises Failure in the end."""
    poll = select.poll()
    poll.register(hearing, select.POLLIN)
    deadline = time.monotonic() + _SECONDS
    rest, last, count = b"", "", 0
    while True:
        tick()
        if time.monotonic() > deadline:
            raise Failure(f"the build did not end within {_SECONDS / 60:g} minutes")
        if not poll.poll(_TICK * 1000):
            continue
        piece = os.read(hearing, 1 << 16)
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-_LINE_MAX:]
        for line in filter(None, (each.decode("utf-8", "replace").strip()[:_LINE_MAX] for each in lines)):
            last = line if line.startswith("E:") or not last.startswith("E:") else last
            count += 1
            if count <= _LINES_MAX:
                log(line)
        if not piece:
            return last
