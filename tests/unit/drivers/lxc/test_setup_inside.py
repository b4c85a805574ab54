# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names, resolver, accounts, identities, logins: on skeleton trees, friendly, edited, broken and hostile."""

import contextlib
import os
import stat
import subprocess
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.drivers.lxc.skeletons import SKELETONS, Nic, build, contents, wishes

from orrery.drivers.lxc.setup import accounts, identities, resolver, set_up, timezone
from orrery.drivers.lxc.setup.blocks import BEGIN, END, split, with_block
from orrery.drivers.lxc.tree import Tree
from orrery.errors import Failure, OrreryError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFoo anna@desk"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


def run(root, name, *nics, **more):
    notes: list[str] = []
    with Tree(root) as tree:
        set_up(tree, wishes(name, nics=nics, **more), notes.append)
    return notes


def text(root, path):
    return (root / path).read_text()


# --- blocks

LINES = st.lists(st.sampled_from(["a", "", " b ", "# c", BEGIN, END, "# --- BEGIN PVE ---", "# --- END PVE ---"]))


@settings(database=None)
@given(lines=LINES, body=st.lists(st.sampled_from(["x", "y z"]), max_size=3), first=st.booleans())
def test_a_block_is_written_once_and_others_lines_stay(lines, body, first):
    before = "".join(f"{line}\n" for line in lines)
    after = with_block(before, body, first=first)
    assert with_block(after, body, first=first) == after
    assert after.count(BEGIN) == after.count(END) == (1 if body else 0)
    assert [*chain(*split(before))] == [*chain(*split(after))]
    if body:
        assert f"{BEGIN}\n" + "".join(f"{line}\n" for line in body) + END in after


def test_a_begin_without_an_end_swallows_nothing():
    assert with_block(f"a\n{BEGIN}\nb\n", ["x"]) == f"a\n{BEGIN}\nx\n{END}\nb\n"


def test_a_block_of_a_proxmox_host_becomes_ours():
    text = "a\n# --- BEGIN PVE ---\nold\n# --- END PVE ---\nb\n"
    assert with_block(text, ["new"]) == f"a\n{BEGIN}\nnew\n{END}\nb\n"


# --- names


def test_name_and_addresses(root):
    build(root, "arch")
    (root / "etc/hosts").write_text("127.0.0.1 localhost mybox\n10.1.1.1 friend")
    run(root, "arch", Nic(ip="192.0.2.5/24"), Nic(name="eth1", ip="198.51.100.5/24", ip6="2001:db8::5/64"))
    assert text(root, "etc/hostname") == "web1\n"
    assert text(root, "etc/hosts") == (
        f"127.0.0.1 localhost mybox\n10.1.1.1 friend\n{BEGIN}\n::1 localhost ip6-localhost ip6-loopback\n"
        f"192.0.2.5 web1.example.org web1\n2001:db8::5 web1.example.org web1\n{END}\n"
    )
    run(root, "arch", Nic(ip="dhcp"), hostname="other")
    assert text(root, "etc/hosts").endswith(f"127.0.1.1 other\n{END}\n")
    assert text(root, "etc/hostname") == "other\n"


def test_bytes_that_are_no_text_survive(root):
    build(root, "arch")
    (root / "etc/hosts").write_bytes(b"10.0.0.1 \xff\xfe\n")
    assert run(root, "arch") == []
    assert (root / "etc/hosts").read_bytes().startswith(b"10.0.0.1 \xff\xfe\n")


@pytest.mark.parametrize("more", [{"hostname": "a\nb"}, {"nameserver": "1.1.1.1\nx"}, {"password_hash": "a:b"}])
def test_no_line_can_be_smuggled_in(more):
    with pytest.raises(Failure, match="characters that no file can hold"):
        wishes("debian", **more)


# --- resolver


