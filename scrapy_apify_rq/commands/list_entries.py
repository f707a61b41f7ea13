"""``scrapy rq list``: list entries, one per line."""

from __future__ import annotations

import argparse
from contextlib import aclosing
from typing import Final, get_args

from scrapy.settings import Settings

from scrapy_apify_rq.backends.base import State
from scrapy_apify_rq.commands import option_values, output, queues
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import RequestQueueError

NAME = "list"
HELP = "List all entries, or those that the options select, in no particular order"
EXAMPLE = "scrapy rq list --state failed --match /product/ --limit 20"
_ROW: Final = "{:<15}  {:<7}  {:>7}  {:<7}  {}"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument(
        "--state",
        choices=get_args(State),
        help="list only entries in this state; failed entries are also handled, and locked entries"
        " are also pending",
    )
    parser.add_argument(
        "--match",
        metavar="REGEX",
        type=option_values.regex,
        help="list only entries whose URL matches",
    )
    parser.add_argument(
        "--limit", metavar="N", type=option_values.positive, help="stop after N entries"
    )
    output.add_json_option(parser, "one entry per line, as the API returns it")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if not queues.run(_list(settings, options)):
        raise RequestQueueError("no entry matches")


async def _list(settings: Settings, options: argparse.Namespace) -> int:
    found = 0
    async with queues.opened(settings, options, purpose="read") as queue:
        stored = queue.backend.list(options.state)
        quiet = output.is_on_screen()
        async with aclosing(output.with_progress(stored, "reading", None, quiet=quiet)) as entries:
            async for entry in entries:
                if options.match is None or options.match.search(entry.url):
                    _print(entry, options, first=not found)
                    found += 1
                    if found == options.limit:
                        break
    return found


def _print(entry: Entry, options: argparse.Namespace, *, first: bool) -> None:
    if options.json:
        print(entry.to_json())
        return
    if first:
        print(_ROW.format("ID", "STATE", "RETRIES", "METHOD", "URL"))
    state = "locked" if options.state == "locked" else entry.state
    row = _ROW.format(entry.id, state, entry.retry_count, entry.method, entry.url)
    row = output.printable(row)
    print(output.marked(row) if state == "failed" else row)
