# SPDX-License-Identifier: AGPL-3.0-or-later
"""How docstrings of commands are shown as their help: examples can be copied, and no sentence is cut in lists."""

import inspect
import re
import textwrap
from typing import Final

EXAMPLE: Final = "Example:"
WIDTH: Final = 74
"""Columns of an example, so that it fits a terminal of 80 with the indentation of a help."""

_AS_IT_STANDS: Final = "\b\n"
"""Before a paragraph whose lines are not to be filled anew; see "Preventing Rewrapping" in Click's documentation."""


def shown(docstring: str | None) -> str:
    """The help of a command: its docstring, with the example's lines broken where a shell goes on."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    return "\n\n".join(_example(each) if each.startswith(EXAMPLE) else each for each in paragraphs)


def summary(docstring: str | None) -> str:
    """What lists of commands say: the first sentence, whole."""
    first = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))[0]
    return re.split(r"(?<=\.)\s", " ".join(first.split()))[0]


def _example(paragraph: str) -> str:
    lines = textwrap.wrap(
        paragraph.removeprefix(EXAMPLE).strip(), WIDTH - 4, break_on_hyphens=False, break_long_words=False
    )
    return f"{_AS_IT_STANDS}{EXAMPLE}\n  " + " \\\n    ".join(lines)
