# SPDX-License-Identifier: AGPL-3.0-or-later
"""The catalogue of images that guests can be made from, and the rules about names of images.

An entry says where a system comes from; what was fetched is an ordinary volume, and a record under `/images/VOLID` in
the store says which entry it came from. Addresses are those that the distributions publish; an installation may have
them read from elsewhere (`Sources.mirrored`), so that a site without Internet can use its own copies.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from orrery.model.volume import upload_name

Kind = Literal["container", "machine"]
KINDS: Final[tuple[Kind, ...]] = ("container", "machine")
CONTENT: Final[Mapping[Kind, str]] = {"container": "vztmpl", "machine": "import"}
ARCHITECTURE: Final = "amd64"


@dataclass(frozen=True, slots=True)
class Debootstrap:
    """Built from packages. `mirror` is used where the host's own apt sources have nothing of this distribution."""

    suite: str
    mirror: str
    keyring: str
    components: str = "main"

    name = "debootstrap"


@dataclass(frozen=True, slots=True)
class MiniRoot:
    """Alpine's small root archive: `index` is the address of `latest-releases.yaml`, the archive lies beside it."""

    index: str

    name = "minirootfs"


@dataclass(frozen=True, slots=True)
class Cloud:
    """A distribution's cloud image, and the file of checksums beside it."""

    url: str
    checksums: str
    algorithm: str

    name = "cloud"


@dataclass(frozen=True, slots=True)
class Stream:
    """A product of an image server that speaks simplestreams."""

    server: str
    product: str

    name = "simplestreams"


Source = Debootstrap | MiniRoot | Cloud | Stream


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """A system that a guest of one kind can be made from.

    `ending` is that of the file; `default_user` the account that a cloud image makes, empty where there is none;
    `memory` in MiB and `disk` in GiB are what a guest made from it gets when nothing else is asked for.
    """

    alias: str
    kind: Kind
    system: str
    release: str
    title: str
    source: Source
    ending: str
    default_user: str = ""
    also: tuple[str, ...] = ()
    memory: int = 512
    disk: int = 4

    @property
    def filename(self) -> str:
        """Name of the file on a storage; the same for every version of the image, which replaces the one before."""
        return f"{self.alias}_{ARCHITECTURE}.{self.ending}"

    @property
    def volume(self) -> str:
        """Name of the volume on a storage."""
        return f"{CONTENT[self.kind]}/{self.filename}"


def _cloud(
    alias: str, title: str, url: str, checksums: str, user: str, *also: str, algorithm: str = "sha256"
) -> ImageEntry:
    system, _, release = alias.rpartition("-") if re.search(r"-[0-9]", alias) else (alias, "", "rolling")
    base = url.rpartition("/")[0]
    address = checksums if checksums.startswith("https://") else f"{base}/{checksums}"
    source = Cloud(url, address, algorithm)
    return ImageEntry(alias, "machine", system, release, title, source, "qcow2", user, also, memory=1024, disk=10)


_DEBIAN_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_UBUNTU_KEYS: Final = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"


def _debian(release: str, suite: str, *also: str) -> ImageEntry:
    source = Debootstrap(suite, "http://deb.debian.org/debian", _DEBIAN_KEYS)
    title = f"Debian {release} ({suite})"
    return ImageEntry(
        f"debian-{release}", "container", "debian", release, title, source, "tar.zst", also=(*also, suite)
    )


def _debian_built(release: str, suite: str) -> ImageEntry:
    """For sites without Internet: a machine's disk from nothing but the mirror that the host's apt uses."""
    source = Debootstrap(suite, "http://deb.debian.org/debian", _DEBIAN_KEYS)
    title = f"Debian {release} ({suite}), built here"
    alias = f"debian-{release}-built"
    return ImageEntry(alias, "machine", "debian", release, title, source, "qcow2", "debian", memory=1024, disk=10)


def _ubuntu(release: str, suite: str, *also: str) -> ImageEntry:
    source = Debootstrap(suite, "http://archive.ubuntu.com/ubuntu", _UBUNTU_KEYS, "main universe")
    title = f"Ubuntu {release} LTS ({suite})"
    return ImageEntry(
        f"ubuntu-{release}", "container", "ubuntu", release, title, source, "tar.zst", also=(*also, suite)
    )


_ALPINE: Final = "https://dl-cdn.alpinelinux.org/alpine"


def _alpine(release: str, *also: str) -> ImageEntry:
    source = MiniRoot(f"{_ALPINE}/v{release}/releases/x86_64/latest-releases.yaml")
    title = f"Alpine Linux {release}"
    return ImageEntry(f"alpine-{release}", "container", "alpine", release, title, source, "tar.gz", also=also, disk=1)


