"""``scrapy rq items``: export what the crawls of a queue have scraped."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from scrapy.exceptions import UsageError
from scrapy.exporters import BaseItemExporter
from scrapy.settings import Settings
from scrapy.utils.conf import feed_complete_default_values_from_settings
from scrapy.utils.misc import build_from_crawler, load_object
from scrapy.utils.python import without_none_values

from scrapy_apify_rq.backends.base import ItemStore
from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.saved_items import ItemCodec
from scrapy_apify_rq.errors import CodecError, RequestQueueError

NAME = "items"
HELP = (
    "Export the saved items of a queue, each once, in any format of FEED_EXPORTERS. Its crawl may"
    " be running; the items of pages that are not handled yet are left out"
)
EXAMPLE = "scrapy rq items -o items.csv"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="-", help="default: the standard output"
    )
    parser.add_argument(
        "--format", help="default: that of the file's extension, and jsonlines for the output"
    )


def run(settings: Settings, options: argparse.Namespace) -> None:
    count = queues.run(_export(settings, options))
    output.say(f"{count:,} exported")


async def _export(settings: Settings, options: argparse.Namespace) -> int:
    async with queues.opened(settings, options, purpose="read") as queue:
        store = queue.backend.items
        if store is None:
            raise RequestQueueError("the items of a queue of the API are not saved")
        make = _exporter_class(queue, options)
        count = 0
        with output.writing(options.output) as file:
            exporter = _exporter(queue, make, file)
            exporter.start_exporting()
            items = _items(queue, store)
            async for item in output.with_progress(items, "exporting", await store.count()):
                exporter.export_item(item)
                count += 1
            exporter.finish_exporting()
    return count


async def _items(queue: Queue, store: ItemStore) -> AsyncIterator[Any]:
    codec = ItemCodec(queue.converter().names)
    async for saved in store.read():
        try:
            yield codec.read(saved.json)
        except CodecError as error:
            raise RequestQueueError(
                f"an item of entry {saved.entry} cannot be read: {error}. Run this in the project"
                " of the crawl, as it was when the item was scraped"
            ) from error


def _exporter_class(queue: Queue, options: argparse.Namespace) -> type[BaseItemExporter]:
    """Raises UsageError for a format that the project has not."""
    settings = queue.crawler.settings
    known = without_none_values(settings.getwithbase("FEED_EXPORTERS"))
    extension = Path(options.output).suffix.removeprefix(".")
    name = options.format or extension or "jsonlines"
    if name not in known:
        raise UsageError(f"unknown format {name!r}: add --format with one of {', '.join(known)}")
    found: type[BaseItemExporter] = load_object(known[name])
    return found


def _exporter(queue: Queue, cls: type[BaseItemExporter], file: BinaryIO) -> BaseItemExporter:
    """Make it as a feed with no options would."""
    options = feed_complete_default_values_from_settings({}, queue.crawler.settings)
    return build_from_crawler(
        cls,
        queue.crawler,
        file,
        fields_to_export=options["fields"],
        encoding=options["encoding"],
        indent=options["indent"],
    )
