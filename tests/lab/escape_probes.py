# SPDX-License-Identifier: AGPL-3.0-or-later
# ruff: noqa: PTH103, PTH108, PTH110, PTH123, PTH208
# Why not pathlib: system calls are what is tried here.
"""Attempts to get out of a container, as a program: `python3 escape_probes.py FACTS.json [control]`.

Runs inside with the container's own Python and prints JSON: by name of the attempt, whether it got through and what
happened. With `control` it runs on the host as root, only what does no harm there: what gets through there shows that
the attempt is a real one. FACTS.json tells about the host: pids, names, nodes, ports that the test prepared.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 4, 32, 4096, 16384, 1 << 18
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWCGROUP = 0x00020000, 0x10000000, 0x02000000
AT_FDCWD = -100
# arch/x86/entry/syscalls/syscall_64.tbl
SYS = {
    "ptrace": 101,
    "syslog": 103,
    "reboot": 169,
    "iopl": 172,
    "ioperm": 173,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "keyctl": 250,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "open_tree": 428,
    "pidfd_open": 434,
    "setns": 308,
    "swapon": 167,
    "acct": 163,
    "adjtimex": 159,
}
FACTS: dict[str, Any] = {}
PROBES: dict[str, tuple[Callable[[], object], bool]] = {}


def probe(*, control: bool = True):
    """Register an attempt; it raises OSError when it fails. `control`: it does no harm on the host."""

    def register(function: Callable[[], object]) -> Callable[[], object]:
        PROBES[function.__name__] = (function, control)
        return function

    return register


def check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def call(name: str, *arguments: object) -> int:
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return check(LIBC.syscall(ctypes.c_long(SYS[name]), *wide))


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    encoded = [each.encode() if each is not None else None for each in (source, target, kind, options)]
    check(LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]))


def rewrite(path: str) -> None:
    """Write a setting's own value back; where it lies on a read-only mount, after an attempt to change that."""
    with open(path, "rb") as handle:
        value = handle.read()
    for place in ("/proc/sys", "/sys", "/proc"):
        if path.startswith(place) and FACTS.get("inside"):
            LIBC.mount(b"none", place.encode(), None, ctypes.c_ulong(MS_REMOUNT | MS_BIND), None)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value)
    finally:
        os.close(descriptor)


def openable(path: str) -> None:
    """Whether something may be opened for writing, without writing."""
    os.close(os.open(path, os.O_WRONLY))


def node(kind: int, major: int, minor: int) -> str:
    path = f"{FACTS['scratch']}/node-{major}-{minor}"
    if os.path.exists(path):
        os.unlink(path)
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    return path


def device(major: int, minor: int, kind: int) -> None:
    os.close(os.open(node(kind, major, minor), os.O_RDONLY))


BLOCK, CHAR = 0o060000, 0o020000


# --- devices


@probe()
def make_a_disk_node():
    major, minor = FACTS["disk"]
    device(major, minor, BLOCK)


@probe()
def open_a_disk_node_that_lies_there():
    os.close(os.open(FACTS["planted_disk"], os.O_RDONLY))


@probe()
def open_a_memory_node_that_lies_there():
    os.close(os.open(FACTS["planted_memory"], os.O_RDONLY))


@probe()
def make_a_memory_node():
    device(1, 1, CHAR)


@probe()
def open_loop_control():
    device(10, 237, CHAR)


@probe()
def open_the_kernel_log():
    device(1, 11, CHAR)


@probe(control=False)
def mount_the_disk():
    mount(FACTS["planted_disk"], FACTS["scratch"], "ext4", MS_RDONLY)


@probe()
def mount_all_devices():
    mount("none", FACTS["scratch"], "devtmpfs")


