"""``scrapy rq export``: write a queue to a file of JSON Lines."""

from __future__ import annotations

import argparse

from scrapy.settings import Settings

from scrapy_apify_rq.backends.item_lines import line
from scrapy_apify_rq.commands import output, queues

NAME = "export"
HELP = (
    "Write all entries to a file, one per line, as the API returns them, and all saved items after"
    " them; see import"
)
EXAMPLE = "scrapy rq export backup.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("file", metavar="FILE", help="- is the standard output")


def run(settings: Settings, options: argparse.Namespace) -> None:
    count = queues.run(_export(settings, options))
    output.say(f"{count:,} exported")


async def _export(settings: Settings, options: argparse.Namespace) -> int:
    count = 0
    async with queues.opened(settings, options, purpose="read") as queue:
        info = await queue.backend.info()
        with output.writing(options.file) as file:
            stored, quiet = queue.backend.list(), output.is_on_screen(options.file)
            entries = output.with_progress(stored, "exporting", info.total, quiet=quiet)
            async for entry in entries:
                file.write(entry.to_json().encode() + b"\n")
                count += 1
            if queue.backend.items is not None:
                async for item in queue.backend.items.read():
                    file.write(line(item))
    return count
