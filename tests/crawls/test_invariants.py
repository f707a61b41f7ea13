"""What the core promises of crawls; the numbers are those in the docstring of ``frontier``.

Where an interleaving is the subject, the test is in ``tests/unit``.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import pytest
from scrapy import Request, signals
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from scrapy_apify_rq import Scheduler
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, SqliteBackend
from tests.support.comparing import STOCK
from tests.support.crawling import Crawls
from tests.support.frontier_driver import make_entry
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Page, Site, links

# Seconds in which something would happen too early, if it did.
A_WHILE = 0.1
MOVED = Page(status=302, headers={"Location": "/target"})


class Waits(Links):
    """Has events for the test."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.begun, self.go, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()


# 1. The three synchronous methods touch memory only.

METHODS = ("enqueue_request", "next_request", "has_pending_requests")
MODULES = ("_posixsubprocess", "_socket", "_sqlite3", "socket", "sqlite3", "subprocess")
OBJECTS = (sqlite3.Connection, sqlite3.Cursor, socket.socket)
FUNCTIONS = (open, os.open, time.sleep)


class Tracer:
    """Wraps the methods, and notes what they call that is not memory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.violations: set[str] = set()
        for name in METHODS:
            patch.setattr(Scheduler, name, self._wrap(name, getattr(Scheduler, name)))

    def _wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def profile(frame: Any, event: str, function: Any) -> None:
            what = ""
            if event == "call" and frame.f_globals.get("__name__") in MODULES:
                what = frame.f_code.co_qualname
            elif event == "c_call" and (
                function in FUNCTIONS
                or getattr(function, "__module__", None) in MODULES
                or isinstance(getattr(function, "__self__", None), OBJECTS)
            ):
                what = function.__qualname__
            if what:
                self.violations.add(f"{name}: {what}")

        def traced(*args: Any) -> Any:
            self.calls[name] += 1
            sys.setprofile(profile)
            try:
                return method(*args)
            finally:
                sys.setprofile(None)

        return traced


class Everything(SiteSpider):
    def parse(self, response: Response) -> Any:
        for path in ("/a", "/a", "/again", "/moved", "/500"):
            yield response.follow(path, callback=self.note)
        yield response.follow("/a", callback=self.note, dont_filter=True, priority=1)
        yield response.follow("/memory", callback=lambda response: None)


GOOD = '{"id": "x", "uniqueKey": "x", "url": "http://localhost/"'
UNDECODABLE = (
    '{"id": "x", "url": 5}',
    '{"id": "x", "uniqueKey": "x", "url": "no url"}',
    f'{GOOD}, "userData": {{"scrapy": {{"v": 1, "callback": "closed"}}}}}}',
    f'{GOOD}, "userData": {{"scrapy": {{"v": 9}}}}}}',
)
MISSING = f'{GOOD}, "userData": {{"scrapy": {{"v": 1, "callback": "missing"}}}}}}'


async def crawl_everything(site: Site, queue: Queue, crawls: Crawls) -> None:
    *entries, left = [make_entry(f"/undecodable{n}") for n in range(len(UNDECODABLE) + 1)]
    await queue.add(*entries, left)
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db, db:
        for entry, text in zip([*entries, left], [*UNDECODABLE, MISSING], strict=True):
            db.execute("UPDATE requests SET json = ? WHERE id = ?", (text, entry.id))
    site.serve(dict.fromkeys(("/", "/a", "/target", "/memory"), "page"))
    site.serve({"/again": [503, "page"], "/moved": MOVED, "/500": 500})
    crawl = await crawls.run(Everything, site=site.url)
    assert crawl.stats["apify_rq/retried"] == 3
    assert crawl.stats["apify_rq/undecodable"] == len(UNDECODABLE)
    assert crawl.stats["dupefilter/filtered"] == 1
    assert crawl.stats["scheduler/unserializable"] == 1
    assert crawl.stats["apify_rq/missing"] == (await queue.info()).pending == 1
    stored = {entry.id: entry for entry in await queue.entries()}
    assert stored[left.id].error_messages == []
    for entry in entries:
        assert crawl.log_text.count(f"Entry {entry.id} ") == 1
        assert "cannot be decoded" in stored[entry.id].error_messages[-1]


async def test_1_memory_only_and_8_undecodable_entries(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(monkeypatch)
    await crawl_everything(site, queue, crawls)
    assert tracer.violations == set()
    assert min(tracer.calls[name] for name in METHODS) >= 3


async def test_1_the_tracer_sees_violations(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def query(scheduler: Any) -> None:
        scheduler._life._backend._database.connection.execute("SELECT 1").fetchone()

    def connect(scheduler: Any) -> None:
        socket.socket().close()

    def read(scheduler: Any) -> None:
        time.sleep(0)
        open(__file__).close()  # noqa: PTH123 (as simple as can be)

    for name, wrong in zip(METHODS, (query, connect, read), strict=True):
        whole = getattr(Scheduler, name)

        def method(self: Any, *args: Any, wrong: Any = wrong, whole: Any = whole) -> Any:
            wrong(self)
            return whole(self, *args)

        monkeypatch.setattr(Scheduler, name, method)
    tracer = Tracer(monkeypatch)
    await crawl_everything(site, queue, crawls)
    assert {
        "enqueue_request: Connection.execute",
        "enqueue_request: Cursor.fetchone",
        "next_request: socket.__init__",
        "has_pending_requests: sleep",
        "has_pending_requests: open",
    } <= tracer.violations


# 2. Adds before acks.


@pytest.mark.parametrize(("method", "nth"), [("add", 3), ("update", 1), ("update", 4)])
async def test_2_killed_between_adds_and_acks_nothing_is_lost(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch, method: str, nth: int
) -> None:
    calls = 0
    copies: list[Queue] = []
    whole = getattr(SqliteBackend, method)

    async def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            copies.append(queue.copy())
        return await whole(*args, **options)

    paths = [f"/{n}" for n in range(30)]
    site.serve({"/": links(*paths), **dict.fromkeys(paths, "page")})
    monkeypatch.setattr(SqliteBackend, method, dying)
    await crawls.run(Links, site=site.url)
    (copy,) = copies
    entries = await copy.entries()
    handled = {entry.url.removeprefix(site.url) for entry in entries if entry.is_handled}
    resumed = await crawls.run(Links, queue=copy, site=site.url)
    assert {*handled, *resumed.paths} == {"/", *paths}
    assert len(resumed.paths) == 31 - len(handled)
    info = await copy.info()
    assert (info.total, info.pending) == (31, 0)


# 3. Acked once Scrapy has finished with it.


class HoldsA:
    """An item pipeline that keeps the item of /a until it may go on."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def process_item(self, item: Any) -> Any:
        if item["path"] == "/a":
            self.begun.set()
            await self.go.wait()
        return item


