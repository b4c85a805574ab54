# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tasks: lists, state with progress, logs, and the request to stop."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import StreamingResponse

from orrery.access.rules import Everyone
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Enum, Int, ListOf, Text
from orrery.api.parameters import Boolean, Integer, NodeParams, NoParams, Vmid
from orrery.api.reply import Result
from orrery.tasks.history import TaskQuery, find, recent
from orrery.tasks.progress import read_progress
from orrery.tasks.task import TaskRecord, Upid


class ListTasks(NodeParams):
    """Which tasks to list."""

    start: Annotated[int, Int(minimum=0, doc="How many of the newest to leave out.")] = 0
    limit: Annotated[int, Int(minimum=0, doc="How many to list at most.")] = 50
    vmid: Vmid | None = None
    typefilter: Annotated[str, Text(doc="Only tasks of this type.")] | None = None
    userfilter: Annotated[str, Text(doc="Only tasks of users whose name contains this.")] | None = None
    errors: Boolean = Field(default=False, description="Only tasks that did not end well.")
    source: Annotated[str, Enum("archive", "active", "all", doc="Ended tasks, running ones, or both.")] = "archive"
    since: Integer | None = Field(
        default=None, description="Only tasks begun at this time or later, seconds since 1970."
    )
    until: Integer | None = Field(default=None, description="Only tasks begun at this time or earlier.")
    statusfilter: Annotated[
        list[str],
        ListOf(Enum("unknown", "ok", "warning", "error"), doc="Only tasks that ended in one of these ways."),
    ] = Field(default=[])


class TaskParams(NodeParams):
    """Methods of one task."""

    upid: Annotated[str, Text(max_length=512, doc="Identifier of the task.")]


class ReadLog(TaskParams):
    """Which part of a log to read."""

    start: Annotated[int, Int(minimum=0, doc="How many lines to leave out.")] = 0
    limit: Annotated[int, Int(minimum=0, doc="How many lines to read at most; 0 for all.")] = 50
    download: Boolean = Field(default=False, description="The whole log as plain text.")


def own_only(call: Call) -> str | None:
    """Whose tasks the caller is limited to, or None for everybody's."""
    return None if call.allowed(f"/nodes/{call.services.node}", "Sys.Audit") else str(call.identity)


@endpoint(
    "GET", "/nodes/{node}/tasks", params=ListTasks, permission=Everyone(), returns=list[dict[str, Any]], proxy="node"
)
def list_tasks(call: Call, p: ListTasks) -> Result:
    """Tasks of the node, newest first: all of them with Sys.Audit on the node, else the caller's own."""
    query = TaskQuery(
        start=p.start,
        limit=p.limit,
        vmid=p.vmid,
        typefilter=p.typefilter,
        userfilter=p.userfilter,
        statusfilter=p.statusfilter,
        errors=p.errors,
        source=p.source,
        since=p.since,
        until=p.until,
        own=own_only(call),
    )
    rows, total = find(call.services.journal, query)
    return Result([row.list_reply() for row in rows], beside={"total": total})


@endpoint("GET", "/cluster/tasks", params=NoParams, permission=Everyone(), returns=list[dict[str, Any]])
def list_recent(call: Call, p: NoParams) -> list[dict[str, Any]]:
    """Tasks that run now, and those that ended last, on all nodes."""
    return [row.list_reply() for row in recent(call.services.journal, own=own_only(call))]


def visible(call: Call, text: str, privilege: str) -> TaskRecord:
    """The task, if it is the caller's own or the caller has the privilege on the node."""
    upid = Upid.parse(text)
    record = call.services.journal.get(upid)
    if not upid.belongs_to(call.identity):
        call.require(f"/nodes/{call.services.node}", privilege)
    return record


@endpoint(
    "GET",
    "/nodes/{node}/tasks/{upid}/status",
    params=TaskParams,
    permission=Everyone(),
    returns=dict[str, Any],
    proxy="node",
)
def read_status(call: Call, p: TaskParams) -> dict[str, Any]:
    """State of a task; while it runs with its progress (done, total, unit, step), when it tells any."""
    record = visible(call, p.upid, "Sys.Audit")
    reply = record.status_reply()
    if record.running and (progress := read_progress(call.services.paths.tasks_run, record.upid)):
        reply["progress"] = asdict(progress)
    return reply


@endpoint(
    "GET",
    "/nodes/{node}/tasks/{upid}/log",
    params=ReadLog,
    permission=Everyone(),
    returns=list[dict[str, Any]],
    proxy="node",
)
async def read_log(call: Call, p: ReadLog) -> Any:
    """Lines of a task's log, numbered from 1, or all of it as a file."""
    return await asyncio.to_thread(_log_reply, call, p)


def _log_reply(call: Call, p: ReadLog) -> Any:
    record = visible(call, p.upid, "Sys.Audit")
    if p.download:
        name = f"task-{record.upid.node}-{record.upid.kind}-{record.upid.starttime}.log"
        return StreamingResponse(
            call.services.journal.stream_log(record.upid),
            media_type="text/plain; charset=UTF-8",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )
    lines, total = call.services.journal.read_log(record.upid, p.start, p.limit)
    return Result([asdict(line) for line in lines], beside={"total": total})


@endpoint("DELETE", "/nodes/{node}/tasks/{upid}", params=TaskParams, permission=Everyone(), returns=None, proxy="node")
def stop_task(call: Call, p: TaskParams) -> None:
    """Asks a task to stop; what it has done so far is undone. A task past its point of no return refuses."""
    record = visible(call, p.upid, "Sys.Modify")
    call.services.runner.cancel(record.upid)
