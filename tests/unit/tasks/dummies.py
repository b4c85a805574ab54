# SPDX-License-Identifier: AGPL-3.0-or-later
"""Operations whose effects can be seen: they make and remove files in a folder."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from orrery.errors import Failure
from orrery.system.paths import Paths
from orrery.tasks.operation import TaskHandle
from orrery.tasks.registry import operation
from orrery.tasks.revert import Log, undo


@dataclass(frozen=True)
class Workshop:
    """The context of the dummy operations."""

    things: Path

    def make(self, name: str) -> None:
        self.things.joinpath(name).write_text(str(os.getpid()))

    def remove(self, name: str) -> None:
        self.things.joinpath(name).unlink(missing_ok=True)

    def note(self, text: str) -> None:
        with self.things.parent.joinpath("notes").open("a") as file:
            file.write(f"{text}\n")


def open_workshop(paths: Paths, node: str) -> Workshop:
    things = paths.lib / "things"
    if (paths.lib / "no-workshop").exists():
        raise Failure("the workshop is closed")
    things.mkdir(exist_ok=True)
    return Workshop(things)


@undo("thing.remove")
def remove_thing(ctx: Workshop, log: Log, *, name: str) -> None:
    log(f"removing {name}")
    if (ctx.things.parent / f"stuck-{name}").exists():
        raise Failure(f"{name} is stuck")
    if (ctx.things.parent / f"bug-{name}").exists():
        raise ValueError("a mistake")
    ctx.remove(name)
    ctx.note(f"removed {name}")


@operation
@dataclass(frozen=True)
class Build:
    """Makes things one after another; `ending` says what happens then."""

    kind: ClassVar[str] = "build"
    names: tuple[str, ...] = ("a", "b")
    ending: str = "ok"
    commit: bool = True
    target: str = "100"
    secret: str | None = field(default=None, metadata={"secret": True})

    def subject(self) -> str:
        return self.target

    def locks(self) -> Sequence[str]:
        return (f"guest/{self.target}",) if self.target else ()

    def check(self, ctx: Any) -> None:
        if self.ending == "check":
            raise Failure("it is impossible now")

    def run(self, ctx: Workshop, task: TaskHandle) -> None:
        for name in self.names:
            task.before("thing.remove", name=name)
            ctx.make(name)
            task.step("made", name=name)
            task.log(f"made {name}")
        match self.ending:
            case "fail":
                raise Failure("no luck\ntoday")
            case "bug":
                raise KeyError("the secret of the program")
            case "warn":
                task.warn("mind the step")
                task.warn("and the next one")
            case "kept":
                task.kept(task.before("thing.remove", name=self.names[0]))
                raise Failure("only one was kept")
        if self.commit:
            task.commit()
            ctx.note("committed")
        if self.ending == "late failure":
            raise Failure("after the point of no return")


@operation
@dataclass(frozen=True)
class Wait:
    """Works until a file `go` appears, reporting progress; `where` says when it begins to wait."""

    kind: ClassVar[str] = "wait"
    seconds: float = 20.0
    committed: bool = False
    target: str = ""
    deaf: bool = False

    def subject(self) -> str:
        return self.target

    def locks(self) -> Sequence[str]:
        return (f"guest/{self.target}",) if self.target else ()

    def check(self, ctx: Any) -> None:
        pass

    def run(self, ctx: Workshop, task: TaskHandle) -> None:
        task.before("thing.remove", name="waiting")
        ctx.make("waiting")
        if self.committed:
            task.commit()
        end = time.monotonic() + self.seconds
        done = 0
        while time.monotonic() < end and not (ctx.things / "go").exists():
            done += 1
            if not self.deaf:
                task.progress(done, 1 << 20, "turns", "waiting")
            time.sleep(0.01)


@operation
@dataclass(frozen=True)
class Stamp:
    """Notes the monotonic time at which it runs, and leaves at once."""

    kind: ClassVar[str] = "stamp"
    number: int = 0
    nested: tuple[Build, ...] = ()
    options: dict[str, int | str | None] = field(default_factory=dict)

    def subject(self) -> str:
        return f"local:iso/n {self.number}"

    def locks(self) -> Sequence[str]:
        return ()

    def check(self, ctx: Any) -> None:
        pass

    def run(self, ctx: Workshop, task: TaskHandle) -> None:
        now = time.monotonic_ns()
        (ctx.things / f"stamp-{self.number}").write_text(str(now))
        print("printed by a library", flush=True)


@operation
@dataclass(frozen=True)
class Die:
    """Ends its own process without a word."""

    kind: ClassVar[str] = "die"

    def subject(self) -> str:
        return ""

    def locks(self) -> Sequence[str]:
        return ()

    def check(self, ctx: Any) -> None:
        pass

    def run(self, ctx: Workshop, task: TaskHandle) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
