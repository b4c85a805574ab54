# SPDX-License-Identifier: AGPL-3.0-or-later
"""The daemon's log: its form, and what must not stand in it."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, http.server, threading
from pathlib import Path
import httpx2, structlog
from orrery.tasks.daemonlog import log_into

log_into(Path(sys.argv[1]))
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.handle_request).start()
httpx2.head(f"http://127.0.0.1:{server.server_port}/?signature=abc123")
structlog.get_logger("test").warning("something", vmid=100)
"""


def test_a_line_is_an_object_and_addresses_of_requests_are_not_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", PROGRAM, log], check=True, capture_output=True, timeout=60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["event"], line["vmid"], line["level"]) for line in lines] == [("something", 100, "warning")]
    assert "abc123" not in log.read_text()
