# SPDX-License-Identifier: AGPL-3.0-or-later
"""Many clients at once: exactly what they asked for exists afterwards, and nothing else."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.node.client import ApiError
from tests.node.harness import PASSWORD, Node

CLIENTS = 16
FIRST = 5000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [32, pytest.param(100, marks=pytest.mark.slow)])
def test_machines_made_and_destroyed_by_many_clients(fresh_node: Node, count: int) -> None:
    """Every third is kept, every second of those runs; a number that several want is given to one."""
    node = fresh_node
    numbers = [FIRST + index for index in range(count)]
    kept = {vmid for vmid in numbers if vmid % 3 == 0}

    def client(mine: list[int]) -> int:
        api = node.anonymous().log_in("admin@pve", PASSWORD)
        made = 0
        for vmid in mine:
            wanted = {"vmid": vmid, "memory": 64, "scsi0": "local:0.015625", "net0": "virtio,bridge=vmbr0"}
            response = api.send("POST", f"{node.path}/qemu", wanted)
            if response.status_code != 200 or api.ended(response.json()["data"], 300) != "OK":
                continue  # another client has it
            made += 1
            if vmid in kept:
                api.wait(api.put(f"{node.path}/qemu/{vmid}/resize", disk="scsi0", size="32M"), 300)
            else:
                api.wait(api.delete(f"{node.path}/qemu/{vmid}"), 300)
        api.close()
        return made

    shuffled = numbers + sorted(kept)[:: max(1, len(kept) // 8)]
    random.Random(count).shuffle(shuffled)
    with ThreadPoolExecutor(CLIENTS) as pool:
        made = sum(pool.map(client, [shuffled[place::CLIENTS] for place in range(CLIENTS)]))

    assert made == count
    rows = {row["vmid"]: row for row in node.api.get(f"{node.path}/qemu")}
    assert set(rows) == kept
    assert {row["maxdisk"] for row in rows.values()} == {32 << 20}
    assert node.images() == [f"{vmid}/vm-{vmid}-disk-0.raw" for vmid in sorted(kept)]
    assert {row["vmid"] for row in node.api.get("/cluster/resources", type="vm")} == kept
    assert node.locks() == []
    assert node.machines() == []
    assert list(node.paths.guests_run.iterdir()) == []
    assert node.api.get(f"{node.path}/tasks", source="active") == []
    cards = [node.api.get(f"{node.path}/qemu/{vmid}/config")["net0"].split(",")[0] for vmid in sorted(kept)]
    assert len(set(cards)) == len(cards)
    free = int(node.api.get("/cluster/nextid"))
    assert free not in kept
    with pytest.raises(ApiError):
        node.api.get("/cluster/nextid", vmid=min(kept))
