"""What the core promises of crawls; the numbers are those in the docstring of ``frontier``.

Where an interleaving is the subject, it is in ``tests/unit``.
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
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from scrapy import FormRequest, Request, signals
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import JsonRequest, Response

from scrapy_apify_rq import Scheduler
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME, SqliteBackend
from tests.support.comparing import STOCK
from tests.support.crawling import Crawl, Crawls
from tests.support.frontier_driver import make_entry
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site, links

# Seconds in which something would happen too early, if it did.
A_WHILE = 0.1
ONE_AT_A_TIME = {"CONCURRENT_REQUESTS": 1}
MOVED = Page(status=302, headers={"Location": "/target"})


def path_of(request: Request) -> str:
    return "/" + request.url.split("/", 3)[3]


async def put_undecodable(queue: Queue, *texts: str) -> list[str]:
    """Store texts that no client of ours would write as pending entries; their ids."""
    entries = [make_entry(f"/undecodable{n}") for n in range(len(texts))]
    await queue.add(*entries)
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db, db:
        for entry, text in zip(entries, texts, strict=True):
            db.execute("UPDATE requests SET json = ? WHERE id = ?", (text, entry.id))
    return [entry.id for entry in entries]


# 1. The three synchronous methods touch memory only.

METHODS = ("enqueue_request", "next_request", "has_pending_requests")
MODULES = ("_posixsubprocess", "_socket", "_sqlite3", "socket", "sqlite3", "subprocess")
FUNCTIONS = (open, os.open, time.sleep)
OBJECTS = (sqlite3.Connection, sqlite3.Cursor, socket.socket)


class Tracer:
    """Wraps the methods, and notes what they call that is not memory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.violations: set[str] = set()
        for name in METHODS:
            patch.setattr(Scheduler, name, self._wrap(name, getattr(Scheduler, name)))

    def _wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def profile(frame: Any, event: str, function: Any) -> None:
            if event == "call":
                module, what = frame.f_globals.get("__name__"), frame.f_code.co_qualname
                is_wrong = module in MODULES
            elif event == "c_call":
                module, what = getattr(function, "__module__", None), function.__qualname__
                owner = getattr(function, "__self__", None)
                is_wrong = module in MODULES or isinstance(owner, OBJECTS)
                is_wrong = is_wrong or function in FUNCTIONS
            else:
                return
            if is_wrong:
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


async def crawl_everything(site: Site, queue: Queue, crawls: Crawls) -> None:
    site.serve(dict.fromkeys(("/", "/a", "/target", "/memory"), "page"))
    site.serve({"/again": [503, "page"], "/moved": MOVED, "/500": 500})
    await put_undecodable(queue, '{"id": "x", "url": 5}')
    crawl = await crawls.run(Everything, site=site.url)
    assert crawl.stats["apify_rq/retried"] == 3
    assert crawl.stats["apify_rq/undecodable"] == 1
    assert crawl.stats["dupefilter/filtered"] == 1
    assert crawl.stats["scheduler/unserializable"] == 1


