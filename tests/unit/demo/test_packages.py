# SPDX-License-Identifier: AGPL-3.0-or-later
import hashlib
from pathlib import Path

import pytest

from orrery.demo.packages import DebianPackages
from orrery.errors import Failure
from orrery.system.process import Call, Completed, recording

GRAPH = b"""linux-image-cloud-amd64
  Depends: linux-image-6.1.0-1-cloud-amd64
dropbear-bin
  Depends: libc6
 |Depends: libcrypt1
  Depends: <libvirtual>
    libsomething
  PreDepends: debconf
libc6
  Depends: libgcc-s1
  Depends: libcrypt1
libgcc-s1
libcrypt1
  Depends: libc6
debconf
  Depends: libperl
"""
DEB = b"a package"
DIGEST = hashlib.sha256(DEB).hexdigest()


def answer(uris: str, *, downloads: dict[str, bytes] | None = None, cache: Path | None = None):
    def reply(call: Call) -> Completed:
        match call.argv[0]:
            case "apt-cache":
                return Completed(call.argv, 0, GRAPH)
            case "apt-get" if "--print-uris" in call.argv:
                return Completed(call.argv, 0, uris.encode())
            case "apt-get":
                assert cache is not None
                for name, content in (downloads or {}).items():
                    (cache / "packages" / name).write_bytes(content)
            case "dpkg-deb":
                Path(call.argv[-1]).mkdir()
        return Completed(call.argv, 0)

    return reply


def test_needed_follows_libraries_and_takes_the_concrete_kernel(tmp_path: Path) -> None:
    with recording(answer("")):
        names = DebianPackages(tmp_path).needed("cloud-amd64", ["dropbear-bin"])
    assert names == ["linux-image-6.1.0-1-cloud-amd64", "dropbear-bin", "libc6", "libcrypt1", "libgcc-s1"]


def test_an_unknown_kernel_is_named(tmp_path: Path) -> None:
    with recording(answer("")), pytest.raises(Failure, match="linux-image-nonsense"):
        DebianPackages(tmp_path).needed("nonsense", [])


def test_a_package_is_downloaded_and_unpacked_once(tmp_path: Path) -> None:
    uris = f"'http://deb.debian.org/x.deb' x_1%3a2_amd64.deb 9 SHA256:{DIGEST}\n"
    packages = DebianPackages(tmp_path)
    with recording(answer(uris, downloads={"x_1%3a2_amd64.deb": DEB}, cache=tmp_path)) as first:
        trees = packages.unpack(["x"])
    with recording(answer(uris)) as second:
        assert packages.unpack(["x"]) == trees
    assert [call.argv[0] for call in first.calls] == ["apt-get", "apt-get", "dpkg-deb"]
    assert [call.argv[0] for call in second.calls] == ["apt-get"]
    assert trees[0].is_dir()


def test_a_damaged_package_is_never_unpacked(tmp_path: Path) -> None:
    uris = f"'http://deb.debian.org/x.deb' x_1_amd64.deb 9 SHA256:{DIGEST}\n"
    reply = answer(uris, downloads={"x_1_amd64.deb": b"a packagf"}, cache=tmp_path)
    with recording(reply) as recorder, pytest.raises(Failure, match="damaged"):
        DebianPackages(tmp_path).unpack(["x"])
    assert not any(call.argv[0] == "dpkg-deb" for call in recorder.calls)


def test_a_package_that_apt_does_not_offer_is_an_error(tmp_path: Path) -> None:
    with recording(answer("")), pytest.raises(Failure, match="apt-get update"):
        DebianPackages(tmp_path).unpack(["x"])
