"""``scrapy rq retry``: crawl handled entries again."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.backends.base import Purpose
from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.converter import reset
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import RequestQueueError

NAME = "retry"
HELP = (
    "Put failed entries back at the front of the queue, as if they had never been tried. A crawl"
    " that is running picks them up; otherwise the next one does"
)
EXAMPLE = "scrapy rq retry --failed --dry-run"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument(
        "ids", metavar="ID", nargs="*", help="retry these handled entries, failed or not"
    )
    parser.add_argument("--failed", action="store_true", help="retry all failed entries")
    parser.add_argument(
        "--match",
        metavar="REGEX",
        type=queues.regex,
        help="retry the failed entries whose URL matches",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the entries, but do not change them"
    )
    output.add_json_option(parser, "an object with retried, or with wouldRetry in a dry run")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if not (options.ids or options.failed or options.match):
        raise UsageError("which entries? Add --failed, --match REGEX or ids")
    if options.ids and (options.failed or options.match):
        raise UsageError("give either ids or --failed and --match, not both")
    retried, not_retried = queues.run(_retry(settings, options))
    if options.json:
        output.print_json({"wouldRetry" if options.dry_run else "retried": retried})
    else:
        went = "would go" if options.dry_run else "went"
        print(f"{retried:,} {'entry' if retried == 1 else 'entries'} {went} back to the queue")
    if not_retried:
        raise RequestQueueError(f"{not_retried:,} could not be retried, see above")
    if not retried:
        raise RequestQueueError("no handled entry matches")


async def _retry(settings: Settings, options: argparse.Namespace) -> tuple[int, int]:
    """Return how many entries were put back, and how many could not be."""
    retried = not_retried = 0
    purpose: Purpose = "read" if options.dry_run else "store"
    async with queues.opened(settings, options, purpose=purpose) as queue:
        with output.progress("retrying", len(options.ids) or None) as advance:
            async for batch in queues.batches(_selected(queue, options), queue.batch):
                entries = [entry for entry in batch if entry is not None]
                if options.dry_run:
                    put_back = _print_ids(entries)
                else:
                    put_back = await _put_back(queue, entries)
                retried += put_back
                not_retried += len(batch) - put_back
                advance(len(batch))
    return retried, not_retried


def _print_ids(entries: list[Entry]) -> int:
    for entry in entries:
        output.say(f"{entry.id}  {entry.url}")
    return len(entries)


async def _put_back(queue: Queue, entries: list[Entry]) -> int:
    """Make the entries pending, and return for how many the queue accepted that."""
    priority_adjust = queue.crawler.settings.getint("RETRY_PRIORITY_ADJUST")
    for entry in entries:
        reset(entry, priority_adjust)
    answers = await queue.update(entries, forefront=True)
    return sum(not answer.refused for answer in answers)


async def _selected(queue: Queue, options: argparse.Namespace) -> AsyncIterator[Entry | None]:
    """The entries to retry. An id that cannot be retried is reported and gives None."""
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
