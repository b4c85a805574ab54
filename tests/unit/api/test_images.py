# SPDX-License-Identifier: AGPL-3.0-or-later
"""The methods of images, templates and launches: what they list, and what they refuse."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.api.conftest import NODE
from tests.unit.api.test_storage import InlineRunner, ends, grant, user
from tests.unit.api.wire import Wire
from tests.unit.drivers.images.imagesite import OciImage, entry, tar
from tests.unit.drivers.storage.test_fetch import page, serving
from tests.unit.operations.test_image_pull import ALPINE_DATA, alpine_pages

from orrery.api.services import Services
from orrery.drivers.storage.registry import StorageRegistry
from orrery.drivers.storage.usage import StorageUsageCache
from orrery.operations.image_launch import LaunchGuest

__all__ = ["ends", "user"]

IMAGES = f"/nodes/{NODE}/images"
LAUNCH = f"/nodes/{NODE}/launch"
TEMPLATE = "alpine-3.22_amd64.tar.gz"


class Runner(InlineRunner):
    """Keeps launches instead of making guests."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[LaunchGuest] = []

    def start(self, operation: Any, identity: Any) -> str:
        if isinstance(operation, LaunchGuest):
            self.launched.append(operation)
            return "UPID:launch"
        return super().start(operation, identity)


@pytest.fixture
def services(services: Services) -> Services:
    storages = StorageRegistry(services.store, services.paths, NODE)
    runner = Runner()
    network = SimpleNamespace(leases=list)
    runner.ctx = SimpleNamespace(
        paths=services.paths, node=NODE, store=services.store, storages=storages, network=network
    )
    collector: Any = SimpleNamespace(storages=StorageUsageCache(storages), facts=[])
    parts: dict[str, Any] = {"runner": runner, "context": runner.ctx, "collector": collector}
    return dataclasses.replace(services, **parts)


@pytest.fixture
def launched(services: Services) -> list[LaunchGuest]:
    runner: Any = services.runner
    found: list[LaunchGuest] = runner.launched
    return found


def rows(wire: Wire, **parameters: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["image"], row["type"]): row for row in wire.get(IMAGES, **parameters).data}


def test_catalogue(admin: Wire) -> None:
    found = rows(admin)
    assert found["debian-12", "container"]["source"] == "debootstrap"
    assert found["debian-12", "machine"]["user"] == "debian"
    assert {row["state"] for row in found.values()} == {"available"}
    assert {kind for _, kind in rows(admin, type="machine")} == {"machine"}
    templates = {row["template"]: row for row in admin.get(f"/nodes/{NODE}/aplinfo").data}
    assert templates[TEMPLATE]["type"] == "lxc"
    assert templates["debian-12_amd64.tar.zst"]["package"] == "debian-12"


def test_fetching_and_removing(admin: Wire, ends: dict[str, str]) -> None:
    with serving(alpine_pages()) as site:
        assert admin.put("/cluster/images", mirrors=f"https://dl-cdn.alpinelinux.org/={site.url}/").status == 200
        upid = admin.post(f"/nodes/{NODE}/aplinfo", storage="local", template=TEMPLATE).data
        assert upid.split(":")[5:7] == ["download", TEMPLATE]
        assert ends[upid] == "OK"
        assert rows(admin)["alpine-3.22", "container"]["state"] == "fetched"
        newer = ALPINE_DATA + b"x"
        site.pages |= alpine_pages(newer, newer)
        assert rows(admin, check=1)["alpine-3.22", "container"]["state"] == "outdated"
        upid = admin.post(IMAGES, image="alpine-3.22", storage="local").data
        assert ends[upid] == "OK"
        row = rows(admin, check=1)["alpine-3.22", "container"]
        assert (row["state"], row["size"]) == ("fetched", len(newer))
    upid = admin.delete(f"{IMAGES}/{row['volid']}").data
    assert ends[upid] == "OK"
    assert rows(admin)["alpine-3.22", "container"]["state"] == "available"


def test_oci_methods(admin: Wire, ends: dict[str, str]) -> None:
    pages = OciImage(tar(entry("app", b"x")), run={"Cmd": ["/app"]}).pages("team/app", "1")
    pages["/v2/team/app/tags/list?n=1000"] = page(b'{"tags": ["1", "2"]}')
    with serving(pages) as site:
        host = site.url.removeprefix("http://")
        assert admin.put("/cluster/images", **{"insecure-registries": host}).status == 200
        tags = admin.get(f"/nodes/{NODE}/query-oci-repo-tags", reference=f"{host}/team/app")
        assert tags.data == ["1", "2"]
        pull = f"/nodes/{NODE}/storage/local/oci-registry-pull"
        assert ends[admin.post(pull, reference=f"{host}/team/app:1").data] == "OK"
        assert ends[admin.post(pull, reference=f"{host}/team/app:1", filename="other").data] == "OK"
        without = admin.post(pull, reference=f"{host}/team/app")
        assert (without.status, list(without.errors)) == (400, ["reference"])
    found = {row["volid"] for row in admin.get(IMAGES).data if row["source"] == "oci"}
    assert found == {"local:vztmpl/app_1.tar", "local:vztmpl/other.tar"}


def test_an_archive_becomes_a_template(admin: Wire, services: Services, ends: dict[str, str]) -> None:
    driver = services.context.storages.get("local")
    driver.activate()
    driver.path("vztmpl/up.tar").write_bytes(OciImage(tar(entry("app", b"x")), run={"Cmd": ["/app"]}).archive())
    upid = admin.post(IMAGES, image="local:vztmpl/up.tar", storage="local").data
    assert ends[upid] == "OK"
    (row,) = [row for row in admin.get(IMAGES).data if row["source"] == "oci"]
    assert row["volid"] == "local:vztmpl/up_root.tar"


