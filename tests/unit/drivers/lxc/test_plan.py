# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is decided before a container starts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden.lxc_cases import VERSION_1, mount_of

from orrery.drivers.lxc import config, plan, seccomp
from orrery.drivers.lxc.plan import ContainerPlan
from orrery.errors import Failure, NotSupported, ParameterError
from orrery.model.container_devices import container_view
from orrery.model.container_devices import mounts as parse_mounts
from orrery.model.guest import GuestConfig
from orrery.system.mounts import ContainerMount, Folder

ROOT = {"rootfs": "local:100/vm-100-disk-0.raw", "unprivileged": "1"}


def build(**options: str) -> ContainerPlan:
    chosen = {**ROOT, **options}
    mounts = {point.key: mount_of(point) for point in parse_mounts(chosen)}
    view = container_view(GuestConfig(options=chosen))
    return plan.build(100, view, VERSION_1, mounts, {}, {}, folder=Path("/run/x/100"), group="g/1", monitor="g/2")


def test_what_cannot_be_built() -> None:
    with pytest.raises(NotSupported, match="'mknod' is not supported yet"):
        build(features="mknod=1")
    with pytest.raises(ParameterError):
        plan.build(
            *(100, container_view(GuestConfig(options=ROOT)), VERSION_1, {}, {}, {}),
            folder=Path("/x"),
            group="g",
            monitor="m",
        )
    with pytest.raises(Failure, match="has not been taken yet"):
        config.render(build(idmap="own"))


def test_nothing_gets_a_second_line_into_the_configuration() -> None:
    mounts = {
        "rootfs": ContainerMount("rootfs", Folder(Path("/a"))),
        "mp0": ContainerMount("mp0", Folder(Path("/b")), "/x\nlxc.cap.drop ="),
    }
    view = container_view(GuestConfig(options=ROOT))
    built = plan.build(100, view, VERSION_1, mounts, {}, {}, folder=Path("/x"), group="g", monitor="m")
    with pytest.raises(Failure, match="it has more than one line"):
        config.render(built)


def test_mount_points_are_made_by_us_where_somebody_inside_may_have_put_links() -> None:
    points = {"mp0": "/srv", "mp1": "/srv/data", "mp2": "/dev/disk", "mp3": "/dev/disk/more", "mp4": "/srvx"}
    built = build(**{key: f"local:100/vm-100-disk-{key[2:]}.raw,mp={place}" for key, place in points.items()})
    outer = {mount.key: built.outer(mount) for mount in built.mounts}
    assert {key: found.key if found else None for key, found in outer.items()} == {
        "rootfs": None,
        "mp0": "rootfs",
        "mp1": "mp0",
        "mp2": None,
        "mp3": "mp2",
        "mp4": "rootfs",
    }
    entries = [line for line in config.render(built).splitlines() if "/run/lxc/mp" in line]
    assert [line.split()[2] for line in entries if "create=" in line] == ["/run/lxc/mp2"]


@given(st.integers(100, 10_000), st.integers(1, 8))
def test_as_many_processors_as_cores(vmid: int, cores: int) -> None:
    view = container_view(GuestConfig(options={**ROOT, "cores": str(cores)}))
    cpus = plan.limits(vmid, view, VERSION_1).cpus
    if cores >= 4:
        assert cpus is None
    else:
        assert cpus is not None
        chosen = cpus.split(",")
        assert len(set(chosen)) == cores
        assert set(chosen) <= {"0", "1", "2", "3"}


def test_containers_are_spread_over_the_processors() -> None:
    view = container_view(GuestConfig(options={**ROOT, "cores": "1"}))
    assert {plan.limits(vmid, view, VERSION_1).cpus for vmid in range(100, 104)} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("nesting", [False, True])
@pytest.mark.parametrize("keyctl", [False, True])
def test_profiles_close_the_doors_into_the_kernel(privileged: bool, nesting: bool, keyctl: bool) -> None:
    lines = seccomp.profile(privileged=privileged, nesting=nesting, keyctl=keyctl).splitlines()
    assert lines[:2] == ["2", "denylist"]
    for name in ("kexec_load", "init_module", "finit_module", "delete_module", "open_by_handle_at"):
        assert f"{name} errno 1" in lines
    assert ("keyctl errno 38" in lines) is not keyctl
    assert ("swapon errno 1" in lines) is privileged
    assert ("reject_force_umount" in lines) is not nesting
