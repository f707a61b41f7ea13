"""Which queue a subcommand works on: the options that say so, and the queue, open.

It is the queue of the crawl that the same settings would start: the settings of the project, of the
spider and of its add-ons, and the command line. No crawl is started and no spider is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.exceptions import UsageError
from scrapy.settings import Settings
from scrapy.spiderloader import get_spider_loader
from scrapy.utils.misc import build_from_crawler, load_object

from scrapy_apify_rq.backends import backend_for
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.base import Added, Backend, Updated
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import Keys
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.limits import is_id

T = TypeVar("T")

# Who sits at a terminal will not wait as long as a crawl does, in seconds.
_PATIENCE: Final = 60
# Batches sent at one time: more would be no faster, since the API takes 40 in a second.
_CALLS: Final = 4


def regex(text: str) -> re.Pattern[str]:
    """For argparse."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Which queue")
    group.add_argument(
        "-q",
        "--queue",
        metavar="ID_OR_NAME",
        help="its id, its name or username~name (default: the queue of the spider's crawl)",
    )
    group.add_argument(
        "--spider",
        metavar="NAME",
        help="whose queue, settings and callbacks to use, in a project with several spiders",
    )


class _NoSpider(Spider):
    name = "none"


@dataclass(slots=True)
class Queue:
    """An open queue, and the settings of its crawl."""

    backend: Backend
    config: Config
    crawler: Crawler
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        cls = load_object(self.crawler.settings["REQUEST_FINGERPRINTER_CLASS"])
        self.crawler.request_fingerprinter = build_from_crawler(cls, self.crawler)
        self.keys = Keys(self.crawler, self.config.unique_key)

    @property
    def batch(self) -> int:
        """How many entries ``add`` and ``update`` take."""
        return self.backend.batch * min(self.backend.parallel, _CALLS)

    async def get(self, id: str) -> Entry | None:
        """``Backend.get`` for a text that somebody has typed."""
        return await self.backend.get(id) if id.isalnum() else None

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        """``Backend.add``, with as many calls at a time as the backend allows."""
        parts = _parts(entries, self.backend.batch)
        calls = (self.backend.add(part, forefront=forefront) for part in parts)
        return [answer for answers in await run_all(calls) for answer in answers]

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        """``Backend.update``, likewise."""
        parts = _parts(entries, self.backend.update_batch)
        calls = (self.backend.update(part, forefront=forefront) for part in parts)
        return [answer for answers in await run_all(calls) for answer in answers]

    def converter(self) -> RequestConverter:
        """What reads the entries as the spider's requests; without a spider, with no callbacks."""
        if self.crawler.spidercls is _NoSpider:
            return RequestConverter(_NoSpider(), {}, self.config.trusted_modules)
        # Not initialised: __init__ may need the arguments of a crawl, and only names are looked up.
        spider = self.crawler.spidercls.__new__(self.crawler.spidercls)
        return RequestConverter.from_config(spider, self.config)


def _parts(entries: Sequence[Entry], size: int) -> Iterator[Sequence[Entry]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Like ``asyncio.run``, but Ctrl-C ends it even while it waits for the standard input."""

    async def interruptible() -> T:
        if callable(signal.getsignal(signal.SIGINT)):  # not where the shell has it ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return await coroutine

    return asyncio.run(interruptible())


async def batches(source: AsyncIterator[T], size: int) -> AsyncIterator[list[T]]:
    """Cut into lists of this length, the last one perhaps shorter."""
    batch: list[T] = []
    async for one in source:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@asynccontextmanager
async def opened(
    settings: Settings, options: argparse.Namespace, *, create: bool = False
) -> AsyncIterator[Queue]:
    """The queue that the options mean; where there is none it is made only if ``create``.

    Raises UsageError if they mean none, ConfigError if there is no such queue.
    """
    crawler, spider_name = _crawler(settings, options.spider)
    names: list[str] = []
    async with AsyncExitStack() as stack:
        for config in _configs(crawler, spider_name, options.queue):
            backend = backend_for(config)
            stack.push_async_callback(backend.close)
            if await backend.find():
                break
            names = names or list(await backend.names())
        else:
            if not create or config.queue_name is None:
                raise _missing(config, names)
            await backend.open()
        yield Queue(backend, config, crawler)


def _crawler(settings: Settings, spider_name: str | None) -> tuple[Crawler, str | None]:
    """A crawler that will not crawl, with all settings; and the name of its spider, if known."""
    loader = get_spider_loader(settings)
    spiders = loader.list()
    if spider_name is None and len(spiders) == 1:
        spider_name = spiders[0]
    if spider_name is None:
        spidercls: type[Spider] = _NoSpider
    elif spider_name in spiders:
        spidercls = loader.load(spider_name)
    else:
        known = ", ".join(sorted(spiders)) or "none; is this the folder of the project?"
        raise UsageError(f"there is no spider {spider_name!r} here. Spiders: {known}")
    crawler = Crawler(spidercls, settings)
    crawler.addons.load_settings(crawler.settings)
    return crawler, spider_name


def _configs(crawler: Crawler, spider_name: str | None, queue: str | None) -> Iterator[Config]:
    """What the queue's name may mean, most likely first."""
    for id, name in _readings(queue):
        settings = crawler.settings.copy()
        if queue is not None:
            settings.set("APIFY_RQ_ID", id, "cmdline")
            settings.set("APIFY_RQ_NAME", name, "cmdline")
        config = Config.from_settings(settings, os.environ, spider_name)
        if config.queue_id is None and config.queue_name is None:
            spiders = ", ".join(sorted(get_spider_loader(settings).list()))
            which = f"--spider with one of {spiders}, or " if spiders else ""
            raise UsageError(f"which queue? Add {which}-q with the id or name of a queue")
        yield replace(config, unavailable_timeout=min(config.unavailable_timeout, _PATIENCE))


def _readings(queue: str | None) -> list[tuple[str | None, str | None]]:
    """Pairs of an id and a name, of which one is meant."""
    if queue is None:
        return [(None, None)]
    if "~" in queue:
        return [(queue, None)]
    if is_id(queue):
        return [(queue, None), (None, queue)]
    return [(None, queue)]


def _missing(config: Config, names: list[str]) -> ConfigError:
    where = config.api_base_url if config.backend == "apify" else f"the folder {config.storage_dir}"
    there = f"There are: {', '.join(names)}" if names else "There is none with a name"
    return ConfigError(
        f"there is no request queue {config.queue_id or config.queue_name!r} in {where}. {there}."
        " Choose another with -q, or check APIFY_TOKEN, APIFY_RQ_BACKEND and APIFY_RQ_STORAGE_DIR,"
        " which say where to look"
    )
