# SPDX-License-Identifier: AGPL-3.0-or-later
"""Marked blocks: our lines in files that belong to somebody else."""

from typing import Final

from orrery.drivers.lxc.tree import Tree
from orrery.errors import NotFound

BEGIN: Final = "# --- BEGIN ORRERY ---"
END: Final = "# --- END ORRERY ---"
_BEGINS: Final = (BEGIN, "# --- BEGIN PVE ---")  # of a container that came from a Proxmox host: the same lines
_ENDS: Final = (END, "# --- END PVE ---")
OFF: Final = "#orrery# "
"""Before a line that stood in our way; it comes back when we no longer need its place."""


def read_text(tree: Tree, path: str) -> str | None:
    """A file's text, None when it is absent; bytes that are no UTF-8 survive the way back."""
    try:
        return tree.read(path).decode("utf-8", "surrogateescape")
    except NotFound:
        return None


def write_text(tree: Tree, path: str, text: str, mode: int | None = None) -> bool:
    """Replace a file; its folder is made when it is missing. Says whether anything changed."""
    folder = path.rpartition("/")[0]
    if folder and not tree.exists(folder):
        tree.mkdir(folder)
    return tree.write(path, text.encode("utf-8", "surrogateescape"), mode=mode)


def split(text: str) -> tuple[list[str], list[str]]:
    """The lines before and behind our block (the first, if there are more), which is left out.

    A mark without its partner is left out alone: what follows it may be somebody's.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    before: list[str] = []
    behind: list[str] = []
    kept, position, found = before, 0, False
    while position < len(lines):
        line = lines[position].strip()
        if line in _BEGINS:
            end = next((n for n in range(position + 1, len(lines)) if lines[n].strip() in _ENDS + _BEGINS), None)
            if end is not None and lines[end].strip() in _ENDS:
                position = end
            if not found:
                kept, found = behind, True
        elif line not in _ENDS:
            kept.append(lines[position])
        position += 1
    return before, behind


def joined(before: list[str], body: list[str], behind: list[str]) -> str:
    """A text with `body` as our block between other lines. No body, no block."""
    lines = [*before, *([BEGIN, *body, END] if body else []), *behind]
    return "".join(f"{line}\n" for line in lines)


def with_block(text: str, body: list[str], *, first: bool = False) -> str:
    """`text` with `body` as our block: where the block is, else at the end (or `first`)."""
    before, behind = split(text)
    if first and not any(line.strip() in _BEGINS for line in text.split("\n")):
        before, behind = [], before + behind
    return joined(before, body, behind)


def put_block(tree: Tree, path: str, body: list[str], *, first: bool = False) -> None:
    """Write our block into a file. A file is made for it, but none for nothing; one that held no more is removed."""
    text = read_text(tree, path)
    if text is None and not body:
        return
    new = with_block(text or "", body, first=first)
    if new == text:
        return
    if body or new.strip():
        write_text(tree, path, new)
    else:
        tree.remove(path)


def drop_owned(tree: Tree, folder: str, prefix: str, kept: set[str]) -> None:
    """Remove files of ours (named by `prefix`) in a folder, but those still wanted."""
    if not tree.is_dir(folder):
        return
    for name in tree.list(folder):
        if name.startswith(prefix) and name not in kept:
            tree.remove(f"{folder}/{name}")
