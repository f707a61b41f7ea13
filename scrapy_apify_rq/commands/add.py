"""``scrapy rq add``: add new entries."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from scrapy.exceptions import UsageError
from scrapy.settings import Settings

from scrapy_apify_rq.commands import adding, output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.mending import header_texts, strict_json
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.limits import METHODS

NAME = "add"
HELP = (
    "Add requests that are not in the queue yet. If the spider finds a link to the same page, it is"
    " still crawled once. If there is no queue of this name, it is created"
)
EXAMPLE = "scrapy rq add https://example.com/product/1 https://example.com/product/2"


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument("urls", metavar="URL", nargs="*", help="fetch it with GET")
    parser.add_argument(
        "--file",
        help='read this file; each line is a URL, or a JSON object with "url" and any of "method",'
        ' "headers", "payload" and "userData" (its "label" selects the callback, see'
        " APIFY_RQ_CALLBACKS); lines that begin with # are skipped; - is the standard input",
    )
    parser.add_argument(
        "--forefront", action="store_true", help="put them in front of everything in the queue"
    )
    output.add_json_option(parser, "an object with added, alreadyPresent and notAdded")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if bool(options.urls) == bool(options.file):
        raise UsageError("give either URLs or --file")
    queues.run(_add(settings, options))


async def _add(settings: Settings, options: argparse.Namespace) -> None:
    async with queues.opened(settings, options, create=True) as queue:
        parse = partial(entry_of, queue, queue.converter())
        if options.urls:
            urls = ((url, url.encode(errors="surrogateescape")) for url in options.urls)
            await adding.add_lines(queue, urls, parse, options, forefront=options.forefront)
        else:
            with adding.read_lines(options.file) as lines:
                await adding.add_lines(queue, lines, parse, options, forefront=options.forefront)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    url: str
    method: str = "GET"
    headers: Annotated[dict[str, str], BeforeValidator(header_texts)] = Field(default_factory=dict)
    payload: str | dict[str, Any] | None = None
    user_data: dict[str, Any] = Field(default_factory=dict, alias="userData")


def entry_of(queue: Queue, converter: RequestConverter, line: bytes) -> Entry:
    text = line.decode("utf-8-sig")
    is_object = text.startswith("{")
    fields = _Line.model_validate_json(strict_json(text)) if is_object else _Line(url=text)
    fields.method = fields.method.upper()  # as Scrapy does it
    if fields.method not in METHODS:
        raise CodecError(
            f"unknown method {fields.method!r}; use one of {', '.join(sorted(METHODS))}"
        )
    # Headers and noRetry are always written, even if empty: see RequestConverter.encode().
    entry = Entry(id="", unique_key="", no_retry=False, **fields.model_dump())
    request = converter.decode(entry)  # the key must fit the request that the crawl will read
    entry.url = request.url
    entry.unique_key = queue.keys.plain(request)
    entry.id = request_id(entry.unique_key)
    return entry
