# SPDX-License-Identifier: AGPL-3.0-or-later
"""Containers on a real node: they live, have an address, are changed while they run, and leave nothing behind."""

import contextlib
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.client import ApiError, TaskFailed
from tests.node.harness import ORRERY, TEMPLATE, Container, Node, container_options, eventually

from orrery.demo.image import Prepared
from orrery.system.host import has_capability

MIB = 1 << 20
SYS_RESOURCE = 24
DEMO = f"local:vztmpl/{TEMPLATE}"


@pytest.fixture(scope="module")
def container(node: Node, template: str) -> Iterator[Container]:
    """A container that runs; tests leave it running."""
    made = node.container(template, start=True, password="correct horse")
    made.address()
    yield made
    made.destroy()


@pytest.fixture
def stopped(node: Node, template: str) -> Iterator[Container]:
    """A container of one test, which does not run yet."""
    made = node.container(template)
    yield made
    if made.vmid in [row["vmid"] for row in node.api.get(f"{node.path}/lxc")]:
        made.destroy()


def ping(address: str) -> bool:
    return subprocess.run(["ping", "-c", "1", "-W", "5", address], capture_output=True, check=False).returncode == 0


# --- it lives


def test_it_has_an_address_and_answers(container: Container, node: Node) -> None:
    assert ping(container.address())
    rows = {row["vmid"]: row for row in node.api.get(f"{node.path}/lxc")}
    assert rows[container.vmid]["status"] == "running"
    assert rows[container.vmid]["type"] == "lxc"
    rows = {row["vmid"]: row for row in node.api.get("/cluster/resources", type="vm")}
    assert (rows[container.vmid]["type"], rows[container.vmid]["status"]) == ("lxc", "running")


def test_root_is_nobody_outside(container: Container) -> None:
    assert container.inside("id", "-u") == "0"
    process = subprocess.Popen(
        ["nsenter", "--target", str(first_process(container)), "--pid", "--mount", "true"], stdout=subprocess.DEVNULL
    )
    assert process.wait(10) == 0
    status = Path(f"/proc/{first_process(container)}/status").read_text()
    assert "Uid:\t100000\t" in status


def first_process(container: Container) -> int:
    """The container's init, as the host numbers it."""
    monitor = container.pid()
    children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    return int(children[0])


def test_the_host_sees_no_mount_of_it(container: Container) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    assert f"/guests/{container.vmid}" not in mounts
    assert "/run/tree" not in mounts


def test_its_root_logs_in_with_the_password_that_it_was_made_with(container: Container) -> None:
    assert container.ssh("hostname", password="correct horse") == f"CT{container.vmid}"
    said = container.node.paths.audit_log.read_text() + container.node.paths.daemon_log.read_text()
    assert "correct horse" not in said
    assert "correct horse" not in Path(container.node.paths.tasks_db).read_bytes().decode("latin-1")


def test_programs_inside_see_their_own_limits(container: Container) -> None:
    assert int(container.inside("sh", "-c", "awk '/MemTotal/ {print $2}' /proc/meminfo")) == 64 << 10


def test_counters_move(container: Container) -> None:
    def counted() -> bool:
        now = container.status()
        return bool(now["netin"] > 0 and now["netout"] > 0 and now["mem"] > 0 and now["disk"] > MIB)

    eventually(counted, 30, "a sample of the counters")


def test_it_freezes_and_thaws(container: Container) -> None:
    container.run("suspend")
    done = container.node.cli("ct", "exec", str(container.vmid), "--", "true", check=False)
    assert "is suspended" in done.stderr
    container.run("resume")
    assert container.inside("echo", "thawed") == "thawed"


# --- it is entered


def test_the_exit_code_is_the_programs(container: Container) -> None:
    done = container.node.cli(
        "ct", "exec", str(container.vmid), "--", "sh", "-c", "cat; exit 7", check=False, text="in"
    )
    assert (done.returncode, done.stdout) == (7, "in")


