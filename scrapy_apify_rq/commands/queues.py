"""Find and open the queue that a subcommand works on.

Without -q it is the queue that a crawl with the same settings would use: those of the project, of
the spider, of its add-ons and of the command line. If the settings name none, the queue of the
spider: with the arguments of -a, or else the only one that the spider has. No crawl is started and
no spider is created.
"""

from __future__ import annotations

import argparse
import asyncio
import os
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
from scrapy.utils.conf import arglist_to_dict
from scrapy.utils.misc import build_from_crawler, load_object

from scrapy_apify_rq.backends import backend_for
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.base import Added, Backend, Known, Purpose, Updated
from scrapy_apify_rq.commands import output
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.entries.arguments import arguments_of
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import Keys
from scrapy_apify_rq.errors import ConfigError
from scrapy_apify_rq.identity import NO_ARGUMENTS, Arguments, default_name, may_belong_to
from scrapy_apify_rq.limits import is_id

T = TypeVar("T")

# Seconds. Nobody at a terminal wants to wait for an unreachable queue as long as a crawl does.
_MAX_UNAVAILABLE_TIMEOUT: Final = 15
# Names of queues in a message.
_MOST_NAMES: Final = 50
# Batches sent at once. More would not be faster, because the API takes 40 per second.
_MAX_PARALLEL: Final = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Which queue")
    group.add_argument(
        "-q",
        "--queue",
        metavar="ID_OR_NAME",
        help="the queue's id, name, or username~name (default: the queue that a crawl of the"
        " spider would use)",
    )
    add_spider_option(group)
    group.add_argument(
        "-a",
        dest="arguments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the crawl whose queue to use, as in scrapy crawl; needed if the spider"
        " has queues for several arguments",
    )


def add_spider_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--spider",
        metavar="NAME",
        help="the spider whose queue, settings and callbacks to use; needed if the project has"
        " several spiders",
    )


class _NoSpider(Spider):
    name = "none"


@dataclass(slots=True)
class Queue:
    """An open queue, with the settings of the crawl that it belongs to."""

    backend: Backend
    config: Config
    crawler: Crawler
    spider_name: str
    """The name under which the project's spider loader knows the spider."""
    exists: bool = True
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        cls = load_object(self.crawler.settings["REQUEST_FINGERPRINTER_CLASS"])
        self.crawler.request_fingerprinter = build_from_crawler(cls, self.crawler)
        self.keys = Keys(self.crawler, self.config.unique_key)

    @property
    def has_spider(self) -> bool:
        return self.crawler.spidercls is not _NoSpider

    async def create(self) -> None:
        """Create the queue if it does not exist."""
        if not self.exists:
            await self.backend.open()
            self.exists = True

    @property
    def batch(self) -> int:
        """The number of entries to pass to ``add`` and ``update`` at once."""
        return self.backend.batch * min(self.backend.parallel, _MAX_PARALLEL)

    async def get(self, id: str) -> Entry | None:
        """Get an entry by an id that somebody typed, which may be any text."""
        return await self.backend.get(id) if id.isalnum() else None

    async def add(self, entries: Sequence[Entry], *, forefront: bool) -> list[Added]:
        """Add entries in several calls at once, in no particular order."""
        parts = _parts(entries, self.backend.batch)
        calls = (self.backend.add(part, forefront=forefront) for part in parts)
        return [answer for answers in await run_all(calls) for answer in answers]

    async def update(self, entries: Sequence[Entry], *, forefront: bool) -> list[Updated]:
        """Update entries in several calls at once, in no particular order."""
        parts = _parts(entries, self.backend.update_batch)
        calls = (self.backend.update(part, forefront=forefront) for part in parts)
        return [answer for answers in await run_all(calls) for answer in answers]

    def converter(self) -> RequestConverter:
        """Make a converter for the spider's requests. Without a spider it knows no callbacks."""
        if not self.has_spider:
            trusted = (*self.config.trusted_modules, *self.config.project_packages)
            return RequestConverter(_NoSpider(), {}, trusted, self.config.plugin_packages)
        # Without __init__, which may need the arguments of a crawl. The converter only looks up the
        # names of methods and, for its messages, the spider's name.
        spider = self.crawler.spidercls.__new__(self.crawler.spidercls)
        if not getattr(spider, "name", None):
            spider.name = self.spider_name  # the class has none if __init__ sets it
        return RequestConverter.from_config(spider, self.config)