async def test_1_memory_only(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer(monkeypatch)
    await crawl_everything(site, queue, crawls)
    assert tracer.violations == set()
    assert min(tracer.calls[name] for name in METHODS) >= 3


async def test_1_the_tracer_sees_violations(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enqueue_request(scheduler: Any, request: Request) -> bool:
        backend = scheduler._life._backend
        backend._database.connection.execute("SELECT 1").fetchone()
        return bool(whole["enqueue_request"](scheduler, request))

    def next_request(scheduler: Any) -> Any:
        socket.socket().close()
        return whole["next_request"](scheduler)

    def has_pending_requests(scheduler: Any) -> bool:
        time.sleep(0)
        open(__file__).close()  # noqa: PTH123 (as simple as can be)
        return bool(whole["has_pending_requests"](scheduler))

    whole: dict[str, Callable[..., Any]] = {name: getattr(Scheduler, name) for name in METHODS}
    for wrong in (enqueue_request, next_request, has_pending_requests):
        monkeypatch.setattr(Scheduler, wrong.__name__, wrong)
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
    call = getattr(SqliteBackend, method)
    copies: list[Queue] = []
    count = 0

    async def dying(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            copies.append(queue.copy())
        return await call(*args, **options)

    paths = [f"/{n}" for n in range(60)]
    site.serve({"/": links(*paths), **dict.fromkeys(paths, "page")})
    monkeypatch.setattr(SqliteBackend, method, dying)
    await crawls.run(Links, site=site.url)
    (copy,) = copies
    entries = await copy.entries()
    handled = {entry.url.removeprefix(site.url) for entry in entries if entry.is_handled}
    resumed = await crawls.run(Links, queue=copy, site=site.url)
    assert {*handled, *resumed.paths} == {"/", *paths}
    assert len(resumed.paths) == 61 - len(handled)
    info = await copy.info()
    assert (info.total, info.pending) == (61, 0)


# 3. Acked once Scrapy has finished with it.


class HoldsA:
    """An item pipeline that keeps the item of /a until the spider lets it go."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> HoldsA:
        return cls(crawler)

    async def process_item(self, item: Any) -> Any:
        spider: Any = self._crawler.spider
        if item["path"] == "/a":
            spider.begun.set()
            await spider.go.wait()
        return item


class Waits(Links):
    """Has two events: ``begun``, and ``go``."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.begun = asyncio.Event()
        self.go = asyncio.Event()


async def test_3_acked_only_when_the_pipelines_are_done(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": links("/a"), "/a": "page"})
    settings = {"ITEM_PIPELINES": {HoldsA: 1}}
    crawl = await crawls.start(Waits, settings, site=site.url)
    await crawl.spider.begun.wait()
    await wait_until(lambda: crawl.stats.get("apify_rq/handled") == 1)
    await asyncio.sleep(A_WHILE)
    copy = queue.copy()
    crawl.spider.go.set()
    await crawl.end()
    assert [(await copy.entry(path)).is_handled for path in ("/", "/a")] == [True, False]
    resumed = await crawls.start(Waits, settings, queue=copy, site=site.url)
    resumed.spider.go.set()
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
    """Its ``start()`` waits for ``go``, and its callback until ``done``."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.done = asyncio.Event()

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
    assert resumed.stats["dupefilter/filtered"] == 1
    assert "apify_rq/enqueued" not in resumed.stats
    info = await copy.info()
    assert (info.total, info.pending) == (1, 0)


# 8. What cannot be decoded, or encoded.


async def test_8_an_undecodable_entry_is_acked_with_an_error(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    good = '{"id": "x", "uniqueKey": "x", "url": "http://localhost/"'
    texts = [
        "nonsense",
        "[1]",
        f'{good}, "userData": "text"}}',
        f'{good}, "userData": {{"a": "\\ud800"}}}}',
        '{"id": "x", "uniqueKey": "x", "url": "no url"}',
        f'{good}, "userData": {{"scrapy": {{"v": 1, "callback": "missing"}}}}}}',
        f'{good}, "userData": {{"scrapy": {{"v": 9}}}}}}',
        f'{good}, "errorMessages": [1], "retryCount": "many"}}',
    ]
    site.serve({"/": links("/a"), "/a": "page"})
    ids = await put_undecodable(queue, *texts)
    crawl = await crawls.run(Links, site=site.url)
    assert sorted(site.paths) == ["/", "/a"]
    assert crawl.stats["apify_rq/undecodable"] == len(texts)
    assert (await queue.info()).pending == 0
    entries = {entry.id: entry for entry in await queue.entries()}
    for id in ids:
        assert crawl.log_text.count(f"Entry {id} ") == 1
        assert entries[id].is_handled
        assert "cannot be decoded" in entries[id].error_messages[-1]


async def test_8_an_error_that_json_cannot_hold_does_not_stop_the_crawl(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    class Raises(SiteSpider):
        def parse(self, response: Response) -> None:
            raise ValueError("half a pair: \udc80")

    site.serve({"/": "page"})
    crawl = await crawls.run(Raises, site=site.url)
    assert crawl.reason == "finished"
    assert (await queue.entry("/")).error_messages == ["ValueError: half a pair: ?"]


# 9. Memory is bounded.

# Scrapy itself holds up to CONCURRENT_ITEMS (100) outputs of a callback in its hands and twice as
# many in a queue before them, all of which have passed ``room()``.
IN_SCRAPYS_HANDS = 300


class YieldsMany(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/", priority=1)
        for n in range(1000):
            yield Request(f"{self.site}/start{n}", self.note)

    def parse(self, response: Response) -> Any:
        for n in range(1000):
            yield response.follow(f"/link{n}", self.note)


async def test_9_the_window_and_the_outbox_have_limits(
    queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_request = Scheduler.next_request
    most = 0

    def watched(scheduler: Scheduler) -> Request | None:
        nonlocal most
        most = max(most, len(scheduler))
        return next_request(scheduler)

    monkeypatch.setattr(Scheduler, "next_request", watched)
    settings = {"APIFY_RQ_WINDOW": 50, "APIFY_RQ_OUTBOX": 60, "CLOSESPIDER_PAGECOUNT": 200}
    with Site({}, default="page") as site:
        crawl = await crawls.run(YieldsMany, settings, site=site.url)
    assert 40 <= most <= 50
    # One callback at a time yields requests; each other page in flight may have its ack there.
    assert 60 <= crawl.stats["apify_rq/outbox_max"] <= 60 + IN_SCRAPYS_HANDS + 16 + 1
    info = await queue.info()
    assert (info.total, info.handled) == (len(await queue.entries()), len(site.paths))


class YieldsDuplicates(SiteSpider):
    """Keeps the queue from taking anything until it has yielded duplicates."""

    def __init__(self, file: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.file = file
        self.db: sqlite3.Connection | None = None
        self.was_full = False

    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/second", self.parse_second)
        yield Request(f"{self.site}/")

    def parse(self, response: Response) -> Any:
        self.db = sqlite3.connect(self.file, isolation_level=None)
        self.db.execute("BEGIN EXCLUSIVE")
        for n in range(30):
            yield response.follow(f"/{n}", self.note)

    async def parse_second(self, response: Response) -> AsyncIterator[Any]:
        frontier = self.crawler.engine._slot.scheduler.frontier  # type: ignore[union-attr]
        await wait_until(lambda: self.db and frontier.is_full())
        for _ in range(20):
            yield response.follow("/0", self.note)
        self.was_full = frontier.is_full()
        assert self.db is not None
        self.db.close()


async def test_9_a_duplicate_needs_no_room(queue: Queue, crawls: Crawls) -> None:
    settings = {"APIFY_RQ_OUTBOX": 10, "APIFY_RQ_UNAVAILABLE_TIMEOUT": 5}
    with Site({}, default="page") as site:
        crawl = await crawls.run(
            YieldsDuplicates, settings, file=queue.folder / FILE_NAME, site=site.url
        )
    assert crawl.spider.was_full
    assert crawl.reason == "finished"
    assert len(site.paths) == 32


# 10. The live request.


class Compares:
    """Gives the spider what goes into the scheduler, and what comes out of it."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Compares:
        self = cls(crawler)
        crawler.signals.connect(self._scheduled, signals.request_scheduled)
        return self

    def _keep(self, where: str, request: Request) -> None:
        spider: Any = self._crawler.spider
        text = repr(sorted(request.to_dict(spider=spider).items()))
        getattr(spider, where)[path_of(request)] = (request, text)

    def _scheduled(self, request: Request) -> None:
        self._keep("put", request)

    def process_request(self, request: Request) -> None:
        self._keep("taken", request)


class YieldsAllKinds(SiteSpider):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.put: dict[str, tuple[Request, str]] = {}
        self.taken: dict[str, tuple[Request, str]] = {}

    def parse(self, response: Response) -> Any:
        own: Any = {"callback": self.parse_page, "errback": self.fail, "dont_filter": True}
        at = datetime(2026, 1, 2, tzinfo=UTC)
        meta = {"tuple": (1, {2, 3}), b"bytes": b"\xff", 3: None, "at": at}
        yield response.follow("/1", **own, meta=meta)
        yield response.follow("/2", **own, cb_kwargs={"price": Decimal("1.50")})
        yield response.follow("/3", **own, headers={"X": ["a", "b"], "Y": "\xe9"})
        yield response.follow("/4", **own, method="POST", body=b"\xff\x00")
        yield response.follow("/5", **own, cookies={"a": "b"}, priority=-3, flags=["f"])
        yield FormRequest(f"{self.site}/6", **own, formdata={"a": "b"})
        yield JsonRequest(f"{self.site}/7", **own, data={"a": [1]})

    def parse_page(self, response: Response, price: Decimal | None = None) -> None:
        self.note(response)

    def fail(self, failure: Any) -> None:
        pass


async def test_10_the_very_request_or_one_equal_to_it(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    first = Held("page")
    site.serve({"/": "page", **{f"/{n}": "page" for n in range(2, 8)}, "/1": first})
    settings = {"DOWNLOADER_MIDDLEWARES": {Compares: 0}, **ONE_AT_A_TIME}
    crawl = await crawls.start(YieldsAllKinds, settings, site=site.url)
    await wait_until(first.begun.is_set)
    await wait_until(lambda: crawl.stats.get("apify_rq/enqueued") == 8)
    await wait_until(lambda: crawl.stats.get("apify_rq/handled") == 1)
    copy = queue.copy()
    first.go.set()
    await crawl.end()
    put = crawl.spider.put
    assert len(put) == 8
    assert {path: taken for path, (taken, _) in crawl.spider.taken.items()} == {
        path: request for path, (request, _) in put.items()
    }
    resumed = await crawls.run(YieldsAllKinds, settings, queue=copy, site=site.url)
    assert len(resumed.spider.taken) == 7
    for path, (_, text) in resumed.spider.taken.items():
        assert text == put[path][1]


# 11. Nothing of ours in request.meta.


class NotesMeta:
    """Notes the keys of meta wherever one can look."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> NotesMeta:
        self = cls(crawler)
        crawler.signals.connect(self._scheduled, signals.request_scheduled)
        return self

    def _scheduled(self, request: Request) -> None:
        self._note("scheduled", request)

    def process_request(self, request: Request) -> None:
        self._note("request", request)

    def process_response(self, request: Request, response: Response) -> Response:
        self._note("response", request)
        return response

    def _note(self, where: str, request: Request) -> None:
        spider: Any = self._crawler.spider
        spider.note_meta(where, request)


class Derives(SiteSpider):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.metas: set[tuple[str, ...]] = set()

    def note_meta(self, where: str, request: Request | None) -> None:
        assert request is not None
        self.metas.add((where, path_of(request), *sorted(request.meta)))

    def parse(self, response: Response) -> Any:
        self.note_meta("callback", response.request)
        for path in ("/a", "/again", "/moved", "/500"):
            yield response.follow(path, self.parse_page, meta={"own": 1})

    def parse_page(self, response: Response) -> Any:
        self.note_meta("callback", response.request)
        if "copy" not in response.url:
            assert response.request is not None
            url = f"{response.url}-copy"
            yield response.request.replace(url=url)
            yield response.request.replace(url=f"{url}-meta", meta=response.meta)


async def test_11_nothing_of_ours_in_meta(crawls: Crawls) -> None:
    async def crawl(**settings: Any) -> Crawl:
        pages = {"/again": [503, "page"], "/moved": MOVED, "/500": 500}
        settings = {"DOWNLOADER_MIDDLEWARES": {NotesMeta: 0}, **ONE_AT_A_TIME, **settings}
        with Site(pages, default="page") as site:
            return await crawls.run(Derives, settings, site=site.url)

    stock = (await crawl(**STOCK)).spider.metas
    ours = (await crawl()).spider.metas
    assert len(stock) > 30
    assert ours == stock
