"""``scrapy rq retry``: have handled entries crawled again."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.converter import reset
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import RequestQueueError

NAME = "retry"
HELP = (
    "Put failed entries back in front of the queue, as if they had never been tried: those of the"
    " next run, or of the crawl that runs now"
)
EXAMPLE = "scrapy rq retry --failed --dry-run"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("ids", metavar="ID", nargs="*", help="these, failed or not")
    parser.add_argument("--failed", action="store_true", help="all that failed")
    parser.add_argument(
        "--match",
        metavar="REGEX",
        type=queues.regex,
        help="those that failed and have this in their URL",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say which")
    output.add_json_option(parser, "an object with retried, or in a dry run wouldRetry")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if not (options.ids or options.failed or options.match):
        raise UsageError("which entries? Add --failed, --match REGEX or ids")
    if options.ids and (options.failed or options.match):
        raise UsageError("either ids or --failed and --match, not both")
    number, left = queues.run(_retry(settings, options))
    if options.json:
        output.print_json({"wouldRetry" if options.dry_run else "retried": number})
    else:
        would = "would go" if options.dry_run else "went"
        print(f"{number:,} {'entry' if number == 1 else 'entries'} {would} back to the queue")
    if left:
        raise RequestQueueError(f"{left:,} could not be retried, see above")
    if not number:
        raise RequestQueueError("no handled entry matches")


async def _retry(settings: Settings, options: argparse.Namespace) -> tuple[int, int]:
    """How many entries were put back, and how many not."""
    async with queues.opened(settings, options) as queue:
        adjust = queue.crawler.settings.getint("RETRY_PRIORITY_ADJUST")
        number = missing = 0
        with output.progress("retrying", len(options.ids) or None) as advance:
            async for batch in queues.batches(_chosen(queue, options), queue.batch):
                entries = [entry for entry in batch if isinstance(entry, Entry)]
                refused = 0
                for entry in entries:
                    if options.dry_run:
                        output.say(f"{entry.id}  {entry.url}")
                    reset(entry, adjust)
                if not options.dry_run:
                    answers = await queue.update(entries, forefront=True)
                    refused = sum(answer.refused for answer in answers)
                number += len(entries) - refused
                missing += len(batch) - len(entries) + refused
                advance(len(batch))
        return number, missing


async def _chosen(queue: Queue, options: argparse.Namespace) -> AsyncIterator[Entry | None]:
    """None for an id that cannot be retried."""
    for id in dict.fromkeys(options.ids):
        entry = await queue.get(id)
        if entry is not None and entry.is_handled:
            yield entry
        else:
            output.say(f"{id}: {'there is no such entry' if entry is None else 'still pending'}")
            yield None
    if not options.ids:
        async for entry in queue.backend.list("failed"):
            if options.match is None or options.match.search(entry.url):
                yield entry
