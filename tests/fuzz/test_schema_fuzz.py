# SPDX-License-Identifier: AGPL-3.0-or-later
"""Generated requests for every method of the API, right and wrong ones, as administrator and as root.

No answer may be an error that is not a deliberate message, and none may be missing; afterwards neither the daemon nor a
task has met anything unexpected, and the node still works.
"""

import contextlib
import http.client
import json
import re
import time
import unittest
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from tests.fuzz.closed_node import serve_closed
from tests.fuzz.doors import Answer, Door, RootDoor, TokenDoor
from tests.fuzz.grammar import CONTAINERS, MACHINES, NODE, PRESENT, TEMPLATE, aimed, deepened, learn_formats
from tests.node.client import Api, ApiError
from tests.node.harness import Node

STATUSES = frozenset((200, 301, 308, 400, 401, 403, 413, 414, 500, 501, 506, 595, 596))
LOGIN = ("/access/ticket", "/access/vncticket")
"""Each refusal there takes three seconds on purpose."""

RESTORED = ("/qemu", "/lxc", "/status/stop", "/status/suspend", "/config", "/access/acl", "/access/users/{userid}")
"""After these, what is about to be asked for is put back."""

WAITING = ("/status/reboot", "/status/shutdown")
"""Tasks that wait for a guest, which has no system and never shuts down."""

UNEXPECTED = re.compile(r"internal error|Traceback|Exception\b|object has no attribute|unhashable|NoneType|<class")