def test_resolver_as_configured(root):
    build(root, "alpine")
    (root / "etc/resolv.conf").write_text("options edns0\n")
    wanted = {"nameserver": "192.0.2.53,192.0.2.54 2001:db8::53 192.0.2.55", "searchdomain": "a.example b.example"}
    run(root, "alpine", **wanted)
    assert text(root, "etc/resolv.conf") == (
        f"{BEGIN}\nsearch a.example b.example\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n"
        f"nameserver 2001:db8::53\n{END}\noptions edns0\n"
    )
    run(root, "alpine", Nic(ip="dhcp"))
    assert text(root, "etc/resolv.conf") == "options edns0\n"
    run(root, "alpine", fresh=True, **wanted)
    assert "edns0" not in text(root, "etc/resolv.conf")


def test_resolver_of_systemd(root):
    build(root, "ubuntu")
    (root / "usr/lib/systemd/systemd-resolved").touch()
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    run(root, "ubuntu", nameserver="192.0.2.53", searchdomain="a.example")
    assert (root / "etc/resolv.conf").is_symlink()
    drop_in = "etc/systemd/resolved.conf.d/orrery.conf"
    assert text(root, drop_in).splitlines()[1:] == ["[Resolve]", "DNS=192.0.2.53", "Domains=a.example"]
    run(root, "ubuntu")
    assert not (root / drop_in).exists()
    (root / "usr/lib/systemd/systemd-resolved").unlink()
    run(root, "ubuntu", nameserver="192.0.2.53")
    assert not (root / "etc/resolv.conf").is_symlink()
    assert "nameserver 192.0.2.53\n" in text(root, "etc/resolv.conf")


def test_resolver_of_the_host(root, tmp_path):
    build(root, "alpine")
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\nsearch home.example\n")
    real.write_text("nameserver fe80::1%eth0\nnameserver 192.0.2.53\nnameserver rubbish\n")
    with Tree(root) as tree:
        resolver.resolver(tree, wishes("alpine", nics=(Nic(ip="192.0.2.5/24"),)), (stub, tmp_path / "none", real))
        assert text(root, "etc/resolv.conf") == f"{BEGIN}\nsearch home.example\nnameserver 192.0.2.53\n{END}\n"
        resolver.resolver(tree, wishes("alpine", nics=(Nic(ip="dhcp"),)), (real,))
        assert not (root / "etc/resolv.conf").exists()


# --- accounts


def test_password_and_keys_of_a_new_container(root):
    build(root, "debian")
    os.chown(root / "etc/shadow", 0, 42)
    (root / "etc/shadow").chmod(0o640)
    assert run(root, "debian", fresh=True, password_hash="$y$abc$def", ssh_keys=f"{KEY}\n\n{KEY}\n") == []
    assert text(root, "etc/shadow") == "root:$y$abc$def:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n"
    state = (root / "etc/shadow").stat()
    assert (state.st_gid, stat.S_IMODE(state.st_mode)) == (42, 0o640)
    assert text(root, "root/.ssh/authorized_keys") == f"{KEY}\n"
    assert stat.S_IMODE((root / "root/.ssh").stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "root/.ssh/authorized_keys").stat().st_mode) == 0o600


def test_nothing_of_it_later(root):
    build(root, "debian")
    (root / "etc/machine-id").write_text("x\n")
    run(root, "debian", password_hash="$y$abc", ssh_keys=KEY)
    assert "root:*:" in text(root, "etc/shadow")
    assert not (root / "root/.ssh").exists()
    assert text(root, "etc/machine-id") == "x\n"


def test_accounts_that_lack_something(root):
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root::0:0:root:/home/boss:/bin/sh\n")
    with Tree(root) as tree:
        accounts.password(tree, "$6$x")
        accounts.authorized_keys(tree, KEY)
    assert text(root, "etc/passwd") == "root:x:0:0:root:/home/boss:/bin/sh\n"
    assert text(root, "etc/shadow") == "root:$6$x::0:99999:7:::\n"
    assert stat.S_IMODE((root / "etc/shadow").stat().st_mode) == 0o600
    assert text(root, "home/boss/.ssh/authorized_keys") == f"{KEY}\n"


# --- identities


