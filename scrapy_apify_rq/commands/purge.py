"""``scrapy rq purge``: an empty queue."""

from __future__ import annotations

import argparse
import sys

from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.errors import RequestQueueError

NAME = "purge"
HELP = (
    "Delete all entries of a queue, handled ones included. Stop its crawl first. Over the API, a"
    " queue that is addressed by its name is deleted and made anew, with another id"
)
EXAMPLE = "scrapy rq purge --yes"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError("purge asks first, and there is no terminal to ask at: add --yes")
        print(queues.run(_question(settings, options)), end=" ", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise RequestQueueError("nothing was deleted")
    number = queues.run(_purge(settings, options))
    output.say(f"{number:,} deleted")


async def _question(settings: Settings, options: argparse.Namespace) -> str:
    async with queues.opened(settings, options) as queue:
        info = await queue.backend.info()
        return (
            f"Delete all {info.total:,} entries, {info.pending:,} of them pending, of request queue"
            f" {info.name or info.id} in {queue.backend.location}? [y/N]"
        )


async def _purge(settings: Settings, options: argparse.Namespace) -> int:
    async with queues.opened(settings, options) as queue:
        info = await queue.backend.info()
        await queue.backend.purge()
        return info.total