class Grounds:
    """The node with the things that requests are about, which are put back when they are gone."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.token = ""
        self.refusals = 0

    @property
    def root(self) -> Api:
        return self.node.root

    def doors(self) -> list[Door]:
        """The ways in: admin@pve by a token, and root."""
        return [
            TokenDoor(self.node.port, self.node.paths.tls_cert, "admin", f"admin@pve!fuzz={self.token}"),
            RootDoor(self.node.paths.local_sock),
        ]

    def restore(self) -> None:
        """Ends what still goes on, and puts back what a request may have taken away."""
        self.end_tasks()
        self._access()
        if not any(row["storage"] == "second" for row in self.root.get("/storage")):
            self.root.post("/storage", storage="second", type="dir", path=str(self.node.folder / "second"))
        present = {row["vmid"]: row for row in self.root.get("/cluster/resources", type="vm")}
        for vmid, row in present.items():
            if vmid not in PRESENT or row["type"] != kind_of(vmid):
                self._try("POST", f"{self.node.path}/{row['type']}/{vmid}/status/stop")
                self._try("DELETE", f"{self.node.path}/{row['type']}/{vmid}")
        for vmid in PRESENT:
            kind = kind_of(vmid)
            if present.get(vmid, {}).get("type") != kind:
                options = MACHINE if kind == "qemu" else CONTAINER
                self._try("POST", f"{self.node.path}/{kind}", options | {"vmid": vmid})
        for vmid in (MACHINES[1], CONTAINERS[1]):
            if present.get(vmid, {}).get("status") != "running":
                self._try("POST", f"{self.node.path}/{kind_of(vmid)}/{vmid}/status/start")

    def end_tasks(self) -> None:
        """Ends every task that still goes on."""
        for row in self.root.get(f"{self.node.path}/tasks", source="active", limit=100_000):
            self.root.send("DELETE", f"{self.node.path}/tasks/{row['upid']}")
            self.root.ended(row["upid"], 30)

    def _access(self) -> None:
        for user in {"admin@pve", "fuzz@pve"} - self._names("/access/users", "userid"):
            self.root.post("/access/users", userid=user)
        if "fuzz" not in self._names("/access/users/admin@pve/token", "tokenid"):
            self.token = self.root.post("/access/users/admin@pve/token/fuzz", privsep=0)["value"]
        self.root.put("/access/users/admin@pve", enable=1, expire=0)
        self.root.put("/access/acl", path="/", users="admin@pve", roles="Administrator")
        for path, key, name in (("groups", "groupid", "staff"), ("roles", "roleid", "Operator")):
            if name not in self._names(f"/access/{path}", key):
                self.root.post(f"/access/{path}", {key: name})
        if "playground" not in self._names("/pools", "poolid"):
            self.root.post("/pools", poolid="playground")

    def _names(self, path: str, key: str) -> set[str]:
        return {row[key] for row in self.root.get(path)}

    def _try(self, verb: str, path: str, parameters: dict[str, Any] | None = None) -> None:
        response = self.root.send(verb, path, parameters)
        if response.status_code == 200 and str(response.json()["data"]).startswith("UPID:"):
            self.root.ended(response.json()["data"], 30)


def kind_of(vmid: int) -> str:
    """The kind of a guest that is always there."""
    return "lxc" if vmid in CONTAINERS else "qemu"


CONTAINER = {"memory": 32, "rootfs": "local:0.03", "ostemplate": TEMPLATE, "net0": "name=eth0,bridge=vmbr0,ip=dhcp"}
MACHINE = {"memory": 32, "scsi0": "local:0.01", "net0": "virtio,bridge=vmbr0", "serial0": "socket", "ostype": "l26"}


@pytest.fixture(scope="module")
def grounds(own_network: None, demo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    with Node(tmp_path_factory.mktemp("fuzz") / "node", name=NODE, port=8206) as node:
        made = Grounds(serve_closed(node.init()))
        node.import_template(demo_archive, TEMPLATE.rpartition("/")[2])
        made.restore()
        yield made


def operations(description: dict[str, Any]) -> list[Any]:
    """Every method, those that destroy last."""
    learn_formats()
    schema = schemathesis.openapi.from_dict(deepened(description))
    found: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    order = {"post": 0, "put": 1, "get": 2, "delete": 3}
    return sorted(found, key=lambda operation: (order[operation.method.lower()], operation.path))


def judge(door: Door, case: Any, answer: Answer) -> None:
    """Fails for an answer that nobody meant to give."""
    sent = f"{door.name}: {case.method} {case.formatted_path} query={case.query} body={case.body!r}"
    body = answer.body.decode(errors="replace")
    told = f"{sent}\nanswered {answer.status} {answer.reason}\n{body[:2000]}"
    assert answer.status in STATUSES, told
    assert not UNEXPECTED.search(f"{answer.reason} {body}") or answer.status == 200, told
    assert "internal error" not in answer.reason, told
    if answer.status == 200:
        if answer.body[:1] == b"{":
            assert "data" in json.loads(body), told
        return
    if answer.status in (400, 403, 500, 501) and answer.body and b"<html" not in answer.body:
        envelope = json.loads(body)
        assert envelope["data"] is None, told
        assert envelope["message"].strip(), told
        assert all(isinstance(text, str) for text in envelope.get("errors", {}).values()), told


def fuzz(
    grounds: Grounds, operation: Any, examples: int, mode: GenerationMode, number: int | None, failures: list[str]
) -> Counter[int]:
    """Sends generated requests to one method by every door; how often each status came back."""
    counted: Counter[int] = Counter()
    doors = grounds.doors()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        verbosity=Verbosity.quiet,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(operation.as_strategy(generation_mode=mode), st.sampled_from(doors), st.randoms(use_true_random=True))
    def each(case: Any, door: Door, random: Random) -> None:
        # What fails is kept, not raised: the same request need not fail again, since the node has changed meanwhile.
        try:
            answer = door.send(aimed(case, random))
            if answer is not None:
                counted[answer.status] += 1
                judge(door, case, answer)
                if answer.status == 200 and case.path.endswith(WAITING):
                    grounds.end_tasks()
        except (AssertionError, OSError, http.client.HTTPException) as error:
            failures.append(f"{door.name}: {case.method} {case.formatted_path}: {error!r}"[:3000])

    with contextlib.suppress(Unsatisfiable, unittest.SkipTest):
        each()
    return counted


def rounds(operation: Any, most: int) -> int:
    """How many requests a method is worth: more for those that take many parameters, few for those that are slow."""
    if operation.path in LOGIN or "/agent/" in operation.path:
        return 1
    described = operation.definition.raw
    schemas = operation.schema.raw_schema["components"]["schemas"]
    bodies = [content["schema"]["$ref"] for content in described.get("requestBody", {}).get("content", {}).values()]
    sizes = [len(schemas[reference.rpartition("/")[2]]["properties"]) for reference in bodies]
    return min(most, 1 + 2 * len(described["parameters"]) + max(sizes, default=0))


def run(grounds: Grounds, seconds: float, most: int, number: int | None) -> Counter[int]:
    """All methods, as long as there is time; at least one round of each."""
    description = json.loads(grounds.root.http.get("/openapi.json").text)
    total: Counter[int] = Counter()
    failures: list[str] = []
    end = time.monotonic() + seconds
    everything = operations(description)
    while True:
        for operation in everything:
            few = rounds(operation, most)
            total += fuzz(grounds, operation, few, GenerationMode.POSITIVE, number, failures)
            if few > 1:
                total += fuzz(grounds, operation, -(-few // 3), GenerationMode.NEGATIVE, number, failures)
            if operation.method.lower() == "delete" or operation.path.endswith(RESTORED):
                grounds.restore()
        if time.monotonic() > end or failures:
            break
        number = None if number is None else number + 1
    assert not failures, f"{len(failures)} failures; the first ones:\n" + "\n\n".join(failures[:20])
    return total


def unexpected_in_log(grounds: Grounds) -> list[str]:
    """Lines of the daemon's log that tell of a mistake in the program."""
    lines = grounds.node.paths.daemon_log.read_text().splitlines()
    return [line[:3000] for line in lines if '"exception"' in line or "Traceback" in line or "exc_info" in line]


def check_afterwards(grounds: Grounds) -> None:
    """The node has met nothing unexpected, works, and is the only thing that was changed."""
    assert unexpected_in_log(grounds) == []
    states = [row["status"] for row in grounds.root.get(f"{grounds.node.path}/tasks", limit=100_000) if "status" in row]
    assert [state for state in states if "internal error" in state or state == "unexpected status"] == []
    assert grounds.root.get("/version")["release"]
    vmid = grounds.root.get("/cluster/nextid")
    try:
        grounds.root.wait(grounds.root.post(f"{grounds.node.path}/qemu", vmid=vmid))
    except ApiError as error:
        raise AssertionError("the node is not usable any more") from error


@pytest.mark.timeout(300)
def test_generated_requests(grounds: Grounds) -> None:
    statuses = run(grounds, seconds=0, most=20, number=1)
    assert statuses[200] > sum(statuses.values()) / 20, statuses
    assert statuses[400] > 0, statuses
    check_afterwards(grounds)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_generated_requests(grounds: Grounds) -> None:
    statuses = run(grounds, seconds=900, most=60, number=None)
    assert statuses[200] > 0, statuses
    check_afterwards(grounds)
