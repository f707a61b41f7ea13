"""``scrapy rq purge``: empty a queue."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import Final

from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue

NAME = "purge"
HELP = (
    "Delete all entries of a queue, including the handled ones, its saved items and its state. Stop"
    " its crawl first. Over the API, a queue that you address by name is deleted and created again,"
    " and gets a new id. The dataset that its crawl has made for its items is deleted, too; in any"
    " other they stay, and are no longer the queue's"
)
EXAMPLE = "scrapy rq purge --yes"
_RECENT: Final = timedelta(minutes=2)


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if not options.yes:
        for question in queues.run(_questions(settings, options)):
            output.confirm(question, if_refused="nothing was deleted")
    count, items = queues.run(_purge(settings, options))
    and_items = f", and {output.counted(items, 'saved item')}" if items else ""
    output.say(f"{count:,} deleted{and_items}")


async def _questions(settings: Settings, options: argparse.Namespace) -> list[str]:
    async with queues.opened(settings, options, purpose="read") as queue:
        info = await queue.backend.info()
        items = await _items(queue)
        and_items = f" and {output.counted(items, 'saved item')}" if items else ""
        questions = [
            f"Delete {output.counted(info.total, 'entry', 'entries')}, {info.pending:,} of them"
            f" pending,{and_items} of request queue"
            f" {info.title} in {queue.backend.location}?"
        ]
        # An embedded queue is refused while it is crawled; over the API nothing shows that.
        age = datetime.now(UTC) - (info.modified_at or datetime.min.replace(tzinfo=UTC))
        if queue.config.backend == "apify" and age < _RECENT:
            questions.append(
                f"It changed {max(age.total_seconds(), 0):.0f} s ago, so a crawl may be using it,"
                " which would fail. Delete all the same?"
            )
        return questions


async def _items(queue: Queue) -> int:
    return 0 if queue.backend.items is None else await queue.backend.items.count()


async def _purge(settings: Settings, options: argparse.Namespace) -> tuple[int, int]:
    async with queues.opened(settings, options) as queue:
        await queue.backend.occupy(alone=True)  # so that no crawl has it or starts meanwhile
        info = await queue.backend.info()
        items = await _items(queue)
        await queue.backend.purge()
        return info.total, items
