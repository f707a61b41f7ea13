"""Adding what the lines of a file stand for, however long it is: for ``add`` and ``import``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import CodecError, RequestQueueError

Line = tuple[str, bytes]
"""Where it is from, and its text."""


@contextmanager
def lines(file: str) -> Iterator[Iterator[Line]]:
    """The lines of a file, or of the standard input if it is "-"; empty ones are left out."""
    with _open(file) as source:
        numbered = enumerate(source, 1)
        yield ((f"line {number}", line.strip()) for number, line in numbered if line.strip())


@contextmanager
def _open(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise RequestQueueError(f"cannot read {file}: {error.strerror}") from error
    with source:
        yield source


async def add(
    queue: Queue,
    lines: Iterator[Line],
    parse: Callable[[bytes], Entry],
    options: argparse.Namespace,
    *,
    forefront: bool,
) -> None:
    """Add what ``parse`` makes of each line, in their order, and say how many were new.

    What is wrong with a line is said, and raises RequestQueueError at the end, when all the others
    are added.
    """
    added = present = wrong = 0
    with output.progress("adding", None) as advance:
        # One batch after the other: of several at a time, any may be the first in the queue.
        async for batch in queues.batches(_parsed(lines, parse), queue.backend.batch):
            good = [(where, entry) for where, entry in batch if entry is not None]
            wrong += len(batch) - len(good)
            entries = [entry for _, entry in good]
            answers = await queue.backend.add(entries, forefront=forefront)
            for (where, _), answer in zip(good, answers, strict=True):
                if answer.refused:
                    output.say(f"{where}: {answer.refused}")
                    wrong += 1
                elif answer.was_already_present:
                    present += 1
                else:
                    added += 1
            advance(len(batch))
    if options.json:
        output.print_json({"added": added, "alreadyPresent": present, "notAdded": wrong})
    else:
        print(f"{added:,} added, {present:,} were there already")
    if wrong:
        raise RequestQueueError(f"{wrong:,} could not be added, see above")


async def _parsed(
    lines: Iterator[Line], parse: Callable[[bytes], Entry]
) -> AsyncIterator[tuple[str, Entry | None]]:
    """None where a line is wrong, which has been said."""
    for where, line in lines:
        try:
            entry = parse(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = "".join(f"{part}: " for part in problem["loc"])
            output.say(f"{where}: {field}{problem['msg']}")
            yield where, None
        except (CodecError, ValueError) as error:
            output.say(f"{where}: {error}")
            yield where, None
        else:
            yield where, entry
