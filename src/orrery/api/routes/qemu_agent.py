# SPDX-License-Identifier: AGPL-3.0-or-later
"""The guest agent: one method per command, and one that takes the command as a parameter."""

from typing import Annotated, Any

from pydantic import Field

from orrery.access.rules import Perm
from orrery.api.call import Call
from orrery.api.endpoint import endpoint
from orrery.api.manners import Array, Enum, Int, Text
from orrery.api.parameters import Boolean, GuestParams
from orrery.drivers.qemu.agent import Agent
from orrery.store.guests import read_guest

AGENT = "/nodes/{node}/qemu/{vmid}/agent"
FILE_READ_MAX = 16 << 20

AUDIT, FILES, POWER = "VM.GuestAgent.Audit", "VM.GuestAgent.FileSystemMgmt", "VM.PowerMgmt"
ANYTHING = "VM.GuestAgent.Unrestricted"

COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "fsfreeze-freeze": ("POST", (FILES,), "Freeze the file systems inside."),
    "fsfreeze-status": ("POST", (AUDIT, FILES), "Whether the file systems inside are frozen."),
    "fsfreeze-thaw": ("POST", (FILES,), "Thaw the file systems inside."),
    "fstrim": ("POST", (FILES,), "Give unused blocks back to the storage."),
    "get-fsinfo": ("GET", (AUDIT,), "File systems inside."),
    "get-host-name": ("GET", (AUDIT,), "Host name inside."),
    "get-memory-block-info": ("GET", (AUDIT,), "Size of the memory blocks inside."),
    "get-memory-blocks": ("GET", (AUDIT,), "Memory blocks inside."),
    "get-osinfo": ("GET", (AUDIT,), "The operating system inside."),
    "get-time": ("GET", (AUDIT,), "The clock inside, in nanoseconds since 1970."),
    "get-timezone": ("GET", (AUDIT,), "The time zone inside."),
    "get-users": ("GET", (AUDIT,), "Who is signed in inside."),
    "get-vcpus": ("GET", (AUDIT,), "The processors as the guest sees them."),
    "info": ("GET", (AUDIT,), "Version of the agent and what it can do."),
    "network-get-interfaces": ("GET", (AUDIT,), "Network interfaces and addresses inside."),
    "ping": ("POST", (AUDIT,), "Whether the agent answers."),
    "shutdown": ("POST", (POWER,), "Shut down from inside."),
    "suspend-disk": ("POST", (POWER,), "Suspend to disk from inside."),
    "suspend-hybrid": ("POST", (POWER,), "Suspend to memory and disk from inside."),
    "suspend-ram": ("POST", (POWER,), "Suspend to memory from inside."),
}
"""Commands without parameters: verb, privileges of which one is enough (besides the unrestricted one), what they do."""


class AgentCommand(GuestParams):
    """A command by name."""

    command: Annotated[str, Enum(*COMMANDS, doc="The command.")]


class SetPassword(GuestParams):
    """A new password for somebody inside."""

    username: Annotated[str, Text(doc="Who.")]
    password: Annotated[str, Text(min_length=5, max_length=1024, doc="The new password.")]
    crypted: Boolean = Field(default=False, description="The password is a crypt(3) hash.")


class Execute(GuestParams):
    """A program to run inside."""

    command: Annotated[list[str], Array(Text(), doc="The program and its arguments, one item each.")]
    input_data: Annotated[str, Text(max_length=65536, doc="Its standard input.")] | None = None


class ExecuteStatus(GuestParams):
    """Which program."""

    pid: Annotated[int, Int(doc="The number that exec answered.")]


class ReadFile(GuestParams):
    """Which part of which file to read."""

    file: Annotated[str, Text(doc="Path inside.")]
    count: Annotated[int, Int(minimum=1, maximum=FILE_READ_MAX, doc="Bytes to read at most.")] = FILE_READ_MAX
    offset: Annotated[int, Int(minimum=0, doc="Bytes to leave out.")] = 0
    decode: Boolean = Field(default=True, description="Answer the content itself; otherwise in base64.")


class WriteFile(GuestParams):
    """What to write where."""

    file: Annotated[str, Text(doc="Path inside.")]
    content: Annotated[str, Text(max_length=61440, doc="The new content.")]
    encode: Boolean = Field(default=True, description="The content is plain; otherwise it is base64 already.")


def any_of(*privileges: str) -> Perm:
    """One of the privileges, or the unrestricted one."""
    return Perm("/vms/{vmid}", (*privileges, ANYTHING), any=True)


def agent(call: Call, vmid: int) -> Agent:
    """The agent of a machine; raises why it cannot be asked."""
    services = call.services
    record = read_guest(services.store, vmid, kind="qemu", node=services.node).record
    return services.context.machines.agent(vmid, record.config)


def _declare(command: str, verb: str, privileges: tuple[str, ...], text: str) -> None:
    @endpoint(
        verb,
        f"{AGENT}/{command}",
        params=GuestParams,
        permission=any_of(*privileges),
        returns=dict[str, Any],
        proxy="node",
        waits=True,
        description=text,
    )
    def ask(call: Call, p: GuestParams) -> dict[str, Any]:
        return {"result": agent(call, p.vmid).command(command)}


for _command, (_verb, _privileges, _text) in COMMANDS.items():
    _declare(_command, _verb, _privileges, _text)


@endpoint("POST", AGENT, params=AgentCommand, permission=any_of(), returns=dict[str, Any], proxy="node", waits=True)
def ask_by_name(call: Call, p: AgentCommand) -> dict[str, Any]:
    """Ask the agent by the name of a command."""
    return {"result": agent(call, p.vmid).command(p.command)}


@endpoint(
    "POST",
    AGENT + "/set-user-password",
    params=SetPassword,
    permission=any_of(),
    returns=dict[str, Any],
    proxy="node",
    waits=True,
)
def set_password(call: Call, p: SetPassword) -> dict[str, Any]:
    """Set somebody's password inside."""
    return {"result": agent(call, p.vmid).set_user_password(p.username, p.password, crypted=p.crypted)}


@endpoint(
    "POST", AGENT + "/exec", params=Execute, permission=any_of(), returns=dict[str, Any], proxy="node", waits=True
)
def execute(call: Call, p: Execute) -> dict[str, Any]:
    """Run a program inside; its number, for exec-status."""
    return agent(call, p.vmid).exec(p.command, p.input_data)


@endpoint(
    "GET",
    AGENT + "/exec-status",
    params=ExecuteStatus,
    permission=any_of(),
    returns=dict[str, Any],
    proxy="node",
    waits=True,
)
def execute_status(call: Call, p: ExecuteStatus) -> dict[str, Any]:
    """Whether a program has ended, and what it printed."""
    return agent(call, p.vmid).exec_status(p.pid)


@endpoint(
    "GET",
    AGENT + "/file-read",
    params=ReadFile,
    permission=any_of("VM.GuestAgent.FileRead"),
    returns=dict[str, Any],
    proxy="node",
    waits=True,
)
def read_file(call: Call, p: ReadFile) -> dict[str, Any]:
    """Read a file inside."""
    return agent(call, p.vmid).file_read(p.file, count=p.count, offset=p.offset, decode=p.decode)


@endpoint(
    "POST",
    AGENT + "/file-write",
    params=WriteFile,
    permission=any_of("VM.GuestAgent.FileWrite"),
    returns=None,
    proxy="node",
    waits=True,
)
def write_file(call: Call, p: WriteFile) -> None:
    """Write a file inside."""
    agent(call, p.vmid).file_write(p.file, p.content, encode=p.encode)
