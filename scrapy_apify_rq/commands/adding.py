"""Add the lines of a file to a queue, batch by batch: shared by ``add`` and ``import``."""

from __future__ import annotations

import argparse
import sys
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from scrapy_apify_rq.backends.base import Added
from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import CodecError, RequestQueueError

Line = tuple[str, bytes]
"""A name for error messages ("line 3", or the URL itself), and the text."""


@contextmanager
def read_lines(file: str) -> Iterator[Iterator[Line]]:
    """Read the lines of a file, or of the standard input for "-", but not empty ones or those that
    begin with "#".
    """
    with _open(file) as source:
        lines = (line.removeprefix(BOM_UTF8).strip() for line in source)
        yield (
            (f"line {number}", line)
            for number, line in enumerate(lines, 1)
            if line and not line.startswith(b"#")
        )


@contextmanager
def _open(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 (the with statement below closes it)
    except OSError as error:
        raise RequestQueueError(f"cannot read {file}: {error.strerror}") from error
    with source:
        yield source


async def add_lines(
    queue: Queue,
    lines: Iterator[Line],
    parse: Callable[[bytes], Entry],
    options: argparse.Namespace,
    *,
    forefront: bool,
) -> None:
    """Parse each line into an entry, add the entries in order, and print how many were new.

    A line that cannot be added is reported and the rest are still added. Then RequestQueueError is
    raised.
    """
    added = present = failed = 0
    with output.progress("adding", None) as advance:
        # One batch at a time: batches sent at once could arrive in any order.
        async for batch in queues.batches(_parsed(lines, parse), queue.backend.batch):
            parsed = [(where, entry) for where, entry in batch if entry is not None]
            failed += len(batch) - len(parsed)
            entries = [entry for _, entry in parsed]
            answers = await _add(queue, entries, forefront=forefront) if entries else []
            for (where, _), answer in zip(parsed, answers, strict=True):
                if answer.refused:
                    output.say(f"{where}: {answer.refused}")
                    failed += 1
                elif answer.was_already_present:
                    present += 1
                else:
                    added += 1
            advance(len(batch))
    if not failed:
        await queue.create()
    if options.json:
        output.print_json({"added": added, "alreadyPresent": present, "notAdded": failed})
    else:
        print(f"{added:,} added, {present:,} already in the queue")
    if failed:
        raise RequestQueueError(f"{failed:,} could not be added, see above")


async def _add(queue: Queue, entries: list[Entry], *, forefront: bool) -> list[Added]:
    await queue.create()
    return await queue.backend.add(entries, forefront=forefront)


async def _parsed(
    lines: Iterator[Line], parse: Callable[[bytes], Entry]
) -> AsyncIterator[tuple[str, Entry | None]]:
    """Parse each line. An invalid line is reported and gives None."""
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