@pytest.mark.parametrize(
    ("verb", "path", "parameters"),
    [
        ("post", f"/nodes/{NODE}/aplinfo", {"storage": "local", "template": TEMPLATE}),
        ("post", IMAGES, {"storage": "local", "image": "debian-12"}),
        ("post", f"/nodes/{NODE}/storage/local/oci-registry-pull", {"reference": "nginx:1"}),
        ("get", f"/nodes/{NODE}/query-oci-repo-tags", {"reference": "nginx"}),
        ("get", IMAGES, {"check": 1}),
        ("get", "/cluster/images", {}),
        ("put", "/cluster/images", {"mirrors": ""}),
        ("post", LAUNCH, {"image": "debian-12"}),
        ("post", LAUNCH, {"image": "no-such-thing"}),
        ("delete", f"{IMAGES}/local:vztmpl/x.tar", {}),
    ],
)
def test_rights(user: Wire, verb: str, path: str, parameters: dict[str, Any]) -> None:
    assert getattr(user, verb)(path, **parameters).status == 403


def test_templates_take_less_than_registries(admin: Wire, user: Wire) -> None:
    grant(admin, "/storage/local", "PVEDatastoreAdmin")
    assert user.post(IMAGES, image="nginx:1", storage="local").status == 403
    assert user.post(f"/nodes/{NODE}/storage/local/oci-registry-pull", reference="nginx:1").status == 403


@pytest.mark.parametrize(
    ("path", "parameters", "parameter"),
    [
        (f"/nodes/{NODE}/aplinfo", {"storage": "local", "template": "x.tar.gz"}, "template"),
        (IMAGES, {"storage": "local", "image": "UPPER/x:1"}, "image"),
        (IMAGES, {"storage": "local", "image": "nginx:1", "filename": "../x"}, "filename"),
        (f"/nodes/{NODE}/storage/local/oci-registry-pull", {"reference": "http://x/y:1"}, "reference"),
        (LAUNCH, {"image": "debian-12", "name": "-"}, "name"),
    ],
)
def test_bad_parameters(admin: Wire, path: str, parameters: dict[str, Any], parameter: str) -> None:
    answer = admin.post(path, **parameters)
    assert (answer.status, list(answer.errors)) == (400, [parameter])


def test_damaged_sources(admin: Wire) -> None:
    answer = admin.put("/cluster/images", mirrors="nonsense")
    assert (answer.status, list(answer.errors)) == (400, ["mirrors"])
    assert admin.put("/cluster/images", simplestreams="https://images.example").status == 200
    assert admin.get("/cluster/images").data == {"simplestreams": "https://images.example"}
    assert admin.put("/cluster/images", simplestreams="").status == 200
    assert admin.get("/cluster/images").data == {}


def test_launch_of_a_container(admin: Wire, launched: list[LaunchGuest]) -> None:
    answer = admin.post(LAUNCH, image="debian-12", name="web1", cores=2, disk=8, password="geheim123")
    assert answer.status == 200, answer
    (operation,) = launched
    assert (operation.vmid, operation.guest, operation.fetch) == (100, "container", True)
    assert operation.volume == "vztmpl/debian-12_amd64.tar.zst"
    assert operation.options["hostname"] == "web1"
    assert operation.options["rootfs"].startswith("local:8")
    assert operation.options["unprivileged"] == "1"
    assert operation.password_hash is not None
    assert operation.password_hash.startswith("$")


def test_launch_of_a_machine(admin: Wire, launched: list[LaunchGuest]) -> None:
    answer = admin.post(LAUNCH, image="debian-12", type="machine", password="geheim123", vmid=222)
    assert answer.status == 200, answer
    (operation,) = launched
    options = operation.options
    assert "import-from=local:import/debian-12_amd64.qcow2" in options["scsi0"]
    assert (options["ciuser"], options["name"]) == ("debian", "debian-12-222")
    assert "cipassword" not in options
    assert operation.secrets["cipassword"].startswith("$")


def test_machine_images_need_no_word_for_it(admin: Wire, launched: list[LaunchGuest]) -> None:
    assert admin.post(LAUNCH, image="fedora").status == 200
    assert admin.post(LAUNCH, image="nginx:1.27").status == 200
    assert [(each.guest, each.reference) for each in launched] == [
        ("machine", None),
        ("container", "docker.io/library/nginx:1.27"),
    ]
    assert admin.post(LAUNCH, image="no-such-thing").status == 500


def test_launch_of_the_image_that_is_named(admin: Wire, ends: dict[str, str], launched: list[LaunchGuest]) -> None:
    """Another registry's image of the same file name is not taken for it."""
    with serving(OciImage(tar(entry("app", b"x"))).pages("team/app", "1")) as site:
        host = site.url.removeprefix("http://")
        assert admin.put("/cluster/images", **{"insecure-registries": host}).status == 200
        pull = f"/nodes/{NODE}/storage/local/oci-registry-pull"
        assert ends[admin.post(pull, reference=f"{host}/team/app:1").data] == "OK"
    for name in (f"{host}/team/app:1", "docker.io/other/app:1"):
        assert admin.post(LAUNCH, image=name).status == 200
    assert [(each.volume, each.fetch) for each in launched] == [
        ("vztmpl/app_1.tar", False),
        ("vztmpl/app_1.tar", True),
    ]


def test_addresses(admin: Wire) -> None:
    assert admin.get(f"/nodes/{NODE}/addresses").data == []
