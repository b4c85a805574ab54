# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import pytest

from orrery.demo.modules import REQUIRED, KernelModules
from orrery.errors import Failure
from orrery.system.process import recording


def kernel(tmp_path: Path, extra: str = "") -> Path:
    folder = tmp_path / "tree/lib/modules/6.1"
    folder.mkdir(parents=True)
    rows = [f"kernel/{name.replace('_', '-')}.ko: kernel/bus.ko" for name in REQUIRED]
    rows.append("kernel/bus.ko:")
    (folder / "modules.dep").write_text("\n".join(rows) + "\n" + extra)
    (folder / "kernel").mkdir()
    for row in (*rows, *extra.splitlines()):
        (folder / row.split(":")[0]).write_text("module")
    for table in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (folder / table).touch()
    return tmp_path / "tree"


def test_a_module_brings_what_it_needs_and_no_more(tmp_path: Path) -> None:
    modules = KernelModules(kernel(tmp_path, "kernel/other.ko:\n"))
    with recording() as recorder:
        modules.install(["virtio_blk", "absent"], tmp_path / "root")
    folder = tmp_path / "root/lib/modules/6.1/kernel"
    assert sorted(path.name for path in folder.iterdir()) == ["bus.ko", "virtio-blk.ko"]
    assert recorder.calls[-1].argv == ("depmod", "-b", str(tmp_path / "root"), "6.1")


def test_a_kernel_without_the_essentials_is_refused(tmp_path: Path) -> None:
    tree = kernel(tmp_path)
    (tree / "lib/modules/6.1/modules.dep").write_text("kernel/bus.ko:\n")
    with pytest.raises(Failure, match="virtio_blk"):
        KernelModules(tree).install([], tmp_path / "root")


def test_two_kernels_in_one_tree_are_refused(tmp_path: Path) -> None:
    tree = kernel(tmp_path)
    (tree / "lib/modules/6.2").mkdir()
    with pytest.raises(Failure, match="2 kernels"):
        KernelModules(tree)
