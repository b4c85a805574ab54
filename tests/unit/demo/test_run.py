# SPDX-License-Identifier: AGPL-3.0-or-later
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orrery.demo.run import Demonstration, Places, first_address, make, require_free, watch
from orrery.errors import Failure
from orrery.front.nginx import Address
from orrery.system.paths import Paths
from orrery.system.process import spawn


class RecordingClient:
    """Stands where the node's API is; what it is told to answer, by verb and path."""

    def __init__(self, answers: Mapping[tuple[str, str], Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def call(self, verb: str, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        self.calls.append((verb, path, dict(parameters or {})))
        return self.answers[verb, path]

    def wait(self, upid: str) -> None:
        assert upid.startswith("UPID:")


def demonstration(tmp_path: Path, client: RecordingClient) -> Demonstration:
    places = Places(tmp_path, Paths.of(tmp_path))
    return Demonstration(client, "n", places, tmp_path / "cache")  # type: ignore[arg-type]


def test_a_running_guest_is_taken_up_with_one_request(tmp_path: Path) -> None:
    client = RecordingClient({("GET", "/nodes/n/qemu"): [{"vmid": 100, "name": "demo", "status": "running"}]})
    assert demonstration(tmp_path, client).machine() == 100
    assert len(client.calls) == 1


def test_a_stopped_guest_is_started(tmp_path: Path) -> None:
    rows = [{"vmid": 7, "name": "other", "status": "running"}, {"vmid": 101, "name": "demo", "status": "stopped"}]
    start = ("POST", "/nodes/n/qemu/101/status/start")
    client = RecordingClient({("GET", "/nodes/n/qemu"): rows, start: "UPID:n:start"})
    assert demonstration(tmp_path, client).machine() == 101
    assert client.calls[-1][:2] == start


def test_a_new_guest_comes_from_the_uploaded_image(tmp_path: Path) -> None:
    (tmp_path / "demo-guest-password").write_text("x\n")
    answers = {
        ("GET", "/nodes/n/qemu"): [],
        ("GET", "/nodes/n/storage/local/content"): [{"volid": "local:import/orrery-demo.qcow2"}],
        ("GET", "/cluster/nextid"): "100",
        ("POST", "/nodes/n/qemu"): "UPID:n:create",
        ("POST", "/nodes/n/qemu/100/status/start"): "UPID:n:start",
    }
    client = RecordingClient(answers)
    assert demonstration(tmp_path, client).machine() == 100
    created = next(options for verb, path, options in client.calls if (verb, path) == ("POST", "/nodes/n/qemu"))
    assert created["virtio0"] == "local:0,import-from=local:import/orrery-demo.qcow2"
    assert created["vmid"] == 100


def test_the_address_is_the_first_that_is_not_loopback() -> None:
    loopback = {"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1"}]}
    card = {
        "name": "eth0",
        "ip-addresses": [
            {"ip-address-type": "ipv6", "ip-address": "fe80::1"},
            {"ip-address-type": "ipv4", "ip-address": "10.1.2.3"},
        ],
    }
    assert first_address([loopback, card]) == "10.1.2.3"
    assert first_address([loopback, {"name": "eth1"}]) is None


def test_a_taken_port_says_how_to_choose_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Failure, match=rf"cannot listen on 127.0.0.1:{port}.*make run LISTEN=127\.0\.0\.1:"):
            require_free(Address("127.0.0.1", port))
    require_free(Address("127.0.0.1", port))


def test_what_to_type_names_the_root_unless_it_is_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert make("down", tmp_path / "var") == "make down"
    assert make("down", tmp_path / "var2") == "make down ROOT=var2"
    assert make("run", tmp_path / "a b") == "make run ROOT='a b'"


def test_a_node_that_was_told_to_end_has_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch(Places(tmp_path, Paths.of(tmp_path)), spawn(["true"]))
    assert "stopped from outside" in capsys.readouterr().out


def test_a_node_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    places = Places(tmp_path, Paths.of(tmp_path))
    places.output.write_text("last words\n")
    with pytest.raises(Failure, match=r"ended with code 1.*(?s:.)last words"):
        watch(places, spawn(["false"]))