@probe(control=False)
def mount_the_disk_from_a_nested_namespace():
    check(LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    mount(FACTS["planted_disk"], FACTS["scratch"], "ext4", MS_RDONLY)


@probe(control=False)
def allow_all_devices():
    openable("/sys/fs/cgroup/devices/devices.allow")
    with open("/sys/fs/cgroup/devices/devices.allow", "w") as handle:
        handle.write("a *:* rwm")


@probe()
def swap_on():
    try:
        check(LIBC.swapon(FACTS["marker"].encode(), 0))
    except OSError as error:
        if error.errno != errno.EINVAL:  # no swap space: only the privileged get so far
            raise


@probe(control=False)
def quota_on():
    call("quotactl", 0x80000200, FACTS["planted_disk"].encode(), 2, b"/aquota.user")


# --- mounts and files


@probe(control=False)
def make_a_read_only_mount_writable():
    path = str(FACTS["read_only"])
    mount("none", path, None, MS_REMOUNT | MS_BIND)
    os.close(os.open(f"{path}/written", os.O_CREAT | os.O_WRONLY))


@probe(control=False)
def unmount_what_hides():
    check(LIBC.umount2(FACTS["read_only"].encode(), 2))
    os.close(os.open(f"{FACTS['read_only']}/written", os.O_CREAT | os.O_WRONLY))
    if not os.path.exists(f"{FACTS['read_only']}/here"):
        raise OSError(errno.ENOENT, "only the container's own folder came to light")


@probe()
def read_a_file_of_the_hosts_root():
    with open(FACTS["secret"]) as handle:
        handle.read()


@probe()
def write_a_file_of_the_hosts_root():
    os.close(os.open(FACTS["secret"], os.O_WRONLY))


@probe(control=False)
def read_a_file_of_another_container():
    with open(FACTS["other"]) as handle:
        handle.read()


@probe()
def give_a_file_to_an_id_outside():
    path = f"{FACTS['scratch']}/given"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.chown(path, 70000, 70000)


@probe()
def become_an_id_outside():
    os.setresuid(70000, 70000, 70000)


@probe()
def open_by_handle():
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 120, 0) + bytes(120))
    mount_id = ctypes.c_int()
    top = os.open(FACTS["scratch"], os.O_RDONLY)
    call("name_to_handle_at", AT_FDCWD, FACTS["scratch"].encode(), handle, ctypes.byref(mount_id), 0)
    os.close(call("open_by_handle_at", top, handle, os.O_RDONLY))


@probe()
def break_out_of_the_root():
    """The old trick: a root below, a descriptor above it, and up. On the host it leaves a chroot."""
    if not FACTS.get("inside"):
        os.chroot(FACTS["scratch"])
    os.makedirs("/below", exist_ok=True)
    above = os.open("/", os.O_RDONLY)
    os.chroot("/below")
    os.fchdir(above)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    with open(FACTS["marker_on_host"]) as handle:
        if handle.read() != FACTS["word"]:
            raise OSError(errno.ENOENT, "another file of that name")


@probe()
def look_through_a_process_outside():
    with open(f"/proc/{FACTS['pid']}/root{FACTS['marker_on_host']}") as handle:
        handle.read()


@probe()
def read_the_kernels_memory():
    with open("/proc/kcore", "rb") as handle:
        if handle.read(4) != b"\x7fELF":
            raise OSError(errno.ENODATA, "nothing is in it")


# --- settings of the kernel


@probe()
def change_core_pattern():
    rewrite("/proc/sys/kernel/core_pattern")


@probe()
def change_modprobe():
    rewrite("/proc/sys/kernel/modprobe" if os.path.exists("/proc/sys/kernel/modprobe") else "/proc/sys/kernel/printk")


@probe()
def change_memory_policy():
    rewrite("/proc/sys/vm/overcommit_memory")


@probe()
def change_sysrq():
    rewrite("/proc/sys/kernel/sysrq")


@probe()
def change_the_hosts_file_limit():
    rewrite("/proc/sys/fs/file-max")


@probe()
def pull_sysrq():
    openable("/proc/sysrq-trigger")


@probe()
def write_to_sys():
    writable = [path for path in ("/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled",
                                  "/sys/kernel/profiling", "/sys/power/state", "/sys/kernel/uevent_seqnum",
                                  "/sys/module/printk/parameters/time", "/sys/block/loop0/queue/read_ahead_kb")
                if os.path.exists(path)]  # fmt: skip
    LIBC.mount(b"none", b"/sys", None, ctypes.c_ulong(MS_REMOUNT | MS_BIND), None)
    problem: OSError = OSError(errno.ENOENT, "no such files")
    for path in writable:
        try:
            openable(path)
        except OSError as error:
            problem = error
        else:
            return
    raise problem


@probe()
def mount_debugfs():
    mount("none", FACTS["scratch"], "debugfs")


@probe(control=False)
def set_a_release_agent():
    for name in sorted(os.listdir("/sys/fs/cgroup")):
        path = f"/sys/fs/cgroup/{name}/release_agent"
        if os.path.exists(path):
            openable(path)
            return
    raise OSError(errno.ENOENT, "none in sight")


@probe(control=False)
def mount_a_cgroup_and_set_its_release_agent():
    check(LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP))
    mount("none", FACTS["scratch"], "cgroup", 0, "memory")
    openable(f"{FACTS['scratch']}/release_agent")


# --- processes outside


@probe()
def signal_a_process_outside():
    os.kill(FACTS["pid"], 0)


@probe()
def trace_a_process_outside():
    check(LIBC.ptrace(0x4206, ctypes.c_long(FACTS["pid"]), None, None))  # PTRACE_SEIZE: it goes on running
    os._exit(0)  # the tracer's end lets it go