async def test_3_acked_only_when_the_pipelines_are_done(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": links("/a"), "/a": "page"})
    settings = {"ITEM_PIPELINES": {HoldsA: 1}}
    crawl = await crawls.start(Links, settings, site=site.url)
    pipeline: Any = crawl.crawler.get_item_pipeline(HoldsA)
    await pipeline.begun.wait()
    await wait_until(lambda: crawl.stats.get("apify_rq/handled") == 1)
    await asyncio.sleep(A_WHILE)
    copy = queue.copy()
    pipeline.go.set()
    await crawl.end()
    assert [(await copy.entry(path)).is_handled for path in ("/", "/a")] == [True, False]
    resumed = await crawls.start(Links, settings, queue=copy, site=site.url)
    pipeline = resumed.crawler.get_item_pipeline(HoldsA)
    pipeline.go.set()
    await resumed.end()
    assert resumed.paths == ["/a"]
    assert resumed.items == [{"path": "/a"}]
    assert (await copy.entry("/a")).is_handled


# 5. No entry twice at the same time.


class AsksAgain(Waits):
    running = most_running = 0

    async def parse(self, response: Response) -> AsyncIterator[Any]:  # type: ignore[override]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if not response.meta.get("retry_times"):
            assert response.request is not None
            yield get_retry_request(response.request, spider=self, reason="once more")
            self.crawler.engine._slot.nextcall.schedule()  # type: ignore[union-attr]
            self.begun.set()
            await self.go.wait()
        self.running -= 1


async def test_5_a_retry_waits_for_the_callback_that_asked_for_it(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": "page"})
    crawl = await crawls.start(AsksAgain, site=site.url)
    await crawl.spider.begun.wait()
    await asyncio.sleep(A_WHILE)
    assert site.paths == ["/"]
    crawl.spider.go.set()
    await crawl.end()
    assert site.paths == ["/", "/"]
    assert crawl.spider.most_running == 1
    assert (await queue.entry("/")).retry_count == 1


class StartsLate(Waits):
    """Its ``start()`` waits for ``go``, and its callback for ``done``."""

    async def start(self) -> AsyncIterator[Any]:
        await self.go.wait()
        yield Request(f"{self.site}/", dont_filter=True)

    async def parse(self, response: Response) -> None:  # type: ignore[override]
        self.begun.set()
        await self.done.wait()


async def test_5_a_start_request_of_an_earlier_run_is_not_added_again(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """The queue hands it out while ``start()`` still has to yield it."""
    site.serve({"/": "page"})
    crawl = await crawls.start(StartsLate, site=site.url)
    crawl.spider.go.set()
    await crawl.spider.begun.wait()
    copy = queue.copy()
    crawl.spider.done.set()
    await crawl.end()
    resumed = await crawls.start(StartsLate, queue=copy, site=site.url)
    await resumed.spider.begun.wait()
    resumed.spider.go.set()
    await wait_until(lambda: resumed.stats.get("dupefilter/filtered") == 1)
    resumed.spider.done.set()
    await resumed.end()
    assert resumed.paths == ["/"]
    assert "apify_rq/enqueued" not in resumed.stats
    info = await copy.info()
    assert (info.total, info.pending) == (1, 0)


# 8. What cannot be decoded (see 1.) or encoded.


async def test_8_an_error_that_json_cannot_hold_does_not_stop_the_crawl(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    class Raises(SiteSpider):
        def parse(self, response: Response) -> None:
            raise ValueError("half a pair: \udc80")

    site.serve({"/": "page"})
    crawl = await crawls.run(Raises, site=site.url)
    assert crawl.reason == "finished"
    assert (await queue.entry("/")).error_messages == ["ValueError: half a pair: \ufffd"]


# 9. Memory is bounded.

# Scrapy itself holds up to CONCURRENT_ITEMS (100) outputs of a callback in its hands and twice as
# many in a queue before them, all of which have passed ``room()``.
IN_SCRAPYS_HANDS = 300


class YieldsMany(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/", priority=1)
        for n in range(300):
            yield Request(f"{self.site}/start{n}", self.note)

    def parse(self, response: Response) -> Any:
        for n in range(300):
            yield response.follow(f"/link{n}", self.note)


async def test_9_the_window_and_the_outbox_have_limits(
    queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    next_request = Scheduler.next_request

    def watched(scheduler: Scheduler) -> Request | None:
        nonlocal most
        most = max(most, len(scheduler))
        return next_request(scheduler)

    monkeypatch.setattr(Scheduler, "next_request", watched)
    settings = {"APIFY_RQ_WINDOW": 50, "APIFY_RQ_OUTBOX": 60, "CLOSESPIDER_PAGECOUNT": 40}
    with Site({}, default="page") as site:
        crawl = await crawls.run(YieldsMany, settings, site=site.url)
    assert 40 <= most <= 50
    # One callback at a time yields requests; each other page in flight may have its ack there.
    assert 60 <= crawl.stats["apify_rq/outbox_max"] <= 60 + IN_SCRAPYS_HANDS + 16 + 1
    info = await queue.info()
    assert (info.total, info.handled) == (len(await queue.entries()), len(site.paths))


# 11. Nothing of ours in request.meta.


class Derives(SiteSpider):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seen: set[tuple[str, ...]] = set()
        """Where, the path, and all keys of meta."""

    def see(self, where: str, request: Request) -> None:
        self.seen.add((where, request.url.removeprefix(self.site), *sorted(request.meta)))

    def parse(self, response: Any) -> Any:
        self.see("callback", response.request)
        for path in ("/a", "/again", "/moved", "/500"):
            yield response.follow(path, self.parse_page, meta={"own": 1})

    def parse_page(self, response: Any) -> Any:
        self.see("callback", response.request)
        if "copy" not in response.url:
            url = f"{response.url}-copy"
            yield response.request.replace(url=url)
            yield response.request.replace(url=f"{url}-meta", meta=response.meta)


async def test_11_nothing_of_ours_in_meta(crawls: Crawls) -> None:
    """Neither in a run that is stopped early, nor in the one that goes on."""

    async def crawl(site: Site, **settings: Any) -> set[tuple[str, ...]]:
        def connect(name: str) -> None:
            def see(request: Request, spider: Any) -> None:
                spider.see(name, request)

            crawl.crawler.signals.connect(see, getattr(signals, name), weak=False)

        site.forget()
        settings = {"CONCURRENT_REQUESTS": 1, **settings}
        crawl = crawls.begin(Derives, settings, site=site.url)
        for name in ("request_scheduled", "request_reached_downloader", "response_downloaded"):
            connect(name)
        seen: set[tuple[str, ...]] = (await crawl.end()).spider.seen
        return seen

    with Site({"/again": [503, "page"], "/moved": MOVED, "/500": 500}, default="page") as site:
        stock = await crawl(site, **STOCK)
        ours = await crawl(site, CLOSESPIDER_PAGECOUNT=1) | await crawl(site)
    assert len(stock) > 30
    assert ours == stock