_DEBIAN_CLOUD: Final = "https://cloud.debian.org/images/cloud"
_UBUNTU_CLOUD: Final = "https://cloud-images.ubuntu.com"
_FEDORA: Final = "https://download.fedoraproject.org/pub/fedora/linux/releases"
_ALMA: Final = "https://repo.almalinux.org/almalinux"
_ROCKY: Final = "https://dl.rockylinux.org/pub/rocky"
_ARCH: Final = "https://geo.mirror.pkgbuild.com/images/latest/Arch-Linux-x86_64-cloudimg.qcow2"
_SUSE: Final = "https://download.opensuse.org/distribution/leap/15.6/appliances"


def _debian_cloud(release: str, suite: str, *also: str) -> ImageEntry:
    url = f"{_DEBIAN_CLOUD}/{suite}/latest/debian-{release}-genericcloud-amd64.qcow2"
    title = f"Debian {release} ({suite})"
    return _cloud(f"debian-{release}", title, url, "SHA512SUMS", "debian", suite, *also, algorithm="sha512")


def _ubuntu_cloud(release: str, suite: str, *also: str) -> ImageEntry:
    url = f"{_UBUNTU_CLOUD}/{suite}/current/{suite}-server-cloudimg-amd64.img"
    return _cloud(f"ubuntu-{release}", f"Ubuntu {release} LTS ({suite})", url, "SHA256SUMS", "ubuntu", suite, *also)


def _fedora(release: int, build: str, *also: str) -> ImageEntry:
    folder = f"{_FEDORA}/{release}/Cloud/x86_64/images"
    url = f"{folder}/Fedora-Cloud-Base-Generic-{release}-{build}.x86_64.qcow2"
    sums = f"Fedora-Cloud-{release}-{build}-x86_64-CHECKSUM"
    return _cloud(f"fedora-{release}", f"Fedora {release} Cloud", url, sums, "fedora", *also)


def _alma(release: int, *also: str) -> ImageEntry:
    url = f"{_ALMA}/{release}/cloud/x86_64/images/AlmaLinux-{release}-GenericCloud-latest.x86_64.qcow2"
    return _cloud(
        f"almalinux-{release}", f"AlmaLinux {release}", url, "CHECKSUM", "almalinux", f"alma-{release}", *also
    )


def _rocky(release: int, *also: str) -> ImageEntry:
    name = f"Rocky-{release}-GenericCloud-Base.latest.x86_64.qcow2"
    url = f"{_ROCKY}/{release}/images/x86_64/{name}"
    return _cloud(f"rocky-{release}", f"Rocky Linux {release}", url, f"{name}.CHECKSUM", "rocky", *also)


def _alpine_cloud(version: str, *also: str) -> ImageEntry:
    release = version.rpartition(".")[0]
    name = f"generic_alpine-{version}-x86_64-bios-cloudinit-r0.qcow2"
    url = f"{_ALPINE}/v{release}/releases/cloud/{name}"
    title = f"Alpine Linux {version}"
    return _cloud(f"alpine-{release}", title, url, f"{name}.sha512", "alpine", *also, algorithm="sha512")


CATALOGUE: Final[tuple[ImageEntry, ...]] = (
    _debian("12", "bookworm"),
    _debian("13", "trixie", "debian"),
    _ubuntu("22.04", "jammy"),
    _ubuntu("24.04", "noble", "ubuntu"),
    _alpine("3.21"),
    _alpine("3.22"),
    _alpine("3.23"),
    _alpine("3.24", "alpine"),
    _debian_cloud("12", "bookworm"),
    _debian_cloud("13", "trixie", "debian"),
    _debian_built("12", "bookworm"),
    _debian_built("13", "trixie"),
    _ubuntu_cloud("22.04", "jammy"),
    _ubuntu_cloud("24.04", "noble", "ubuntu"),
    _fedora(43, "1.6"),
    _fedora(44, "1.7", "fedora"),
    _alma(9),
    _alma(10, "almalinux"),
    _rocky(9),
    _rocky(10, "rocky"),
    _cloud(
        "opensuse-15.6",
        "openSUSE Leap 15.6",
        f"{_SUSE}/openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2",
        "openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2.sha256",
        "opensuse",
        "opensuse",
    ),
    _alpine_cloud("3.24.1", "alpine"),
    _cloud("arch", "Arch Linux", _ARCH, f"{_ARCH}.SHA256", "arch", "archlinux"),
)
"""What everybody can start from; image servers add theirs."""


def find_entry(name: str, kind: Kind, entries: Iterable[ImageEntry] = CATALOGUE) -> ImageEntry | None:
    """The entry of an alias, a second name (`debian`, `bookworm`), a file name, or a volume name; None without one."""
    wanted = name.lower()
    for entry in entries:
        if entry.kind == kind and wanted in (entry.alias, *entry.also, entry.filename, entry.volume):
            return entry
    return None


