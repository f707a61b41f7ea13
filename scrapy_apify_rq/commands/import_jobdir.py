"""``scrapy rq import-jobdir``: a paused crawl of stock Scrapy becomes one of the request queue."""

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
    "Bring the pending requests and the seen set of a crawl that stock Scrapy has paused with"
    " JOBDIR into the queue, so that the next run goes on where it stopped. The JOBDIR is left as"
    " it is. It holds pickles, and reading a pickle runs whatever its writer put there: use only a"
    " JOBDIR that is your own"
)
EXAMPLE = "scrapy rq import-jobdir crawls/somespider-1 somespider"
_WARNING: Final = (
    "{} holds pickles. Reading a pickle runs whatever its writer put there, so this must be a"
    " JOBDIR that you, and nobody else, have written."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the JOBDIR of the paused crawl")
    parser.add_argument("spider", metavar="SPIDER", help="the spider that crawled it")
    parser.add_argument(
        "-q",
        "--queue",
        metavar="ID_OR_NAME",
        help="the queue, made if missing (default: the one that a crawl of this spider would use)",
    )
    parser.add_argument(
        "-a",
        dest="arguments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the spider, as in scrapy crawl",
    )
    parser.add_argument(
        "--repeat-start",
        action="store_true",
        help="crawl the start requests that are not pending again, as Scrapy does when it resumes;"
        " for a crawl that was stopped before its start() came to an end. Without it, start() is"
        " run once now, to see which they are",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask whether DIR is your own")


def run(settings: Settings, options: argparse.Namespace) -> None:
    try:
        arguments = arglist_to_dict(options.arguments)
    except ValueError:
        raise UsageError("-a takes NAME=VALUE") from None
    if not options.yes:
        output.say(_WARNING.format(options.folder))
        output.confirm("Is it your own?", otherwise="nothing was read")
    queues.run(_import(settings, options, arguments))


class _LeftOut:
    """Tells of each pending request that the queue cannot hold."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, url: str, reason: object) -> None:
        self.count += 1
        output.say(f"not imported: {url} cannot be written to the queue: {reason}")


async def _import(
    settings: Settings, options: argparse.Namespace, arguments: dict[str, str]
) -> None:
    async with queues.opened(settings, options, create=True) as queue:
        if queue.config.unique_key != "fingerprint":
            raise ConfigError(
                "APIFY_RQ_UNIQUE_KEY must be 'fingerprint': a JOBDIR holds no other keys"
            )
        left_out = _LeftOut()
        jobdir = _jobdir(queue, options.folder, arguments, left_out)
        # In this order, because the seen set holds the pending requests, too, and an entry that
        # is there already stays as it is. So an import can be interrupted and repeated.
        pending = await _add(queue, "Pending requests", jobdir.pending(), left_out)
        started = [] if options.repeat_start else await jobdir.started()
        starts = await _add(queue, "Start requests", started, left_out)
        seen = await _add(queue, "Seen requests", jobdir.seen(), left_out, in_order=False)
        info = await queue.backend.info()
    print(
        f"{options.folder} is in request queue {info.title!r} in"
        f" {queue.backend.location}. New there: {pending} pending requests, {starts} start"
        f" requests taken as crawled, {seen} seen. The queue holds {info.handled} handled,"
        f" {info.pending} pending"
    )
    if left_out.count:
        raise RequestQueueError(
            f"{left_out.count} pending requests are left out, see above; they are still in"
            f" {options.folder}"
        )


def _jobdir(queue: Queue, folder: Path, arguments: dict[str, str], left_out: _LeftOut) -> JobDir:
    crawler = queue.crawler
    crawler.stats = load_object(crawler.settings["STATS_CLASS"])(crawler)
    # Queues that look at the downloader find an idle one.
    idle = SimpleNamespace(downloader=SimpleNamespace(slots={}))
    crawler.engine = cast("ExecutionEngine", idle)
    crawler.spider = spider = crawler.spidercls.from_crawler(crawler, **arguments)
    return JobDir(folder, spider, RequestConverter.from_config(spider, queue.config), left_out)


async def _add(
    queue: Queue,
    what: str,
    entries: Iterable[Entry],
    left_out: _LeftOut,
    *,
    in_order: bool = True,
) -> int:
    """Add entries; how many were new."""
    source, added = iter(entries), 0
    add, size = queue.add, queue.batch
    if in_order:
        add, size = queue.backend.add, queue.backend.batch
    with output.progress(what, None) as advance:
        while batch := list(islice(source, size)):
            for entry, answer in zip(batch, await add(batch, forefront=False), strict=True):
                if answer.refused is not None:
                    left_out(entry.url, answer.refused)
                added += not (answer.was_already_present or answer.refused)
            advance(len(batch))
            await asyncio.sleep(0)  # the embedded queue never waits; Ctrl-C must get its turn
    return added
