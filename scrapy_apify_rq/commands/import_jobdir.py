"""``scrapy rq import-jobdir``: move a crawl that stock Scrapy has begun into a request queue."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

from scrapy.exceptions import UsageError
from scrapy.settings import Settings
from scrapy.utils.conf import arglist_to_dict
from scrapy.utils.misc import load_object

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.jobdir import JobDir
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.errors import ConfigError, RequestQueueError

if TYPE_CHECKING:
    from scrapy.core.engine import ExecutionEngine

    from scrapy_apify_rq.entries.models import Entry

NAME = "import-jobdir"
HELP = (
    "Copy the pending requests and the seen set of a crawl that stock Scrapy has paused with JOBDIR"
    " into the queue, so that the next run continues where it stopped. If its queues are SQLite"
    " ones, the crawl may also have been killed. The JOBDIR is not changed."
    " It holds pickles, and reading a pickle runs any code that its writer put there: use only a"
    " JOBDIR of your own"
)
EXAMPLE = "scrapy rq import-jobdir crawls/somespider-1 --spider somespider"
_WARNING: Final = (
    "{} holds pickles. Reading a pickle runs any code that its writer put there, so use only a"
    " JOBDIR that you wrote yourself."
)

_KILLED: Final = (
    "The crawl was killed. What Scrapy was fetching at that moment is in none of its files and not"
    " imported. If that may have been start requests, add --repeat-start"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the JOBDIR of the paused crawl")
    queues.add_options(parser)
    parser.add_argument(
        "--repeat-start",
        action="store_true",
        help="crawl the start requests again that are not pending, as Scrapy does when it resumes."
        " Use this if the crawl was stopped before its start() had finished. Without this option"
        " the command runs start() once, to find out which requests it yields",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask whether DIR is your own")


def run(settings: Settings, options: argparse.Namespace) -> None:
    try:
        arguments = arglist_to_dict(options.arguments)
    except ValueError:
        raise UsageError("-a takes NAME=VALUE") from None
    options.spider = queues.checked_spider(settings, options.spider)
    if not options.yes:
        output.say(_WARNING.format(options.folder))
        output.confirm("Is it your own?", if_refused="nothing was read")
    queues.run(_import(settings, options, arguments))


class _Skipped:
    """Reports and counts the pending requests that the queue cannot store."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, url: str, reason: object) -> None:
        self.count += 1
        output.say(f"not imported: {url}: {reason}")


async def _import(
    settings: Settings, options: argparse.Namespace, arguments: dict[str, str]
) -> None:
    async with queues.opened(settings, options, create=True, exact=True) as queue:
        if queue.config.unique_key != "fingerprint":
            raise ConfigError(
                "APIFY_RQ_UNIQUE_KEY must be 'fingerprint', because a JOBDIR has no other keys"
            )
        skipped = _Skipped()
        jobdir = _jobdir(queue, options.folder, arguments, skipped)
        await queue.create()
        # The pending requests go first. The seen set contains them too, and adding an entry that
        # the queue already has changes nothing. So an import can be interrupted and repeated.
        pending = await _add(queue, "Pending requests", jobdir.pending(), skipped)
        started = [] if options.repeat_start else await jobdir.started()
        starts = await _add(queue, "Start requests", started, skipped)
        seen = await _add(queue, "Seen requests", jobdir.seen(), skipped, in_order=False)
        info = await queue.backend.info()
    starts_text = output.counted(starts, "start request")
    print(
        f"Imported {options.folder} into request queue {info.title!r} in {queue.backend.location}."
        f" Added: {output.counted(pending, 'pending request')}, {starts_text} counted as crawled,"
        f" {seen} seen. The queue now has {info.handled} handled, {info.pending} pending"
    )
    if jobdir.was_killed:
        output.say(_KILLED)
    if skipped.count:
        raise RequestQueueError(
            f"not imported, see above: {output.counted(skipped.count, 'pending request')}, still in"
            f" {options.folder}"
        )


def _jobdir(queue: Queue, folder: Path, arguments: dict[str, str], skipped: _Skipped) -> JobDir:
    crawler = queue.crawler
    crawler.stats = load_object(crawler.settings["STATS_CLASS"])(crawler)
    # Some priority queues look at the downloader. This one is idle.
    engine = SimpleNamespace(downloader=SimpleNamespace(slots={}))
    crawler.engine = cast("ExecutionEngine", engine)
    crawler.spider = spider = crawler.spidercls.from_crawler(crawler, **arguments)
    return JobDir(folder, spider, RequestConverter.from_config(spider, queue.config), skipped)


async def _add(
    queue: Queue,
    what: str,
    entries: Iterable[Entry],
    skipped: _Skipped,
    *,
    in_order: bool = True,
) -> int:
    """Add the entries, and return how many were new."""
    source, added = iter(entries), 0
    add, size = queue.add, queue.batch
    if in_order:
        add, size = queue.backend.add, queue.backend.batch
    with output.progress(what, None) as advance:
        while batch := list(islice(source, size)):
            for entry, answer in zip(batch, await add(batch, forefront=False), strict=True):
                if answer.refused is not None:
                    skipped(entry.url, answer.refused)
                added += not (answer.was_already_present or answer.refused)
            advance(len(batch))
            await asyncio.sleep(0)  # the embedded queue never waits, and Ctrl-C needs a chance
    return added
