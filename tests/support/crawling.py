"""Crawls inside the test's own process, on the one asyncio reactor that pytest-twisted runs.

A trivial crawl takes a tenth of a second and its spider is a class beside the test, so failures
have tracebacks and a debugger works. What needs a process of its own (kills, signals, workers,
terminals) is in ``scrapy_project``; a crash is tried here by resuming from ``Queue.copy()``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler

from tests.support.queues import Queue
from tests.support.quick_settings import QuickSettings
from tests.support.waiting import PATIENCE, wait_until

_PACKAGE = "scrapy_apify_rq"
_SETTINGS = {
    "ADDONS": {f"{_PACKAGE}.Addon": 500},
    "APIFY_RQ_RETRY_DELAY": 0,
    "CONCURRENT_ITEMS": 8,  # for each page, Scrapy makes as many tasks, 100 by default
    "LOG_LEVEL": "DEBUG",
    "REMOTE_CONTROL_ENABLED": False,
    "ROBOTSTXT_OBEY": False,
    "TELNETCONSOLE_ENABLED": False,
    "WARN_ON_GENERATOR_RETURN_VALUE": False,  # for each page, Scrapy parses the callback's source
}


class _Log(logging.Handler):
    """Keeps all that is logged in this process while it is installed."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Crawl:
    """A crawl that runs, and what it has left behind when it has ended.

    ``fetched`` are the requests that reached the downloader, in order; ``items`` what was scraped.
    Of crawls that run at the same time, each has the log of all.
    """

    def __init__(
        self,
        spider: type[Spider],
        settings: Mapping[str, Any],
        arguments: Mapping[str, Any],
        has_company: Callable[[], bool],
    ) -> None:
        self.items: list[Any] = []
        self.fetched: list[Request] = []
        self.finished_at = 0.0
        """By the clock of the event loop, when the crawl's last step was done."""
        self.tasks_left: list[asyncio.Task[Any]] = []
        """Our tasks that were still there when the crawl had ended: there must be none. Of crawls
        that run at the same time, the last one to end has those of all."""
        self._has_company = has_company
        self._tasks_before = asyncio.all_tasks()
        self._log = _Log()
        self._root_level = logging.root.level
        logging.root.addHandler(self._log)
        logging.root.setLevel(logging.DEBUG)
        self.crawler = Crawler(spider, QuickSettings(dict(settings)))
        self.is_open = False
        self.crawler.signals.connect(self._opened, signals.spider_opened)
        self.crawler.signals.connect(self._scraped, signals.item_scraped)
        self.crawler.signals.connect(self._reached, signals.request_reached_downloader)
        # A runner would make a spider loader as well, which nobody asks here.
        self.task = asyncio.ensure_future(self.crawler.crawl_async(**arguments))
        self.task.add_done_callback(self._ended)

    def _opened(self) -> None:
        self.is_open = True

    def _scraped(self, item: Any) -> None:
        self.items.append(item)

    def _reached(self, request: Request) -> None:
        self.fetched.append(request)

    def _ended(self, _: asyncio.Future[Any]) -> None:
        self.finished_at = asyncio.get_running_loop().time()
        logging.root.removeHandler(self._log)
        logging.root.setLevel(self._root_level)
        if not self._has_company():
            self.tasks_left = [task for task in asyncio.all_tasks() if _is_ours(task)]

    async def end(self, patience: float = PATIENCE) -> Crawl:
        """Wait for the end. Raises what the crawl raised, or AssertionError if it hangs."""
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(self.task)
        except TimeoutError:
            raise AssertionError(f"no end after {patience} s: {self.log_text[-2000:]}") from None
        return self

    async def abandon(self) -> None:
        """End all that is left of a crawl that did not end by itself."""
        await asyncio.sleep(0)  # a coroutine that is cancelled before it starts is a warning
        if self.task.done():
            tasks = self.tasks_left
        else:
            tasks = list(asyncio.all_tasks() - self._tasks_before - {asyncio.current_task()})
            self._ended(self.task)
        for task in (*tasks, self.task):
            task.cancel()
        await asyncio.wait([*tasks, self.task], timeout=1)

    @property
    def spider(self) -> Any:
        return self.crawler.spider

    @property
    def stats(self) -> dict[str, Any]:
        assert self.crawler.stats is not None
        return self.crawler.stats.get_stats()

    @property
    def reason(self) -> str | None:
        """Why the spider was closed."""
        return self.stats.get("finish_reason")

    @property
    def log(self) -> list[logging.LogRecord]:
        return self._log.records

    @property
    def log_text(self) -> str:
        lines = (f"{record.levelname}: {record.getMessage()}" for record in self.log)
        return "\n".join(lines)

    @property
    def closing_line(self) -> str:
        """What our scheduler says last of all; empty if it says nothing once the spider is closed.

        Scrapy's last word is "Spider closed", and ours follows it. The server of the test, which
        has calls of other crawls as well, does not count.
        """
        ours = ""
        for record in self.log:
            if record.name.startswith(f"{_PACKAGE}.server"):
                pass  # another crawl may still call it
            elif record.name.startswith(_PACKAGE):
                ours = record.getMessage()
            elif record.getMessage().startswith("Spider closed"):
                ours = ""
        return ours

    @property
    def paths(self) -> list[str]:
        """Of the pages fetched, in order; queries included."""
        parts = (urlsplit(request.url) for request in self.fetched)
        return [part.path + (f"?{part.query}" if part.query else "") for part in parts]


def _is_ours(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and f"/{_PACKAGE}/" in code.co_filename


class Crawls:
    """Starts crawls of a queue and waits for them.

    Keyword arguments are the spider's. A crawl over ``queue=None`` has Scrapy's own scheduler.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._all: list[Crawl] = []
        self._root_level = logging.root.level

    def begin(
        self,
        spider: type[Spider],
        settings: Mapping[str, Any] | None = None,
        *,
        queue: Queue | None = None,
        **arguments: Any,
    ) -> Crawl:
        """Crawl; nothing has happened yet when this returns."""
        where = (queue or self._queue).settings
        merged = {**_SETTINGS, **where, **(settings or {})}
        crawl = Crawl(spider, merged, arguments, lambda: self._is_another_running(crawl))
        self._all.append(crawl)
        return crawl

    async def start(
        self,
        spider: type[Spider],
        settings: Mapping[str, Any] | None = None,
        *,
        queue: Queue | None = None,
        **arguments: Any,
    ) -> Crawl:
        """Crawl; the spider is open when this returns."""
        crawl = self.begin(spider, settings, queue=queue, **arguments)
        await wait_until(lambda: crawl.is_open or crawl.task.done(), "the spider's opening")
        if crawl.task.done():
            await crawl.task  # it raises why there is no spider
        return crawl

    async def run(
        self,
        spider: type[Spider],
        settings: Mapping[str, Any] | None = None,
        *,
        queue: Queue | None = None,
        patience: float = PATIENCE,
        **arguments: Any,
    ) -> Crawl:
        """Crawl to the end."""
        crawl = await self.start(spider, settings, queue=queue, **arguments)
        return await crawl.end(patience)

    def _is_another_running(self, crawl: Crawl) -> bool:
        return any(other is not crawl and not other.task.done() for other in self._all)

    async def close(self) -> None:
        """End what a failed test has left, and hold all crawls to this: no task outlives them."""
        left = [task for crawl in self._all for task in crawl.tasks_left]
        for crawl in self._all:
            await crawl.abandon()
        # Of crawls that run at the same time, each gives back what it has found.
        logging.root.setLevel(self._root_level)
        assert not left
