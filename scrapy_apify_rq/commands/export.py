"""``scrapy rq export``: write a queue to a file of JSON Lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.errors import RequestQueueError

NAME = "export"
HELP = "Write all entries to a file, one per line, as the API returns them; see import"
EXAMPLE = "scrapy rq export backup.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("file", metavar="FILE", help="- is the standard output")


def run(settings: Settings, options: argparse.Namespace) -> None:
    count = queues.run(_export(settings, options))
    output.say(f"{count:,} exported")


async def _export(settings: Settings, options: argparse.Namespace) -> int:
    count = 0
    async with queues.opened(settings, options) as queue:
        info = await queue.backend.info()
        with _writing(options.file) as file:
            entries = queue.backend.list()
            async for entry in output.with_progress(entries, "exporting", info.total):
                file.write(entry.to_json().encode() + b"\n")
                count += 1
    return count


@contextmanager
def _writing(file: str) -> Iterator[BinaryIO]:
    """Open the standard output for "-", else a file that gets its name once it is complete."""
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as target:
            yield target
        part.replace(path)
    except OSError as error:
        raise RequestQueueError(f"cannot write {file}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
