"""``scrapy rq retry``: crawl handled entries again."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator

from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.backends.base import Purpose, State
from scrapy_apify_rq.commands import option_values, output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.converter import reset
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import RequestQueueError

NAME = "retry"
HELP = (
    "Put failed or old entries back at the front of the queue, as if they had never been tried. A"
    " crawl that is running picks them up; otherwise the next one does"
)
EXAMPLE = "scrapy rq retry --failed --dry-run"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument(
        "ids", metavar="ID", nargs="*", help="retry these handled entries, failed or not"
    )
    parser.add_argument("--failed", action="store_true", help="retry all failed entries")
    parser.add_argument(
        "--handled-before",
        metavar="WHEN",
        type=option_values.moment,
        help="retry the entries, failed or not, that were handled before: an age, as 30m, 12h, 7d"
        " or 2w, or a date, as 2026-11-26 or 2026-11-26T18:30; with --failed, only the failed ones",
    )
    parser.add_argument(
        "--match",
        metavar="REGEX",
        type=option_values.regex,
        help="only the entries whose URL matches; without --handled-before, those that failed",
    )
    parser.add_argument(
        "--label",
        metavar="LABEL",
        help="only the entries with this label, which is the name of the callback unless another"
        " program made the entry; without --handled-before, those that failed",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the entries, but do not change them"
    )
    output.add_json_option(parser, "an object with retried, or with wouldRetry in a dry run")


def run(settings: Settings, options: argparse.Namespace) -> None:
    is_filtered = options.failed or any(_filters(options))
    if not (options.ids or is_filtered):
        raise UsageError(
            "which entries? Add --failed, --handled-before WHEN, --match REGEX, --label LABEL or"
            " ids"
        )
    if options.ids and is_filtered:
        raise UsageError("give either ids or options that select entries, not both")
    retried, not_retried = queues.run(_retry(settings, options))
    if options.json:
        output.print_json({"wouldRetry" if options.dry_run else "retried": retried})
    else:
        entries = output.counted(retried, "entry", "entries")
        if options.dry_run:
            output.say(f"{entries} would go back to the queue")
        else:
            print(f"{entries} went back to the queue")
    if not_retried:
        raise RequestQueueError(f"{not_retried:,} could not be retried, see above")
    if not retried:
        raise RequestQueueError("no handled entry matches")


def _filters(options: argparse.Namespace) -> tuple[object, ...]:
    return options.handled_before, options.match, options.label


async def _retry(settings: Settings, options: argparse.Namespace) -> tuple[int, int]:
    """Return how many entries were put back, and how many could not be."""
    retried = not_retried = 0
    purpose: Purpose = "read" if options.dry_run else "store"
    async with queues.opened(settings, options, purpose=purpose) as queue:
        quiet = options.dry_run and output.is_on_screen()
        with output.progress("retrying", len(options.ids) or None, quiet=quiet) as advance:
            async for batch in queues.batches(_selected(queue, options), queue.batch):
                entries = [entry for entry in batch if entry is not None]
                if options.dry_run:
                    put_back = len(entries)
                    if not options.json:
                        _print_ids(entries)
                else:
                    put_back = await _put_back(queue, entries)
                retried += put_back
                not_retried += len(batch) - put_back
                advance(len(batch))
    return retried, not_retried


def _print_ids(entries: list[Entry]) -> None:
    for entry in entries:
        print(f"{entry.id}  {output.printable(entry.url)}")


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
        state: State = "failed" if options.failed or not options.handled_before else "handled"
        async for entry in queue.backend.list(state):
            if _is_wanted(entry, options):
                yield entry


def _is_wanted(entry: Entry, options: argparse.Namespace) -> bool:
    before = options.handled_before
    return (
        (before is None or (entry.handled_at is not None and entry.handled_at < before))
        and (options.match is None or bool(options.match.search(entry.url)))
        and (options.label is None or entry.user_data.get("label") == options.label)
    )
