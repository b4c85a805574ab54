# SPDX-License-Identifier: AGPL-3.0-or-later
"""Containers: from template to running beside LXC's own programs, fifty at once, and what an idle one costs the node.

By hand means `lxc-create -t local` from the same archive and `lxc-start`, until the container's first process runs. The
rounds of both alternate, so that whatever else the machine does falls upon both. Plain folders on both sides.
"""

import gzip
import io
import json
import lzma
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from bench.figures import Figure, percentile
from bench.memory import usage
from bench.node import NAME, Node, fresh_node
from orrery.cli.client import Client
from orrery.demo.template import prepared_template

ROUNDS = 7
MANY = 50
TEMPLATE = "local:vztmpl/measured.tar.xz"
CACHE = Path(__file__).resolve().parents[1] / "build" / "demo"


def archive() -> Path:
    """The template of the demonstration container; built once, with the network."""
    return prepared_template(CACHE)


def measure() -> list[Figure]:
    """Ratios of medians; seconds for the fifty; memory of core and zygote per idle container."""
    with fresh_node() as node, node.serving(), tempfile.TemporaryDirectory() as scratch:
        place = node.paths.local_storage / "template" / "cache" / "measured.tar.xz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(lzma.compress(gzip.decompress(archive().read_bytes())))  # the only kind that LXC takes
        client = node.local()
        through, alone = [], []
        for number in range(ROUNDS + 1):
            pair = by_node(client), by_hand(Path(scratch), place)
            if number:
                through.append(pair[0])
                alone.append(pair[1])
        seconds, each = many(node, client)
    return [
        Figure(
            "from template to running, beside lxc-create and lxc-start",
            percentile(through, 50) / percentile(alone, 50),
            "times",
            goal=1.2,
        ),
        Figure("  by the node: median", percentile(through, 50) * 1000, "ms"),
        Figure("  by hand: median", percentile(alone, 50) * 1000, "ms"),
        Figure(f"{MANY} containers started by one call", seconds, "s", goal=10),
        Figure("memory of core and zygote per idle container", each, "MB", goal=0.1),
    ]


def options(vmid: int) -> dict[str, object]:
    """A small container on a plain folder."""
    return {
        "vmid": vmid,
        "ostemplate": TEMPLATE,
        "ostype": "alpine",
        "memory": 64,
        "rootfs": "local:0",
        "net0": "name=eth0,bridge=vmbr0,ip=dhcp",
    }


def by_node(client: Client) -> float:
    """Creates and starts one; removes it again."""
    where = f"/nodes/{NAME}/lxc"
    begun = time.perf_counter()
    client.wait(client.call("POST", where, options(100) | {"start": 1}))
    seconds = time.perf_counter() - begun
    client.wait(client.call("POST", f"{where}/100/status/stop", {}))
    client.wait(client.call("DELETE", f"{where}/100", {}))
    return seconds


def by_hand(scratch: Path, template: Path) -> float:
    """The same with LXC's own programs."""
    metadata = scratch / "meta.tar.xz"
    if not metadata.exists():
        write_metadata(metadata)
    config = scratch / "config"
    # A pair made by hand: to find its bridge LXC looks into /sys, which shows the host's network here.
    config.write_text(
        "lxc.net.0.type = phys\nlxc.net.0.link = measured1\nlxc.net.0.flags = up\nlxc.apparmor.profile = unconfined\n"
    )
    name = ["-n", "measured", "-P", str(scratch)]
    begun = time.perf_counter()
    create = ["lxc-create", *name, "-f", str(config), "-t", "local", "--", "-m", str(metadata), "-f", str(template)]
    subprocess.run(create, check=True, capture_output=True)
    for words in ("add measured0 type veth peer name measured1", "set measured0 master vmbr0 up"):
        subprocess.run(["ip", "link", *words.split()], check=True)
    subprocess.run(["lxc-start", *name, "-d"], check=True, capture_output=True)
    subprocess.run(["lxc-wait", *name, "-s", "RUNNING", "-t", "20"], check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    subprocess.run(["lxc-stop", *name, "-k"], check=True, capture_output=True)
    subprocess.run(["lxc-destroy", *name], check=True, capture_output=True)
    subprocess.run(["ip", "link", "delete", "measured0"], check=True)
    return seconds


def write_metadata(path: Path) -> None:
    """What `lxc-create -t local` wants to know of an archive: a configuration, a creation message, an expiry."""
    members = {
        "config": "lxc.arch = x86_64\nlxc.include = LXC_TEMPLATE_CONFIG/common.conf\n",
        "config-user": "lxc.include = LXC_TEMPLATE_CONFIG/common.conf\n",
        "create-message": "made\n",
        "expiry": str(int(time.time()) + 86400),
        "templates": "",
        "excludes-user": "",
        "metadata.yaml": json.dumps({"architecture": "x86_64"}),
    }
    with lzma.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


def many(node: Node, client: Client) -> tuple[float, float]:
    """Seconds that one call takes to start fifty, and MB of core and zygote per container that idles."""
    where = f"/nodes/{NAME}/lxc"
    numbers = range(200, 200 + MANY)
    for vmid in numbers:
        client.wait(client.call("POST", where, options(vmid)))
    before = sum(usage(pid)[0] for pid in (node.core, node.zygote()))
    begun = time.perf_counter()
    client.wait(client.call("POST", f"/nodes/{NAME}/startall", {"force": 1}))
    seconds = time.perf_counter() - begun
    assert sum(row["status"] == "running" for row in client.call("GET", where)) == MANY
    time.sleep(12)
    after = sum(usage(pid)[0] for pid in (node.core, node.zygote()))
    return seconds, (after - before) / MANY
