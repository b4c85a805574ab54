# SPDX-License-Identifier: AGPL-3.0-or-later
"""What sources of images publish: lists of checksums, Alpine's index, apt's sources."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.drivers.images.imagesite import alpine_index

from orrery.drivers.images.aptsources import Repository, lines_for, parse
from orrery.drivers.images.base import Digest
from orrery.drivers.images.checksums import find_checksum
from orrery.drivers.images.minirootfs import parse_items
from orrery.errors import Failure
from orrery.model.images import CATALOGUE, Debootstrap

A, B = "a" * 64, "b" * 64
A512 = "a" * 128

SIGNED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2: 583532544 bytes
SHA256 (Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2) = {A}
SHA256 (other.qcow2) = {B}
-----BEGIN PGP SIGNATURE-----

{B}  Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{B}  x.img\n{A}  y.img\n", "y.img"),
        (f"{B} *x.img\n{A.upper()} *y.img\n", "y.img"),
        (f"{A}  ./y.img\n", "y.img"),
        (f"{A}\n", "y.img"),
        (f"SHA256 (y.img) = {A}\nSHA512 (y.img) = {A512}\n", "y.img"),
        (SIGNED, "Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2"),
        (f"{A}  a name with spaces.img\n", "a name with spaces.img"),
    ],
)
def test_checksums(text: str, name: str) -> None:
    assert find_checksum(text.encode(), name, "sha256") == Digest("sha256", A)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{A}  other.img",
        f"{A}  y.img\n{B}  y.img",
        f"SHA512 (y.img) = {A512}",
        f"{'a' * 40}  y.img",
        f"{A}\n{B}\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\n\n-----BEGIN PGP SIGNATURE-----\n{A}  y.img\n",
        "<html><title>Not found</title></html>",
    ],
)
def test_lists_without_the_checksum(text: str) -> None:
    with pytest.raises(Failure):
        find_checksum(text.encode(), "y.img", "sha256")


@given(st.binary(max_size=500))
def test_any_list_gives_a_checksum_or_failure(data: bytes) -> None:
    try:
        find_checksum(data, "y.img", "sha256")
    except Failure:
        return


def test_alpine_index() -> None:
    items = parse_items(alpine_index("alpine-minirootfs-3.22.2-x86_64.tar.gz", b"x").decode())
    assert [item["flavor"] for item in items] == ["alpine-standard", "alpine-minirootfs"]
    assert items[1]["version"] == "3.22.2"
    assert "desc" not in items[1]


DEB822 = """# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main

Types: deb
URIs: https://packages.example/tool
Suites: stable
Components: extra

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
TRIXIE = Debootstrap("trixie", "http://deb.debian.org/debian", "/k.gpg")


def test_mirrors_of_the_host_serve_other_releases_too() -> None:
    assert lines_for(TRIXIE, "debian", parse(DEB822)) == [
        "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main",
        "deb [signed-by=/k.gpg] http://mirror.example/debian trixie-updates main",
        "deb [signed-by=/k.gpg] http://mirror.example/debian-security trixie-security main",
    ]


def test_sources_in_lines() -> None:
    text = "deb [arch=amd64 signed-by=/x] https://a.example/debian bookworm main # ours\n#deb http://no bookworm main\n"
    assert parse(text) == [Repository("https://a.example/debian", "bookworm", ("main",))]
    assert parse("deb cdrom:[Debian] bookworm main\ndeb file:/srv/debian bookworm main") == []


def test_a_host_without_mirrors_of_the_distribution() -> None:
    lines = lines_for(TRIXIE, "debian", parse("deb https://packages.example/tool stable extra"))
    assert lines[0].split()[2] == "http://deb.debian.org/debian"
    assert lines[2].split()[2:] == ["http://security.debian.org/debian-security", "trixie-security", "main"]
    ubuntu = next(entry.source for entry in CATALOGUE if entry.alias == "ubuntu-24.04" and entry.kind == "container")
    assert isinstance(ubuntu, Debootstrap)
    assert [line.split()[2] for line in lines_for(ubuntu, "ubuntu", parse(DEB822))] == [ubuntu.mirror] * 3


@given(st.text(max_size=300))
def test_any_sources_list_is_read(text: str) -> None:
    for repository in parse(text):
        assert repository.uri.startswith(("http://", "https://"))
