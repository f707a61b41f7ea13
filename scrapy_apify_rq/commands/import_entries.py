"""``scrapy rq import``: add the entries of a file that ``export`` wrote."""

from __future__ import annotations

import argparse
import json

from scrapy.settings import Settings

from scrapy_apify_rq.commands import adding, items_in_files, output, queues
from scrapy_apify_rq.entries.mending import strict_json
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id

NAME = "import"
HELP = (
    "Add the entries and items of a file that export wrote. Handled entries stay handled. What is"
    " already in the queue is not changed, so an import can be repeated. If there is no queue of"
    " this name, it is created"
)
EXAMPLE = "scrapy rq import backup.jsonl -q copy"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("file", metavar="FILE", help="- is the standard input")
    output.add_json_option(parser, "an object with added, alreadyPresent and notAdded")


def run(settings: Settings, options: argparse.Namespace) -> None:
    queues.run(_import(settings, options))


async def _import(settings: Settings, options: argparse.Namespace) -> None:
    with adding.read_lines(options.file) as lines:
        async with queues.opened(settings, options, create=True, exact=True) as queue:
            rest = items_in_files.Rest(lines)
            await adding.add_lines(queue, rest.entries(), _entry, options, forefront=False)
            await rest.add_items(queue)


def _entry(line: bytes) -> Entry:
    stored = json.loads(strict_json(line))
    if not isinstance(stored, dict):
        raise ValueError("not a JSON object")
    entry = Entry.from_fields({"id": "", **stored})
    if entry.broken:
        raise ValueError(entry.broken)
    id = request_id(entry.unique_key)
    if entry.id not in ("", id):
        raise ValueError(f"the id {entry.id!r} does not belong to this uniqueKey; {id!r} does")
    entry.id = id
    return entry