def _parts(entries: Sequence[Entry], size: int) -> Iterator[Sequence[Entry]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine such that Ctrl-C ends it even while it reads from the standard input."""

    async def interruptible() -> T:
        # Not callable if the shell made us ignore SIGINT, as it does for background jobs.
        if callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return await coroutine

    return asyncio.run(interruptible())


async def batches(source: AsyncIterator[T], size: int) -> AsyncIterator[list[T]]:
    """Group the elements into lists of this size. The last list may be shorter."""
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
    settings: Settings,
    options: argparse.Namespace,
    *,
    purpose: Purpose = "store",
    create: bool = False,
    exact: bool = False,
) -> AsyncIterator[Queue]:
    """Open the queue that the options name. If ``create``, it need not exist, and the block calls
    ``Queue.create`` as soon as it has something to store: a failed import leaves no empty queue.

    If ``exact``, a spider without -a has no arguments; otherwise they are not known.

    Raises UsageError if the options name no queue, ConfigError if the queue does not exist.
    """
    crawler, spider_name = _crawler(settings, options.spider)
    arguments = _arguments(options.arguments)
    known: Sequence[Known] = ()
    exists = True
    async with AsyncExitStack() as stack:
        for config in _candidates(crawler, spider_name, arguments, options.queue):
            backend = backend_for(config, purpose=purpose)
            stack.push_async_callback(backend.close)
            is_found = await backend.find()
            if exact or options.arguments or not config.queue_is_of_spider:
                if is_found:
                    break
                known = known or await backend.queues()
                continue
            # The spider may have queues for arguments that nobody has told us.
            known = await backend.queues()
            if (name := _only_one(known, config, crawler, backend.location)) is not None:
                config = replace(config, queue_name=name)
                backend = backend_for(config, purpose=purpose)
                stack.push_async_callback(backend.close)
                if await backend.find():
                    break
        else:
            if not create or config.queue_name is None:
                raise _missing(config, known)
            exists = False
        yield Queue(backend, config, crawler, spider_name or _NoSpider.name, exists)


async def existing(settings: Settings, options: argparse.Namespace) -> tuple[Sequence[Known], str]:
    """Return the queues that have names, and where they are, for people."""
    crawler, spider_name = _crawler(settings, options.spider)
    config = Config.from_settings(crawler.settings, os.environ, spider_name, NO_ARGUMENTS)
    # A backend is one queue. Which one does not matter here, and it is not created.
    config = _impatient(replace(config, queue_id=None, queue_name=config.queue_name or "none"))
    backend = backend_for(config, purpose="read")
    try:
        await backend.find()
        where = config.api_base_url if config.backend == "apify" else config.storage_dir
        return await backend.queues(), str(where)
    finally:
        await backend.close()


def unopened(settings: Settings, options: argparse.Namespace) -> Queue:
    """The queue that the options may mean first, for what can be known without opening it."""
    crawler, spider_name = _crawler(settings, options.spider)
    arguments = _arguments(options.arguments)
    config = next(_candidates(crawler, spider_name, arguments, options.queue))
    backend = backend_for(config, purpose="read")
    return Queue(backend, config, crawler, spider_name or _NoSpider.name)


def _arguments(given: list[str]) -> Arguments:
    try:
        return arguments_of((), arglist_to_dict(given))
    except ValueError:
        raise UsageError("-a takes NAME=VALUE") from None


def _only_one(
    known: Sequence[Known], config: Config, crawler: Crawler, location: str
) -> str | None:
    """Return the name of the spider's only queue, None if it has none. UsageError for several."""
    spider = config.spider_name or ""
    bot = crawler.settings.get("BOT_NAME", "")
    plain = default_name(bot, spider)
    own = {
        queue.name: queue
        for queue in known
        if may_belong_to(queue.name, bot, spider)
        # Names that a queue cannot have look alike if only some characters differ.
        and (queue.name == plain or not queue.about or queue.about.startswith(f"{spider}: "))
    }
    if len(own) < 2:
        return next(iter(own), None)
    lines = "\n".join(f"  {_described(queue, plain, spider)}" for queue in own.values())
    raise UsageError(
        f"spider {spider!r} has several queues in {location}. Choose one with -q and its name, or"
        f" with -a and the arguments of its crawl, each as NAME=VALUE:\n{lines}"
    )


def _described(queue: Known, plain: str, spider: str) -> str:
    about = "unknown arguments"
    if queue.name == plain:
        about = "no arguments"
    elif queue.about:
        about = queue.about.removeprefix(f"{spider}: ")
    text = f"{queue.name}  {about}  ({queue.pending} of {queue.total} pending)"
    return output.printable(text)


def _crawler(settings: Settings, spider_name: str | None) -> tuple[Crawler, str | None]:
    """Make a crawler that has all settings and never crawls; return its spider's name, if known."""
    loader = get_spider_loader(settings)
    spiders = loader.list()
    if spider_name is None and len(spiders) == 1:
        spider_name = spiders[0]
    if spider_name is None:
        spidercls: type[Spider] = _NoSpider
    else:
        spidercls = loader.load(checked_spider(settings, spider_name))
    crawler = Crawler(spidercls, settings)
    crawler.addons.load_settings(crawler.settings)
    return crawler, spider_name


def checked_spider(settings: Settings, name: str | None) -> str:
    """Return the name, or that of the project's only spider. UsageError if there is none such."""
    spiders = sorted(get_spider_loader(settings).list())
    known = ", ".join(spiders) or "none; run this in the folder of the project"
    if name is None:
        if len(spiders) != 1:
            raise UsageError(f"which spider? Add --spider with its name. Spiders: {known}")
        return spiders[0]
    if name not in spiders:
        raise UsageError(f"there is no spider {name!r} here. Spiders: {known}")
    return name


def _candidates(
    crawler: Crawler, spider_name: str | None, arguments: Arguments, queue: str | None
) -> Iterator[Config]:
    """The queues that -q may name, the most likely one first."""
    for id, name in _ids_and_names(queue):
        settings = crawler.settings.copy()
        if queue is not None:
            settings.set("APIFY_RQ_ID", id, "cmdline")
            settings.set("APIFY_RQ_NAME", name, "cmdline")
        config = Config.from_settings(settings, os.environ, spider_name, arguments)
        if config.queue_id is None and config.queue_name is None:
            spiders = ", ".join(sorted(get_spider_loader(settings).list()))
            which = f"--spider with one of {spiders}, or " if spiders else ""
            raise UsageError(f"which queue? Add {which}-q with the id or name of a queue")
        yield _impatient(config)


def _impatient(config: Config) -> Config:
    timeout = min(config.unavailable_timeout, _MAX_UNAVAILABLE_TIMEOUT)
    return replace(config, unavailable_timeout=timeout)


def _ids_and_names(queue: str | None) -> list[tuple[str | None, str | None]]:
    """What -q may mean: an id, a name, or first the one and then the other."""
    if queue is None:
        return [(None, None)]
    if not queue.strip():  # a variable of a shell that is not set: it must not mean another queue
        raise UsageError("-q is empty: give the id or name of a queue, or leave -q out")
    if "~" in queue:
        return [(queue, None)]
    if is_id(queue):
        return [(queue, None), (None, queue)]
    return [(None, queue)]


def _missing(config: Config, known: Sequence[Known]) -> ConfigError:
    where = config.api_base_url if config.backend == "apify" else f"the folder {config.storage_dir}"
    names = ", ".join(queue.name for queue in known[:_MOST_NAMES])
    existing = f"These exist: {names}" if names else "No named queue exists there"
    return ConfigError(
        f"there is no request queue {config.queue_id or config.queue_name!r} in {where}."
        f" {existing}. Choose another one with -q, or check where APIFY_TOKEN, APIFY_RQ_BACKEND and"
        " APIFY_RQ_STORAGE_DIR make this command look"
    )
