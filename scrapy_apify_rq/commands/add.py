"""``scrapy rq add``: new entries."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.commands import adding, output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.limits import METHODS

NAME = "add"
HELP = (
    "Add requests that are not in the queue yet, with the keys that the spider gives to links. It"
    " makes a queue of this name where there is none"
)
EXAMPLE = "scrapy rq add https://example.com/product/1 https://example.com/product/2"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("urls", metavar="URL", nargs="*")
    parser.add_argument(
        "--file",
        help='a URL in each line, or a JSON object with "url" and any of "method", "headers",'
        ' "payload" and "userData", whose "label" chooses the callback, see APIFY_RQ_CALLBACKS;'
        " - is the standard input",
    )
    parser.add_argument("--forefront", action="store_true", help="in front of all that is there")
    output.add_json_option(parser, "an object with added, alreadyPresent and notAdded")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if bool(options.urls) == bool(options.file):
        raise UsageError("what? Add either URLs or --file")
    queues.run(_add(settings, options))


async def _add(settings: Settings, options: argparse.Namespace) -> None:
    async with queues.opened(settings, options, create=True) as queue:
        parse = partial(_entry, queue, queue.converter())
        if options.urls:
            given = ((url, url.encode()) for url in options.urls)
            await adding.add(queue, given, parse, options, forefront=options.forefront)
        else:
            with adding.lines(options.file) as lines:
                await adding.add(queue, lines, parse, options, forefront=options.forefront)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    url: str
    method: str = "GET"
    headers: dict[str, str] = Field(default_factory=dict)
    payload: str | dict[str, Any] | None = None
    user_data: dict[str, Any] = Field(default_factory=dict, alias="userData")


def _entry(queue: Queue, converter: RequestConverter, line: bytes) -> Entry:
    text = line.decode("utf-8-sig")
    given = _Line.model_validate_json(text) if text.startswith("{") else _Line(url=text)
    if given.method not in METHODS:
        raise CodecError(f"method {given.method!r}: a queue knows {', '.join(sorted(METHODS))}")
    # Headers and noRetry are written even where there are none, see RequestConverter.encode().
    entry = Entry(id="", unique_key="", no_retry=False, **given.model_dump())
    request = converter.decode(entry)  # as the crawl will read it
    entry.url = request.url
    entry.unique_key = queue.keys.plain(request)
    entry.id = request_id(entry.unique_key)
    return entry
