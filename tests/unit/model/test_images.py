# SPDX-License-Identifier: AGPL-3.0-or-later
"""The catalogue is sound, and names of images are read as everybody writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.model.images import (
    CATALOGUE,
    Cloud,
    ImageRecord,
    Reference,
    Sources,
    find_entry,
    looks_like_reference,
    oci_volume,
)
from orrery.model.volume import parse_volname


def test_names_of_the_catalogue_are_unique_and_names_of_volumes() -> None:
    seen = set()
    for entry in CATALOGUE:
        for name in (entry.alias, *entry.also):
            assert (name, entry.kind) not in seen
            seen.add((name, entry.kind))
        assert parse_volname(entry.volume).name == entry.volume


def test_every_cloud_image_has_what_a_login_needs() -> None:
    machines = [entry for entry in CATALOGUE if isinstance(entry.source, Cloud)]
    assert {entry.system for entry in machines} == {
        *("debian", "ubuntu", "fedora", "almalinux", "rocky", "opensuse", "alpine", "arch")
    }
    for entry in machines:
        assert isinstance(entry.source, Cloud)
        assert entry.default_user
        assert entry.source.url.startswith("https://")
        assert entry.source.checksums.startswith("https://")


@pytest.mark.parametrize(
    ("name", "kind", "alias"),
    [
        ("debian-12", "container", "debian-12"),
        ("Debian-12", "machine", "debian-12"),
        ("bookworm", "container", "debian-12"),
        ("debian", "machine", "debian-13"),
        ("debian-12_amd64.tar.zst", "container", "debian-12"),
        ("vztmpl/alpine-3.22_amd64.tar.gz", "container", "alpine-3.22"),
    ],
)
def test_finding_entries(name, kind, alias) -> None:
    found = find_entry(name, kind)
    assert found is not None
    assert (found.alias, found.kind) == (alias, kind)


def test_what_is_not_in_the_catalogue() -> None:
    assert find_entry("fedora-44", "container") is None
    assert find_entry("debian-12_amd64.tar.zst", "machine") is None


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag"),
    [
        ("nginx", "registry-1.docker.io", "library/nginx", "latest"),
        ("nginx:1.27", "registry-1.docker.io", "library/nginx", "1.27"),
        ("grafana/grafana:11", "registry-1.docker.io", "grafana/grafana", "11"),
        ("docker.io/library/alpine:3", "registry-1.docker.io", "library/alpine", "3"),
        ("ghcr.io/a/b/c:v1", "ghcr.io", "a/b/c", "v1"),
        ("localhost:5000/x:y", "localhost:5000", "x", "y"),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000", "a/b", "latest"),
    ],
)
def test_references(text, host, repository, tag) -> None:
    parsed = Reference.parse(text)
    assert (parsed.host, parsed.repository, parsed.tag) == (host, repository, tag)
    assert Reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["", "Nginx", "a//b", "../x", "x:", "x:-y", "https://x/y", "x@sha256:ab", "a b", "x\n", "-x", "x" * 600]
)
def test_what_is_no_reference(text) -> None:
    with pytest.raises(ValueError, match="name of an image"):
        Reference.parse(text)


@given(st.text(alphabet="a-._/:0A", max_size=480))
def test_references_are_read_quickly(text) -> None:
    try:
        parsed = Reference.parse(text)
    except ValueError:
        return
    assert Reference.parse(str(parsed)) == parsed


def test_names_for_oci_templates() -> None:
    assert oci_volume("nginx_1") == "vztmpl/nginx_1.tar"
    assert oci_volume("nginx.tar") == "vztmpl/nginx.tar"
    with pytest.raises(ValueError, match="must not contain"):
        oci_volume("../x")
    assert looks_like_reference("nginx:1")
    assert not looks_like_reference("debian-12")
    assert not looks_like_reference("https://x/y")


def test_sources() -> None:
    sources = Sources.parse(
        {
            "mirrors": "https://a.example/=http://10.0.0.1/a/, https://a.example/b/=http://10.0.0.2/",
            "simplestreams": "https://images.example/",
            "insecure-registries": "10.0.0.1:5000",
        }
    )
    assert sources.mirrored("https://a.example/x") == "http://10.0.0.1/a/x"
    assert sources.mirrored("https://a.example/b/x") == "http://10.0.0.2/x"
    assert sources.mirrored("https://b.example/x") == "https://b.example/x"
    assert sources.servers == ("https://images.example",)
    assert sources.insecure == {"10.0.0.1:5000"}
    assert Sources.parse({}) == Sources()


@pytest.mark.parametrize(
    "options",
    [{"mirrors": "x"}, {"mirrors": "https://a=ftp://b"}, {"simplestreams": "x"}, {"insecure-registries": "http://x"}],
)
def test_damaged_sources(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sources.parse(options)


def test_records() -> None:
    record = ImageRecord("nginx", "container", "oci", "x", 1, 2, oci={"cmd": ["a"]})
    assert ImageRecord.parse(record.document()) == record
    assert ImageRecord.parse(record.document() | {"later": 1}) == record
    assert ImageRecord.parse({"alias": "x"}) is None
    assert ImageRecord.parse("x") is None