# --- what was fetched

RECORDS: Final = "/images/"
"""Prefix of the records' keys in the store; the rest is the volume id."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known of an image on a storage. `size` is the volume's, in bytes: another one, and it is another file.

    `mark` tells versions apart without fetching them: a checksum that the distribution publishes, the version of an
    image server, or the digest of a manifest. `oci` is what an OCI image says of how it wants to be run.
    """

    alias: str
    kind: Kind
    source: str
    origin: str
    fetched: int
    size: int
    mark: str = ""
    default_user: str = ""
    oci: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The stored form."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value not in ("", {})}

    @classmethod
    def parse(cls, document: Any) -> Self | None:
        """The record in a stored document; None for what is none, since a record is never worth an error."""
        if not isinstance(document, dict):
            return None
        try:
            return cls(**{name: value for name, value in document.items() if name in cls.__slots__})
        except TypeError:
            return None


# --- where from

_PREFIX = re.compile(r"https?://[^\s=,;]+")
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where an installation gets its images from, the document `/cluster/images` of the store.

    `mirrors`: beginnings of addresses and what stands in for them. `servers`: image servers (simplestreams).
    `insecure`: registries that are spoken to by HTTP.
    """

    mirrors: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    insecure: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Reads options as they are stored: texts of items separated by commas. ValueError names what is wrong."""
        mirrors = {}
        for item in _items(options.get("mirrors")):
            old, arrow, new = item.partition("=")
            if not arrow or not _PREFIX.fullmatch(old) or not _PREFIX.fullmatch(new):
                raise ValueError(f"mirrors: '{item}' is not ADDRESS=ADDRESS")
            mirrors[old] = new
        for server in (servers := _items(options.get("simplestreams"))):
            if not _PREFIX.fullmatch(server):
                raise ValueError(f"simplestreams: '{server}' is not an http or https address")
        for registry in (insecure := _items(options.get("insecure-registries"))):
            if not _REGISTRY.fullmatch(registry):
                raise ValueError(f"insecure-registries: '{registry}' is not HOST or HOST:PORT")
        return cls(mirrors, tuple(server.rstrip("/") for server in servers), frozenset(insecure))

    def mirrored(self, url: str) -> str:
        """The address to use for one that is published; the longest beginning that fits decides."""
        for old in sorted(self.mirrors, key=len, reverse=True):
            if url.startswith(old):
                return self.mirrors[old] + url.removeprefix(old)
        return url


def _items(text: Any) -> list[str]:
    return str(text).replace(",", " ").split() if text else []


# --- names of OCI images

_HOST = (
    r"(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d])(?:\.(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d]))*(?::\d+)?"
)
_PART = r"[a-z\d]+(?:(?:[._]|__|-+)[a-z\d]+)*"
_REFERENCE = re.compile(rf"(?:(?P<host>{_HOST})/)?(?P<path>{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?")
_DOCKER_HUB: Final = "docker.io"
_REFERENCE_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry: `docker.io/library/nginx:1.27`."""

    registry: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a reference; without a registry it is Docker's, without a tag `latest`. ValueError when it is none."""
        match = _REFERENCE.fullmatch(text) if len(text) <= _REFERENCE_MAX else None
        if match is None:
            raise _no_reference(text)
        host, path = match["host"], match["path"]
        # As everywhere: the first part is a registry only when it looks like a host.
        if host is not None and not ("." in host or ":" in host or host == "localhost"):
            path, host = f"{host}/{path}", None
            if not re.fullmatch(rf"{_PART}(?:/{_PART})*", path):
                raise _no_reference(text)
        host = host or _DOCKER_HUB
        if host == _DOCKER_HUB and "/" not in path:
            path = f"library/{path}"
        return cls(host.lower(), path, match["tag"] or "latest")

    @property
    def host(self) -> str:
        """The host that answers for the registry."""
        return "registry-1.docker.io" if self.registry == _DOCKER_HUB else self.registry

    @property
    def filename(self) -> str:
        """A file name for it."""
        return f"{self.repository.rpartition('/')[2]}_{self.tag}.tar"

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"


def _no_reference(text: str) -> ValueError:
    return ValueError(f"'{text[:100]}' is not the name of an image in a registry, such as docker.io/library/nginx:1")


def looks_like_reference(name: str) -> bool:
    """Whether a name that is in no catalogue is that of an image in a registry: it has a path or a tag."""
    return ("/" in name or ":" in name) and "://" not in name


def oci_volume(filename: str) -> str:
    """The volume for an image from a registry, under a name that somebody chose. ValueError when it cannot be."""
    return upload_name("vztmpl", filename if filename.endswith(".tar") else f"{filename}.tar")