def test_machine_id_is_new_each_time(root):
    build(root, "debian")
    (root / "var/lib/dbus").mkdir(parents=True)
    (root / "var/lib/dbus/machine-id").write_text("old\n")
    run(root, "debian", fresh=True)
    first = text(root, "etc/machine-id")
    assert len(bytes.fromhex(first)) == 16
    assert str((root / "var/lib/dbus/machine-id").readlink()) == "/etc/machine-id"
    run(root, "debian", fresh=True)
    assert text(root, "etc/machine-id") != first


def test_a_tree_without_systemd_gets_no_machine_id(root):
    build(root, "alpine")
    run(root, "alpine", fresh=True)
    assert not (root / "etc/machine-id").exists()


def test_ssh_host_keys_are_made_anew_and_ssh_reads_them(root):
    build(root, "debian")
    (root / "etc/ssh").mkdir()
    (root / "etc/ssh/sshd_config").touch()
    for name in ("ssh_host_dsa_key", "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "ssh_host_ecdsa_key"):
        (root / "etc/ssh" / name).write_text("of the template")
    run(root, "debian", fresh=True)
    names = {path.name for path in (root / "etc/ssh").iterdir()}
    assert names == {
        "sshd_config",
        *(f"ssh_host_{kind}_key{end}" for kind in ("ed25519", "ecdsa") for end in ("", ".pub")),
    }
    for kind in ("ed25519", "ecdsa"):
        path = root / f"etc/ssh/ssh_host_{kind}_key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        shown = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, check=True, text=True).stdout
        assert shown.split()[:2] == text(root, f"etc/ssh/ssh_host_{kind}_key.pub").split()[:2]
    with Tree(root) as tree:
        identities.ssh_host_keys(tree, "again")
        assert tree.read("/etc/ssh/ssh_host_ed25519_key.pub").endswith(b" root@again\n")


# --- time zone


def test_time_zone_of_the_tree(root):
    build(root, "debian")
    (root / "usr/share/zoneinfo/Europe").mkdir(parents=True)
    (root / "usr/share/zoneinfo/Europe/Rome").touch()
    (root / "etc/timezone").write_text("Etc/UTC\n")
    assert run(root, "debian", timezone="Europe/Rome") == []
    assert str((root / "etc/localtime").readlink()) == "/usr/share/zoneinfo/Europe/Rome"
    assert text(root, "etc/timezone") == "Europe/Rome\n"


def test_time_zone_of_the_host_where_the_tree_has_none(root):
    build(root, "alpine")
    (root / "etc/localtime").symlink_to("/nowhere")
    assert run(root, "alpine", timezone="UTC") == []
    assert (root / "etc/localtime").read_bytes().startswith(b"TZif")
    assert timezone.of_host()


@pytest.mark.parametrize("name", ["../../etc/shadow", "/etc/passwd", "No/Such", "zone.tab", "a b", ""])
def test_what_is_no_time_zone(root, name):
    build(root, "alpine")
    with Tree(root) as tree, pytest.raises(Failure):
        timezone.timezone(tree, name)
    assert not (root / "etc/localtime").exists()


# --- logins


def test_logins_of_systemd(root):
    build(root, "debian")
    run(root, "debian", ttys=2)
    wants = root / "etc/systemd/system/getty.target.wants"
    assert sorted(path.name for path in wants.iterdir()) == ["getty@tty1.service", "getty@tty2.service"]
    assert text(root, "etc/systemd/system/getty@.service.d/orrery.conf").endswith("[Unit]\nConditionPathExists=\n")
    run(root, "debian", ttys=1)
    assert [path.name for path in wants.iterdir()] == ["getty@tty1.service"]


def test_logins_of_inittab(root):
    build(root, "alpine")
    run(root, "alpine", ttys=2)
    assert text(root, "etc/inittab") == (
        "::sysinit:/sbin/openrc sysinit\ntty1::respawn:/sbin/getty 38400 tty1\n"
        "#orrery# tty6::respawn:/sbin/getty 38400 tty6\n"
        f"{BEGIN}\nconsole::respawn:/sbin/getty 38400 console\ntty2::respawn:/sbin/getty 38400 tty2\n{END}\n"
    )
    run(root, "alpine", ttys=6, console=False)
    assert "\ntty6::respawn:/sbin/getty 38400 tty6\n" in text(root, "etc/inittab")
    assert "console" not in text(root, "etc/inittab")


@pytest.mark.parametrize(("name", "program"), [("devuan", "/sbin/getty"), ("gentoo", "/sbin/agetty")])
def test_logins_of_the_old_init(root, name, program):
    build(root, name)
    run(root, name, ttys=1)
    assert f"{BEGIN}\nco:2345:respawn:{program} 38400 console\n{END}\n" in text(root, "etc/inittab")
    assert text(root, "etc/inittab").count("#orrery# ") == 1


def test_a_unit_that_cannot_work_is_masked_once(root):
    build(root, "debian")
    (root / "usr/lib/systemd/system/systemd-journald-audit.socket").touch()
    mask = root / "etc/systemd/system/systemd-journald-audit.socket"
    run(root, "debian", fresh=True, unprivileged=False)
    assert not mask.is_symlink()
    run(root, "debian", fresh=True)
    assert str(mask.readlink()) == "/dev/null"


# --- hostile


def spoil(root, kind, outside):
    """Replace every file that the set-up touches by something that it should not be."""
    names = (
        *("etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/network/interfaces", "etc/inittab", "etc/localtime"),
        *("etc/netplan/90-orrery.yaml", "etc/systemd/network/50-orrery-eth0.network", "etc/conf.d/net", "etc/timezone"),
        *("etc/conf.d/hostname", "etc/sysconfig/network-scripts/ifcfg-eth0", "etc/sysconfig/network/ifcfg-eth0"),
        "etc/NetworkManager/system-connections/orrery-eth0.nmconnection",
    )
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
            (path / "x").touch()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "huge":
            with path.open("wb") as handle:
                handle.truncate(1 << 30)
        elif kind == "link out":
            (outside / path.name).write_text("of the host\n")
            path.symlink_to(outside / path.name)
        elif kind == "loop":
            path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["folder", "pipe", "huge", "link out", "loop"])
