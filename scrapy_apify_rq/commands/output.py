"""Print what subcommands print: tables for people, JSON for programs, progress bars.

Results go to the standard output, everything else to the standard error. If the output is not a
terminal, there are no colours, no progress bars and no line breaks that are not in the data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text
from scrapy.exceptions import UsageError

from scrapy_apify_rq.entries.mending import without_words
from scrapy_apify_rq.errors import RequestQueueError
from scrapy_apify_rq.plurals import plural

_T = TypeVar("_T")

# Entries per update of a progress bar. An update for each entry would cost more than the work.
_STEP: Final = 100
# The width of a progress bar. The line has about 40 columns in all, because a window that gets
# narrower than the line breaks it in two, and leaves one half behind.
_BAR: Final = 10
# Columns of a table that does not have to fit on a screen.
_UNLIMITED_WIDTH: Final = 1_000_000
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Advance(Protocol):
    def __call__(self, steps: int) -> None: ...


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print JSON: {what}")


def printable(text: str) -> str:
    """Escape control characters, so that data from a queue cannot control the terminal, line ends,
    marks that turn the text around them, and lone surrogates, which cannot be printed.
    """
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def print_json(value: Any) -> None:
    """Print one line. A value that JSON cannot hold is written as its ``repr``."""
    print(without_words(json.dumps(value, ensure_ascii=False, default=repr)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a table. Numbers and the headers above them are right-aligned."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    lines = [[_cell(value) for value in row] for row in rows]
    for number, column in enumerate(columns):
        is_text = any(not line[number].justify for line in lines)
        grid.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for line in lines:
        grid.add_row(*line)
    return grid


def show(*parts: RenderableType) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNLIMITED_WIDTH
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    # rich pads cells with spaces, which only get in the way in a pipe.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def failures(count: int) -> Text:
    """A cell that stands out if something has failed."""
    return Text(f"{count:,}", justify="right", style="red" if count else "")


def marked(text: str) -> str:
    """Make a text that stands out on a terminal."""
    console = Console()
    if not console.is_terminal or console.no_color:
        return text
    return f"\x1b[31m{text}\x1b[0m"


def counted(number: int, noun: str, many: str = "") -> str:
    """Say "1 item" or "2 items"."""
    return f"{number:,} {plural(number, noun, many)}"


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, int):
        return Text(f"{value:,}", justify="right")
    return Text(printable(str(value)))


def say(text: str) -> None:
    """Print a remark that is not part of the result."""
    print(printable(text), file=sys.stderr)


def confirm(question: str, *, if_refused: str) -> None:
    """Ask on the terminal. Unless the answer is yes, raise RequestQueueError(if_refused)."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask on; add --yes to confirm")
    print(f"{question} [y/N]", end=" ", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RequestQueueError(if_refused)


def is_on_screen(file: str = "-") -> bool:
    """Whether results go to a terminal, where a progress bar would be in their way."""
    return file == "-" and sys.stdout.isatty()


@contextmanager
def progress(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """Show a progress bar while the block runs, if the standard error is a terminal.

    Be ``quiet`` where the block prints results that are on the screen.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
    )
    quiet = quiet or not console.is_terminal
    # Else the bar would write the results to the standard error, and a file would stay empty.
    with Progress(
        *columns, console=console, transient=True, disable=quiet, redirect_stdout=False
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int) -> None:
            bar.advance(task, steps)

        yield advance


async def with_progress(
    source: AsyncIterator[_T], what: str, total: int | None, *, quiet: bool = False
) -> AsyncGenerator[_T, None]:
    """Pass everything on and show a progress bar, unless ``quiet``."""
    with progress(what, total, quiet=quiet) as advance:
        count = 0
        async for one in source:
            yield one
            count += 1
            if count % _STEP == 0:
                advance(_STEP)


@contextmanager
def writing(file: str, *, make_folder: bool = False) -> Iterator[BinaryIO]:
    """Open the standard output for "-", else a file that gets its name once it is complete."""
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    try:
        if path.is_dir():
            raise RequestQueueError(f"cannot write {file}: Is a directory")
        if path.exists() and not path.is_file():  # a pipe or a device, which must not be replaced
            with path.open("wb") as target:
                yield target
            return
        path = path.resolve() if path.is_file() else path  # what a link leads to
        part = Path(f"{path}.part")
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as target:
            try:
                yield target
                target.close()
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise RequestQueueError(f"cannot write {file}: {error.strerror}") from error
