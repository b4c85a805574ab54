# SPDX-License-Identifier: AGPL-3.0-or-later
"""`orrery serve`: becomes the daemon. What reads a command line would only take memory there, so it is left behind."""

import os
import sys
from pathlib import Path

import typer


def command(
    root: Path | None = typer.Option(
        None, envvar="ORRERY_ROOT", help="Folder that `orrery init` prepared; the system's places without it."
    ),
    listen: str = typer.Option("0.0.0.0:8006", help="Address and port of the API and the page."),
) -> None:
    """Run the node in the foreground until Ctrl-C or SIGTERM. Guests go on running.

    Example:  orrery serve --root /srv/orrery --listen 127.0.0.1:8006
    """
    daemon = [sys.executable, "-P", "-m", "orrery.cli.daemon", str(root or ""), listen]
    os.execv(sys.executable, daemon)  # noqa: S606  (becoming the daemon is its purpose)
