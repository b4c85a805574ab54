# SPDX-License-Identifier: AGPL-3.0-or-later
"""The daemon's log: one JSON object a line, from structlog and from libraries that use the standard logging.

Core, zygote and tasks append to the same file. It is opened for each message: a task closes every descriptor that it
inherits, and a log that was rotated away is left alone.
"""

import contextlib
import logging
import os
from pathlib import Path

import structlog


class _Appender(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a full disk is no reason to fail
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                os.write(descriptor, f"{self.format(record)}\n".encode("utf-8", "replace"))
            finally:
                os.close(descriptor)


def log_into(path: Path, level: int = logging.INFO) -> None:
    """Sends all messages of this process to `path`, with time (UTC), level and logger."""
    both: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _Appender(path)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=both,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It tells each request with its whole address, in which a password or a signature may stand.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *both, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
