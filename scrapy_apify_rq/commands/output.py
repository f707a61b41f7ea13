"""What subcommands print: tables for people, JSON for programs, progress for who waits.

Results go to the standard output, all else to the standard error. Off a terminal there are no
colours, no progress and no line breaks that are not in the data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text
from scrapy.exceptions import UsageError

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import RequestQueueError

# Counted at once: showing each single one would cost more than the work itself.
_STEP: Final = 100
# As wide as a table gets where there is no screen that it must fit on.
_NO_SCREEN: Final = 1_000_000


class Advance(Protocol):
    def __call__(self, steps: int) -> None: ...


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"for programs: {what}")


def printable(text: str) -> str:
    """Without control characters: data from a queue must not drive the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


def print_json(value: Any) -> None:
    """One line. Values that JSON lacks are written as Python shows them."""
    print(json.dumps(value, ensure_ascii=False, default=repr))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Numbers are right-aligned, as are the titles above them."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    lines = [[_cell(value) for value in row] for row in rows]
    for number, column in enumerate(columns):
        is_text = any(not line[number].justify for line in lines)
        made.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for line in lines:
        made.add_row(*line)
    return made


def show(*parts: RenderableType) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _NO_SCREEN
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    # Cells are padded, and what is piped should not be.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> Text:
    if isinstance(value, int):
        return Text(f"{value:,}", justify="right")
    return Text(printable(str(value)))


def say(text: str) -> None:
    """A remark that is no part of the result."""
    print(printable(text), file=sys.stderr)


def confirm(question: str, *, otherwise: str) -> None:
    """Ask at the terminal; without a yes, raise RequestQueueError, which says ``otherwise``."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask at: to say yes, add --yes")
    print(f"{question} [y/N]", end=" ", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RequestQueueError(otherwise)


@contextmanager
def progress(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar on the standard error while the block runs, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
    )
    quiet = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int) -> None:
            bar.advance(task, steps)

        yield advance


async def watched(
    entries: AsyncIterator[Entry], what: str, total: int | None, *, quiet: bool = False
) -> AsyncGenerator[Entry, None]:
    """The entries, with their progress unless ``quiet``."""
    with progress(what, total, quiet=quiet) as advance:
        number = 0
        async for entry in entries:
            yield entry
            number += 1
            if number % _STEP == 0:
                advance(_STEP)
