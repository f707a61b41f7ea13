"""What the README shows, for the tests that try it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_TEXT = (Path(__file__).parents[2] / "README.md").read_text()


def section(title: str) -> str:
    """What is below this heading, up to the next one that is not below it."""
    found = re.search(rf"^(#+) {re.escape(title)}$(.*)", _TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    end = rf"^#{{1,{len(found[1])}}} [A-Z]"
    return re.split(end, found[2], maxsplit=1, flags=re.MULTILINE)[0]


def commands(title: str) -> list[list[str]]:
    """The words of each command below this heading, with the spider of the tests' projects."""
    blocks = re.findall(r"```bash\n(.*?)```", section(title), re.DOTALL)
    lines = "".join(blocks).replace("myspider", "spider").splitlines()
    return [shlex.split(line, comments=True) for line in lines]
