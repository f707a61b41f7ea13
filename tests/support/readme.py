"""The commands that the README shows, for the tests that run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_TEXT = (Path(__file__).parents[2] / "README.md").read_text()


def commands(title: str) -> list[list[str]]:
    """The words of each command below this heading, with the spider of the tests' projects."""
    section = re.split(rf"^#+ {re.escape(title)}$", _TEXT, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ [A-Z]", section, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
        for line in block.splitlines()
    ]
    return [shlex.split(line.replace("myspider", "spider")) for line in lines]