def test_files_go_in_and_come_out(container: Container, tmp_path: Path) -> None:
    node, vmid = container.node, str(container.vmid)
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3 * MIB))
    file.chmod(0o751)
    node.cli("ct", "push", vmid, str(file), "/root/pushed", "--user", "33", "--group", "44")
    assert container.inside("stat", "-c", "%a %u %g %s", "/root/pushed") == f"751 33 44 {3 * MIB}"
    node.cli("ct", "pull", vmid, "/root/pushed", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o751


def test_links_inside_lead_nowhere_outside(container: Container, tmp_path: Path) -> None:
    node, vmid = container.node, str(container.vmid)
    secret = tmp_path / "secret"
    secret.write_text("of the host\n")
    container.inside("sh", "-c", f"ln -sf {secret} /root/link; ln -sfn {tmp_path} /root/folder; mkfifo /root/pipe")
    for path in ("/root/link", "/root/folder/secret", f"/root/../../..{secret}"):
        done = node.cli("ct", "pull", vmid, path, str(tmp_path / "out"), check=False)
        assert "No such file" in done.stderr
    done = node.cli("ct", "pull", vmid, "/root/pipe", str(tmp_path / "out"), check=False)
    assert "no regular file" in done.stderr
    done = node.cli("ct", "push", vmid, str(secret), "/root/folder/planted", check=False)
    assert done.returncode != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret"]


def test_a_shell_has_a_terminal(container: Container) -> None:
    command = [str(ORRERY), "ct", "shell", str(container.vmid), "--root", str(container.node.folder)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)  # noqa: S606
    said, asked = b"", False
    with contextlib.suppress(OSError):  # the end of the terminal
        while piece := os.read(terminal, 4096):
            said += piece
            if b"# " in said and not asked:
                os.write(terminal, b"tty; echo $((6 * 7)); exit 5\n")
                asked = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5, said
    assert b"/dev/pts/" in said
    assert b"42" in said


def test_the_command_line_makes_and_removes_one(node: Node, template: str, tmp_path: Path) -> None:
    vmid = str(node.next_vmid())
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    words = ("--vmid", vmid, "--name", "by-hand", "--disk", "local:0.0625", "--memory", "64", "--set", "ostype=alpine")
    node.cli("ct", "create", template, *words, "--root-password-file", str(password), "--start")
    assert "by-hand" in node.cli("ct", "list").stdout
    made = Container(node, int(vmid))
    assert made.address() in node.cli("ct", "addresses", vmid).stdout
    assert made.ssh("hostname", password="correct horse") == "by-hand"
    assert "nameserver" in node.cli("ct", "set", vmid, "nameserver=192.0.2.1").stdout, "what is pending is told"
    assert "192.0.2.1" in node.cli("ct", "pending", vmid).stdout
    done = node.cli("ct", "exec", vmid, "--server", "https://127.0.0.1:1", "--", "true", check=False)
    assert "machine of the node" in done.stderr
    node.cli("ct", "shutdown", vmid, "--timeout", "30")
    node.cli("ct", "destroy", vmid, "--yes")
    assert "by-hand" not in node.cli("ct", "list").stdout


# --- it is changed


def test_limits_change_while_it_runs(container: Container) -> None:
    container.set(memory=96, cores=1)
    assert container.pending() == {}
    assert int(container.inside("sh", "-c", "awk '/MemTotal/ {print $2}' /proc/meminfo")) == 96 << 10
    assert container.inside("nproc") == "1"
    container.set(memory=64, delete="cores")


def test_a_card_is_plugged_and_unplugged(container: Container) -> None:
    container.set(net1="name=eth1,bridge=vmbr0,ip=10.99.0.2/24")
    assert "10.99.0.2" in container.addresses()
    assert len([tap for tap in container.node.taps() if tap]) >= 2
    mac = container.config()["net1"]
    container.set(net1=mac.replace("10.99.0.2", "10.99.0.3"))
    assert "10.99.0.3" in container.addresses()
    container.set({"delete": "net1"})
    assert container.inside("ls", "/sys/class/net").split() == ["eth0", "lo"]


def test_a_mount_point_is_plugged_and_unplugged(container: Container) -> None:
    container.set(mp0="local:0.0625,mp=/srv/data")
    container.inside("sh", "-c", "echo kept >/srv/data/file; sync")
    container.set({"delete": "mp0"})
    assert "/srv/data" not in container.inside("cat", "/proc/mounts")
    unused = container.config()["unused0"]
    container.set(mp1=f"{unused},mp=/srv/again,ro=1")
    assert container.inside("cat", "/srv/again/file") == "kept"
    assert "unused0" not in container.config()
    done = container.node.cli("ct", "exec", str(container.vmid), "--", "touch", "/srv/again/x", check=False)
    assert "Read-only" in done.stderr
    container.set({"delete": "mp1"})
    container.set({"delete": "unused0"})
    assert container.node.images() == [image for image in container.node.images() if "disk-1" not in image]


def test_a_mount_point_in_use_stays(container: Container) -> None:
    container.set(mp0="local:0,mp=/srv/busy")
    holder = subprocess.Popen(
        [*orrery_exec(container), "sh", "-c", "cd /srv/busy && echo ready && exec sleep 1000"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        upid = container.api.put(f"{container.path}/config", delete="mp0")
        if upid is not None:
            assert container.api.ended(upid).startswith("WARNINGS")
        assert "mp0" in container.pending()
    finally:
        container.inside("killall", "sleep")
        holder.wait(10)
    container.api.put(f"{container.path}/config", revert="mp0")
    container.set({"delete": "mp0"})
    container.set({"delete": "unused0"})


def orrery_exec(container: Container) -> list[str]:
    """The command line that runs a program inside."""
    return [str(ORRERY), "ct", "exec", str(container.vmid), "--root", str(container.node.folder), "--"]


def test_what_cannot_change_now_waits_for_the_next_start(stopped: Container) -> None:
    stopped.run("start")
    stopped.set(hostname="renamed", nameserver="192.0.2.53")
    assert stopped.pending() == {"hostname": "renamed", "nameserver": "192.0.2.53"}
    assert stopped.inside("hostname") == f"CT{stopped.vmid}"
    stopped.set({"revert": "nameserver"})
    stopped.run("reboot")
    assert stopped.inside("hostname") == "renamed"
    assert stopped.pending() == {}
    assert "192.0.2.53" not in stopped.inside("cat", "/etc/resolv.conf")


def test_a_digest_that_is_old_and_what_cannot_be(stopped: Container) -> None:
    digest = stopped.config()["digest"]
    stopped.set(memory=80)
    for parameters in (
        {"memory": 90, "digest": digest},
        {"rootfs": "local:1"},
        {"unprivileged": 0},
        {"mp0": "local:0.0625"},
        {"mp0": "local:0.0625,mp=/a", "mp1": "local:0.0625,mp=/a"},
        {"net0": "name=eth0,bridge=nowhere,ip=dhcp", "memory": 1},
        {"delete": "rootfs"},
        {"mp0": "local:999/vm-999-disk-0.raw,mp=/x"},
        {"mp0": "elsewhere:1,mp=/x"},
    ):
        before = stopped.config()
        with pytest.raises((ApiError, TaskFailed)):
            stopped.set(dict(parameters))
        assert stopped.config() == before


# --- its volumes


def test_volumes_grow(stopped: Container) -> None:
    stopped.run("start")
    before = int(stopped.inside("sh", "-c", "df -k / | awk 'END {print $2}'"))
    grow = {"disk": "rootfs", "size": "+32M"}
    if has_capability(SYS_RESOURCE):
        stopped.api.wait(stopped.api.put(f"{stopped.path}/resize", grow))
    else:
        with pytest.raises(ApiError, match="in use"):
            stopped.api.put(f"{stopped.path}/resize", grow)
        stopped.run("stop")
        stopped.api.wait(stopped.api.put(f"{stopped.path}/resize", grow))
        stopped.run("start")
    assert int(stopped.inside("sh", "-c", "df -k / | awk 'END {print $2}'")) > before + (24 << 10)
    assert stopped.config()["rootfs"].endswith("size=96M")
    with pytest.raises(ApiError, match="shrink"):
        stopped.api.put(f"{stopped.path}/resize", disk="rootfs", size="1M")


def test_a_volume_moves_to_another_storage_and_container(node: Node, stopped: Container, tmp_path: Path) -> None:
    stopped.set(mp0="local:0,mp=/data/deep")
    stopped.run("start")
    stopped.inside(
        "sh", "-c", "cd /data/deep; echo x >f; chown 33:44 f; chmod 4750 f; ln -s /etc/passwd l; mkdir -m 700 d"
    )
    stopped.run("stop")
    node.root.post("/storage", storage="second", type="dir", path=str(tmp_path / "second"), content="rootdir")
    try:
        move = {"volume": "mp0", "storage": "second", "delete": 1}
        stopped.api.wait(stopped.api.post(f"{stopped.path}/move_volume", move))
        stopped.api.wait(stopped.api.post(f"{stopped.path}/move_volume", {"volume": "rootfs", "storage": "second"}))
        config = stopped.config()
        assert config["mp0"].startswith("second:")
        assert config["rootfs"].startswith("second:")
        assert config["unused0"].startswith("local:")
        stopped.run("start")
        listed = stopped.inside("sh", "-c", "cd /data/deep; stat -c '%a %u %g %F' f d; readlink l")
        assert listed.splitlines() == ["4750 33 44 regular file", "700 0 0 directory", "/etc/passwd"]
        stopped.run("stop")
        other = node.container(DEMO)
        give = {"volume": "mp0", "target-vmid": other.vmid, "target-volume": "mp5"}
        stopped.api.wait(stopped.api.post(f"{stopped.path}/move_volume", give))
        assert "mp0" not in stopped.config()
        assert other.config()["mp5"].startswith(f"second:{other.vmid}/subvol-{other.vmid}-")
        other.run("start")
        assert other.inside("cat", "/data/deep/f") == "x"
        other.destroy()
        stopped.destroy()
        assert not [path for path in (tmp_path / "second").rglob("*") if path.is_file()]
    finally:
        node.root.delete("/storage/second")


def test_what_a_template_has_at_a_mount_point_is_on_its_volume(node: Node, template: str) -> None:
    made = node.container(template, start=True, mp0="local:0.0625,mp=/usr/lib", mp1="local:0,mp=/srv/new")
    mounted = made.inside("cat", "/proc/mounts")
    assert " /usr/lib ext4 " in mounted
    assert "boot" in made.inside("ls", "/usr/lib/guest").split()
    assert made.inside("ls", "-A", "/srv/new") == ""
    made.destroy()


# --- its end


def test_it_shuts_down_reboots_from_inside_and_is_gone_without_a_trace(node: Node, template: str) -> None:
    made = node.container(template, start=True)
    address = made.address()
    made.inside("reboot")
    eventually(lambda: ping(made.address()), 30, "an address after a reboot from inside")
    assert made.address() == address
    power_off(made)
    eventually(lambda: not node.paths.guest_run(made.vmid).exists(), 20, "tidying up")
    made.run("start")
    made.run("shutdown", timeout=30)
    assert made.status()["status"] == "stopped"
    node.api.wait(node.api.delete(made.path))
    traces(node, made.vmid)


def power_off(container: Container) -> None:
    """Lets the system inside end by itself; a first process that has only just begun may not listen yet."""

    def ended() -> bool:
        container.node.cli("ct", "exec", str(container.vmid), "--", "poweroff", check=False)
        return bool(container.status()["status"] == "stopped")

    eventually(ended, 30, "the end")


def traces(node: Node, vmid: int) -> None:
    """Nothing is left of a container."""
    assert vmid not in node.containers()
    assert not [group for group in node.groups() if group.name.endswith(f"-{vmid}")]
    assert not [image for image in node.images() if image.startswith(f"{vmid}/")]
    assert not node.paths.guest_run(vmid).exists()
    assert node.locks() == []


def test_a_container_whose_monitor_is_killed_ends_whole(node: Node, stopped: Container) -> None:
    stopped.run("start")
    first = first_process(stopped)
    os.kill(stopped.pid(), signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{first}").exists(), 20, "the end of its processes")
    eventually(lambda: stopped.status()["status"] == "stopped", 20, "the end")
    eventually(lambda: not node.paths.guest_run(stopped.vmid).exists(), 20, "tidying up")
    assert stopped.vmid not in node.containers()
    stopped.run("start")
    assert stopped.inside("echo", "again") == "again"


def test_it_survives_the_end_of_the_node(fresh_node: Node, demo_archive: Path) -> None:
    template = fresh_node.import_template(demo_archive)
    made = fresh_node.container(template, start=True, onboot=1, startup="order=1,down=2")
    pid = made.pid()
    fresh_node.end(signal.SIGKILL)
    assert Path(f"/proc/{pid}").exists()
    fresh_node.serve()
    assert made.pid() == pid
    assert made.inside("echo", "still here") == "still here"
    fresh_node.cli("down")
    assert not Path(f"/proc/{pid}").exists()
    fresh_node.serving = None
    fresh_node.paths.boot_file.unlink()
    fresh_node.serve()
    eventually(lambda: made.status()["status"] == "running", 30, "its start with the host")


def test_its_hook_script_is_told_of_every_phase(node: Node, stopped: Container, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = node.paths.local_storage / "snippets" / "container-hook.sh"
    script.write_text(f"#!/bin/sh\necho $1 $2 >>{told}\n")
    script.chmod(0o755)
    node.root.put(f"{stopped.path}/config", hookscript="local:snippets/container-hook.sh")
    stopped.run("start")
    stopped.run("stop")
    stopped.run("start")
    power_off(stopped)
    phases = ["pre-start", "post-start", "pre-stop", "post-stop", "pre-start", "post-start", "post-stop"]
    eventually(lambda: len(told.read_text().splitlines()) == len(phases), 30, "the last phase")
    assert told.read_text().splitlines() == [f"{stopped.vmid} {phase}" for phase in phases]


# --- several at once, and bad input


def test_several_are_made_and_started_at_once(node: Node, template: str) -> None:
    vmids = [node.next_vmid() for _ in range(6)]
    begun = [node.api.post(f"{node.path}/lxc", container_options(vmid, template) | {"start": 1}) for vmid in vmids]
    for upid in begun:
        node.api.wait(upid, 120)
    made = [Container(node, vmid) for vmid in vmids]
    assert len({each.address() for each in made}) == len(made)
    for upid in [node.api.delete(each.path, force=1) for each in made]:
        node.api.wait(upid, 120)
    for vmid in vmids:
        traces(node, vmid)


def test_templates_that_are_none_leave_nothing(node: Node, demo_archive: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(demo_archive.read_bytes()[:-100_000])
    volume = node.import_template(broken, "broken.tar.gz")
    vmid = node.next_vmid()
    before = node.images()
    for options in ({"ostemplate": volume}, {"rootfs": "local:0.0078125"}, {"ostemplate": volume, "rootfs": "local:0"}):
        given = container_options(vmid, DEMO) | options
        with pytest.raises((TaskFailed, ApiError)) as caught:
            node.api.wait(node.api.post(f"{node.path}/lxc", given))
        assert "internal" not in str(caught.value)
        assert vmid not in [row["vmid"] for row in node.api.get(f"{node.path}/lxc")]
        assert node.images() == before
        assert node.locks() == []
    node.root.delete(f"{node.path}/storage/local/content/{volume}")


def test_a_machine_and_a_container_do_not_mix(node: Node, stopped: Container, demo_image: Prepared) -> None:
    machine = node.guest()
    for verb, path in (
        ("GET", f"{node.path}/lxc/{machine.vmid}/config"),
        ("GET", f"{node.path}/qemu/{stopped.vmid}/config"),
    ):
        assert node.api.send(verb, path).status_code == 500
    with pytest.raises(ApiError):
        node.api.post(f"{node.path}/lxc", container_options(machine.vmid, DEMO))
    machine.run("start")
    time.sleep(2.5)  # a round of tidying up must leave both alone
    stopped.run("start")
    assert machine.status()["status"] == stopped.status()["status"] == "running"
    machine.destroy()
