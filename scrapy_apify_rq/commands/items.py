"""``scrapy rq items``: export what the crawls of a queue have scraped."""

from __future__ import annotations

import argparse
import io
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
from scrapy_apify_rq.commands import local_dataset, output, queues
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
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "-o", "--output", metavar="FILE", default="-", help="default: the standard output"
    )
    target.add_argument(
        "--storage",
        metavar="DIR",
        help="make the default dataset of this folder, in the layout of Apify's local storage",
    )
    parser.add_argument(
        "--format",
        help="default: what the file's name ends with; jsonlines for the standard output",
    )


def run(settings: Settings, options: argparse.Namespace) -> None:
    count = queues.run(_export(settings, options))
    output.say(f"{count:,} exported")


async def _export(settings: Settings, options: argparse.Namespace) -> int:
    async with queues.opened(settings, options, purpose="read") as queue:
        store = queue.backend.items
        if store is None:
            raise RequestQueueError(
                "APIFY_TOKEN may not use the key-value store that says where the queue's items are:"
                " give the token this permission"
            )
        quiet = options.storage is None and output.is_on_screen(options.output)
        stored, total = _items(queue, store), await store.count()
        items = output.with_progress(stored, "exporting", total, quiet=quiet)
        if options.storage is not None:
            return await _write_dataset(queue, items, options)
        return await _write_feed(queue, items, options)


async def _write_feed(queue: Queue, items: AsyncIterator[Any], options: argparse.Namespace) -> int:
    extension = Path(options.output).suffix.removeprefix(".")
    cls = _exporter_class(queue, options.format or extension or "jsonlines")
    count = 0
    with output.writing(options.output) as file:
        exporter = _exporter(queue, cls, file)
        exporter.start_exporting()
        async for item in items:
            exporter.export_item(item)
            count += 1
        exporter.finish_exporting()
    return count


async def _write_dataset(
    queue: Queue, items: AsyncIterator[Any], options: argparse.Namespace
) -> int:
    if options.format is not None:
        raise UsageError("--storage has a format of its own: leave --format out")
    cls = _exporter_class(queue, "jsonlines")
    count = 0
    with local_dataset.writing(options.storage) as write:
        async for item in items:
            file = io.BytesIO()
            # ASCII, whatever the project's encoding is: the readers expect UTF-8.
            exporter = _exporter(queue, cls, file, encoding=None)
            exporter.start_exporting()
            exporter.export_item(item)
            exporter.finish_exporting()
            write(file.getvalue())
            count += 1
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


def _exporter_class(queue: Queue, name: str) -> type[BaseItemExporter]:
    """Raises UsageError for a format that the project has not."""
    settings = queue.crawler.settings
    known = without_none_values(settings.getwithbase("FEED_EXPORTERS"))
    if name not in known:
        raise UsageError(f"unknown format {name!r}: add --format with one of {', '.join(known)}")
    found: type[BaseItemExporter] = load_object(known[name])
    return found


def _exporter(
    queue: Queue, cls: type[BaseItemExporter], file: BinaryIO, **given: Any
) -> BaseItemExporter:
    """Make it as a feed with no options would, but for what is ``given``."""
    options = feed_complete_default_values_from_settings({}, queue.crawler.settings)
    kept = {name: options[name] for name in ("encoding", "indent")}
    return build_from_crawler(
        cls, queue.crawler, file, fields_to_export=options["fields"], **{**kept, **given}
    )