@probe()
def enter_namespaces_outside():
    process = call("pidfd_open", FACTS["pid"], 0)
    check(LIBC.setns(process, CLONE_NEWNS))


@probe(control=False)
def map_an_id_outside():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        LIBC.unshare(CLONE_NEWUSER)
        os.write(writing, b"x")
        os.read(os.pipe()[0], 1)
    os.read(reading, 1)
    try:
        with open(f"/proc/{child}/uid_map", "w") as handle:
            handle.write("0 4000000000 1")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@probe()
def escape_the_memory_killer():
    with open("/proc/self/oom_score_adj", "w") as handle:
        handle.write("-1000")


@probe()
def run_in_real_time():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@probe()
def raise_its_priority():
    os.setpriority(os.PRIO_PROCESS, 0, -20)


@probe()
def raise_a_hard_limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from error


# --- the kernel's back doors


@probe(control=False)
def load_a_module():
    call("init_module", b"\x7fELF", 4, b"")


@probe(control=False)
def unload_a_module():
    call("delete_module", b"loop", 0)


@probe(control=False)
def load_another_kernel():
    call("kexec_load", 0, 0, None, 0)


@probe(control=False)
def load_another_kernel_from_a_file():
    call("kexec_file_load", -1, -1, 0, None, 8)


@probe(control=False)
def set_the_clock():
    now = ctypes.create_string_buffer(16)
    LIBC.clock_gettime(0, now)
    check(LIBC.clock_settime(0, now))


@probe()
def tune_the_clock():
    timex = ctypes.create_string_buffer(256)
    check(LIBC.adjtimex(timex))
    struct.pack_into("=I", timex, 0, 0x4000)  # ADJ_TICK, to what it is
    check(LIBC.adjtimex(timex))


@probe(control=False)
def catch_the_hosts_reboot_key():
    call("reboot", 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0)


@probe()
def load_a_program_into_the_kernel():
    instructions = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    # A classifier of packets that answers 0: other kinds may be anybody's.
    attributes = struct.pack("=IIQQ", 3, 2, ctypes.addressof(instructions), ctypes.addressof(licence)) + bytes(100)
    call("bpf", 5, attributes, 48)


@probe()
def watch_all_processors():
    attributes = struct.pack("=IIQ", 1, 112, 0) + bytes(96)  # a software clock, everybody's, on processor 0
    os.close(call("perf_event_open", attributes, -1, 0, -1, 0))


@probe()
def handle_the_kernels_page_faults():
    os.close(call("userfaultfd", 0))


@probe()
def watch_all_files():
    os.close(call("fanotify_init", 4, 0))


@probe()
def use_the_keyring():
    call("keyctl", 0, -5, 0, 0, 0)


@probe()
def add_a_key():
    call("add_key", b"user", b"orrery-escape", b"x", 1, -1)


@probe()
def talk_to_hardware_ports():
    call("ioperm", 0x80, 1, 1)


@probe()
def raise_the_io_privilege():
    call("iopl", 3)


@probe(control=False)
def account_all_processes():
    check(LIBC.acct(FACTS["marker"].encode()))


@probe()
def type_into_a_foreign_terminal():
    _, slave = os.openpty()
    fcntl.ioctl(slave, 0x5412, b"x")  # TIOCSTI


# --- the host's network


@probe()
def reach_an_abstract_socket():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + str(FACTS["abstract"]))


@probe()
def reach_a_port_of_the_hosts_loopback():
    with socket.create_connection(("127.0.0.1", FACTS["port"]), timeout=3):
        pass


@probe()
def see_a_card_of_the_host():
    socket.if_nametoindex(FACTS["card"])


def attempt(name: str) -> list[object]:
    """Run one attempt in a child, so that what it changes of itself is gone after it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome: list[object] = [True, "it got through"]
        try:
            LIBC.unshare(CLONE_NEWNS)
            LIBC.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
            PROBES[name][0]()
        except OSError as error:
            outcome = [False, errno.errorcode.get(error.errno or 0, str(error))]
        except BaseException as error:
            outcome = [False, f"BROKEN {error!r}"]
        os.write(writing, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    answer = b""
    while piece := os.read(reading, 4096):
        answer += piece
    _, status = os.waitpid(child, 0)
    os.close(reading)
    return json.loads(answer) if answer else [os.waitstatus_to_exitcode(status) == 0, f"ended with status {status}"]


def main() -> None:
    with open(sys.argv[1]) as handle:
        FACTS.update(json.load(handle))
    control = len(sys.argv) > 2
    os.makedirs(str(FACTS["scratch"]), exist_ok=True)
    print(json.dumps({name: attempt(name) for name, (_, safe) in PROBES.items() if safe or not control}))


if __name__ == "__main__":
    main()