@pytest.mark.parametrize("name", sorted(set(SKELETONS) - {"nixos", "busybox"}))
def test_hostile_files_are_told_and_the_host_is_out_of_reach(root, tmp_path, name, kind):
    outside = tmp_path / "host"
    outside.mkdir()
    build(root, name)
    spoil(root, kind, outside)
    before = contents(outside)
    notes = run(root, name, Nic(ip="192.0.2.5/24"), timezone="UTC", nameserver="192.0.2.53")
    assert contents(outside) == before
    assert any("could not be set up" in note for note in notes)
    assert all("\n" not in note and len(note) < 300 for note in notes)


@pytest.mark.parametrize("folder", ["etc", "etc/systemd", "etc/systemd/system", "root", "usr"])
def test_a_folder_that_leads_to_the_host(root, tmp_path, folder):
    outside = tmp_path / "host"
    (outside / "ssh").mkdir(parents=True)
    (outside / "shadow").write_text("root:host:::::::\n")
    build(root, "debian")
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    if (root / folder).exists():
        (root / folder).rename(root / "aside")
    (root / folder).symlink_to(outside)
    before = contents(outside)
    with contextlib.suppress(OrreryError):
        run(root, "debian", Nic(ip="192.0.2.5/24"), fresh=True, password_hash="$6$x", ssh_keys=KEY, timezone="UTC")
    run(root, "debian", Nic(ip="192.0.2.5/24"), timezone="UTC")
    assert contents(outside) == before


def test_a_password_that_cannot_be_written_fails_the_creation(root):
    build(root, "debian")
    (root / "etc/shadow").unlink()
    (root / "etc/shadow").mkdir()
    with pytest.raises(Failure, match="'/etc/shadow' in the container is a folder, where a file belongs"):
        run(root, "debian", fresh=True, password_hash="$6$x")
