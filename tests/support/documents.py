"""What the documents show, for the tests that check and try it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = "README.md"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "example_project/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(
    r"(?:<!-- ([^\n]+) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block of code. ``mark`` is what the comment in the line above says, or empty."""

    page: str
    mark: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip()]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def section(page: str, title: str) -> str:
    """What is below this heading, up to the next one that is not below it."""
    found = re.search(rf"^(#+) {re.escape(title)}$(.*)", text(page), re.MULTILINE | re.DOTALL)
    assert found, title
    end = rf"^#{{1,{len(found[1])}}} [A-Z]"
    return re.split(end, found[2], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(page: str, title: str | None = None) -> list[Block]:
    """All blocks of a page, or those below one heading of it."""
    found = _FENCE.findall(text(page) if title is None else section(page, title))
    return [
        Block(page, mark, language, _dedented(code, len(indent)))
        for mark, indent, language, code in found
    ]


def _dedented(code: str, by: int) -> str:
    return "".join(line[by:] for line in code.splitlines(keepends=True))


def commands(page: str, title: str) -> list[list[str]]:
    """The words of each command below this heading, with the spider of the tests' projects."""
    shown = (block for block in blocks(page, title) if block.language == "bash")
    lines = (line.replace("myspider", "spider") for block in shown for line in block.lines)
    return [shlex.split(line, comments=True) for line in lines]


def snippet(page: str, title: str, language: str = "python") -> str:
    """The only block in this language below this heading."""
    (only,) = [block for block in blocks(page, title) if block.language == language]
    return only.text
