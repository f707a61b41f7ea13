"""What a crawl keeps beside its entries: spider.state, cookies, and the totals of all its runs."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request, signals
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.cookies import CookiesMiddleware
from scrapy.http import Response

from scrapy_apify_rq.backends.apify.records import name_of
from scrapy_apify_rq.backends.sqlite.occupancy import Occupancy
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.crawl import state
from tests.support.comparing import STOCK
from tests.support.crawling import Crawl, Crawls
from tests.support.event_server import Platform
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Hit, Page, Site, begun, let_go, links

WORKER = {"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_CLIENT_KEY": "a/b \u017e"}
COOKIES = "scrapy.downloadermiddlewares.cookies.CookiesMiddleware"


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are saved soon."""
    monkeypatch.setattr(state, "_SHORT_PAUSE", 0.02)


@pytest.fixture
def sloth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is saved just because time passes."""
    monkeypatch.setattr(state, "_SHORT_PAUSE", 1000)
    monkeypatch.setattr(state, "_LONG_PAUSE", 1000)


def records(queue: Queue, prefix: str = "") -> dict[str, str]:
    """What is stored now, by the kind of record and what its name ends with."""
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db:
        rows = db.execute("SELECT name, CAST(text AS TEXT) FROM records").fetchall()
        over_the_api = db.execute("SELECT name, CAST(body AS TEXT) FROM store_records")
        rows += [(name_of(key), text) for key, text in over_the_api]
    return {name: text for name, text in rows if name.startswith(prefix)}


async def saved(queue: Queue, prefix: str, part: str) -> None:
    await wait_until(lambda: part in str(records(queue, prefix)), f"{part} in {prefix}")


# spider.state


class Counts(SiteSpider):
    """Counts its pages in its state."""

    at_start: Any = None

    async def start(self) -> AsyncIterator[Any]:
        self.at_start = dict(self.state)
        yield Request(f"{self.site}/")

    def parse(self, response: Response) -> Iterator[Any]:
        self.note(response)
        self.state["pages"] = self.state.get("pages", 0) + 1
        self.state["seen", 1] = {b"x", None}
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href)


@pytest.mark.parametrize("has_jobdir", [False, True])
@pytest.mark.parametrize("access", [{}, WORKER], ids=["single", "worker"])
@pytest.mark.usefixtures("haste")
async def test_state_survives_a_kill(
    site: Site,
    queue: Queue,
    crawls: Crawls,
    tmp_path: Path,
    has_jobdir: bool,
    access: dict[str, Any],
) -> None:
    held = Held("page")
    site.serve({"/": links("/held"), "/held": [held, "page"]})
    settings = {**access, "APIFY_RQ_LOCK_SECS": 1}
    if has_jobdir:
        settings["JOBDIR"] = str(tmp_path / "job")
    crawl = await crawls.start(Counts, settings, site=site.url)
    await begun(held)
    await saved(queue, "spider.state", '"pages":1')
    copy = queue.copy()
    held.go.set()
    await crawl.end()
    again = await crawls.run(Counts, settings, queue=copy, site=site.url)
    seen = {("seen", 1): {b"x", None}}
    assert (crawl.spider.at_start, crawl.spider.state) == ({}, {"pages": 2, **seen})
    assert (again.spider.at_start, again.spider.state) == (
        {"pages": 1, **seen},
        {"pages": 2, **seen},
    )
    assert "INFO: Restored as an earlier run has saved them: 2 values" in again.log_text
    # What was saved at the end.
    third = await crawls.run(Counts, settings, queue=copy, site=site.url)
    assert third.spider.at_start == {"pages": 2, **seen}


class Ends(Counts):
    other: Occupancy | None = None

    def closed(self, reason: str) -> None:
        self.state["reason"] = reason
        if self.other is not None:
            assert self.other.take(alone=True)


@pytest.mark.parametrize("is_held", [False, True])
async def test_state_that_closed_leaves(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path, is_held: bool
) -> None:
    """As with Scrapy's own extension; unless another crawl has the queue by then."""
    site.serve({"/": "page"})
    stock = {**STOCK, "JOBDIR": str(tmp_path / "job")}
    _, reference = [await crawls.run(Ends, stock, site=site.url) for _ in range(2)]
    crawl = await crawls.start(Ends, site=site.url)
    if is_held:
        crawl.spider.other = Occupancy(queue.folder, (await queue.info()).id)
    await crawl.end()
    if is_held:
        crawl.spider.other.release()
    again = await crawls.run(Counts, site=site.url)
    if is_held:
        del reference.spider.at_start["reason"]
    assert again.spider.at_start == reference.spider.at_start
    assert ("as closed() has left it is not saved" in crawl.log_text) == is_held


class Defaults(Counts):
    """Fills its state when it is opened."""

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> Any:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.fill, signals.spider_opened)
        return spider

    def fill(self) -> None:
        self.state["runs"] = self.state.get("runs", 0) + 1


async def test_state_filled_by_the_spiders_own_handler(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": "page"})
    for run in (1, 2, 3):
        crawl = await crawls.run(Defaults, site=site.url)
        assert crawl.spider.state["runs"] == run


class HasState(Counts):
    def __init__(self, site: str, **arguments: Any) -> None:
        self.state: Any = {"pages": 10}
        self.same = self.state
        super().__init__(site, **arguments)

    def parse(self, response: Response) -> Iterator[Any]:
        if isinstance(self.state, dict):
            yield from super().parse(response)

    async def start(self) -> AsyncIterator[Any]:
        self.at_start = self.state.copy() if isinstance(self.state, dict) else self.state
        yield Request(f"{self.site}/")


async def test_state_of_the_spiders_own(site: Site, queue: Queue, crawls: Crawls) -> None:
    """A dict is filled with what was saved, and anything else is none of our business."""
    site.serve({"/": "page"})
    first = await crawls.run(HasState, site=site.url)
    second = await crawls.run(HasState, site=site.url)
    assert (first.spider.at_start["pages"], second.spider.at_start["pages"]) == (10, 11)
    assert second.spider.state is second.spider.same
    stored = records(queue, "spider.state")
    other = await crawls.run(HasState, site=site.url, state="CA")
    assert other.spider.at_start == "CA"
    assert "spider.state" not in other.log_text
    assert records(queue, "spider.state") == stored


class Keeps(SiteSpider):
    def parse(self, response: Response) -> None:
        self.state |= {"lock": threading.Lock(), "good": 1, object(): 2}


@pytest.mark.usefixtures("haste")
async def test_values_that_cannot_be_saved(site: Site, queue: Queue, crawls: Crawls) -> None:
    """Each is named once, and the rest is saved and restored."""
    held = Held("page")
    site.serve({"/": links("/held"), "/held": held})

    class Waits(Keeps):
        def parse(self, response: Response) -> Any:
            super().parse(response)
            return response.follow("/held", self.note)

    crawl = await crawls.start(Waits, site=site.url)
    await begun(held)
    await saved(queue, "spider.state", "good")
    for _ in range(3):  # it is saved again and again
        crawl.spider.state["turn"] = crawl.spider.state.get("turn", 0) + 1
        await saved(queue, "spider.state", f'"turn":{crawl.spider.state["turn"]}')
    held.go.set()
    await crawl.end()
    warnings = [one.getMessage() for one in crawl.log if one.levelname == "WARNING"]
    assert [text for text in warnings if "spider.state['lock']: a value of type" in text]
    assert [text for text in warnings if "spider.state[<object>]: a value of type object" in text]
    assert len(warnings) == crawl.stats["apify_rq/not_kept"] == 2
    again = await crawls.run(Counts, site=site.url)
    assert again.spider.at_start == {"good": 1, "turn": 3}


async def test_broken_records_cost_only_themselves(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": "page", "/more": "page"})
    await crawls.run(Counts, site=site.url)
    broken = {
        "spider.state/": '[{"good": 1}, {"$unknown": 2}, 3]',
        "totals/": "{}",
        "cookies//1": "not JSON",
        "cookies//2": '{"key": [], "cookies": []}',
        "cookies//3": '{"key": null, "cookies": [{"name": "x"}]}',
    }
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db, db:
        for name, text in broken.items():
            db.execute("INSERT OR REPLACE INTO records VALUES (1, ?, ?)", (name, text))
    crawl = await crawls.run(Counts, site=site.url)
    assert crawl.reason == "finished"
    assert crawl.spider.at_start == {"good": 1}
    warnings = [one.getMessage() for one in crawl.log if "be restored" in one.getMessage()]
    assert len(warnings) == len(broken) + 1
    # A version of the project that has the class can still read it.
    assert '{"$unknown":2}' in records(queue)["spider.state/"]


# Cookies

KEYS: list[Any] = [None, 1, "a", ("t", 2), b"b", 1.5, frozenset({"x", "y"})]
FUTURE = "Thu, 01 Jan 2099 00:00:00 GMT"


def login(hit: Hit) -> Page:
    """A session's cookie, one for a path and one that expires, of this jar."""
    user = hit.path.partition("?")[2]
    headers = {
        "Set-Cookie": f"session={user}; HttpOnly; Path=/; SameSite=Lax",
        "set-cookie": f'deep="{user} x"; Path=/page',
        "SET-COOKIE": f"lasting={user}; Expires={FUTURE}; Max-Age=999999",
        "sEt-cookie": f"gone={user}; Max-Age=0",
    }
    return Page("page", headers=headers)


class LogsIn(SiteSpider):
    """Logs in once with each jar, and then goes to a page."""

    async def start(self) -> AsyncIterator[Any]:
        for number, key in enumerate(KEYS):
            meta = {"cookiejar": key, "number": number}
            yield Request(f"{self.site}/login?{number}", meta=meta, cookies={"own": f"{number}"})

    def parse(self, response: Response) -> Any:
        return response.follow(f"/page?{response.meta['number']}", self.note, meta=response.meta)


def sent_cookies(site: Site) -> dict[str, str]:
    """By path, the header of the last hit."""
    hits = [hit for hit in site.hits if hit.path.startswith("/page")]
    return {hit.path: dict(hit.headers)["Cookie"] for hit in hits}


@pytest.mark.usefixtures("haste")
async def test_cookies_survive_a_kill(site: Site, queue: Queue, crawls: Crawls) -> None:
    held = {f"/page?{number}": Held("page") for number in range(len(KEYS))}
    site.serve({f"/login?{number}": login for number in range(len(KEYS))})
    site.serve({path: [page, "page"] for path, page in held.items()})
    crawl = await crawls.start(LogsIn, site=site.url)
    await begun(*held.values())
    await wait_until(lambda: str(records(queue, "cookies")).count('"session"') == len(KEYS))
    copy = queue.copy()
    let_go(*held.values())
    await crawl.end()
    before = sent_cookies(site)
    site.forget()
    again = await crawls.run(LogsIn, queue=copy, site=site.url)
    after = sent_cookies(site)
    assert sorted(again.paths) == sorted(held)  # nobody logs in again
    assert set(before) == set(held)
    assert after == before
    for path, header in after.items():
        names = dict(part.split("=", 1) for part in header.split("; "))
        assert set(names) == {"own", "session", "deep", "lasting"}
        assert names["session"] == path.partition("?")[2]


class Jarless(CookiesMiddleware):
    """Keeps its jars in a way that we do not know."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self.jars = dict.fromkeys([None, *KEYS], self.jars[None])  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({"APIFY_RQ_COOKIES": False}, 0),
        ({"COOKIES_ENABLED": False}, 0),
        ({"DOWNLOADER_MIDDLEWARES": {COOKIES: None, Jarless: 700}}, 1),
    ],
    ids=["not wanted", "no cookies", "unknown jars"],
)
async def test_crawls_whose_cookies_are_not_saved(
    site: Site, queue: Queue, crawls: Crawls, settings: dict[str, Any], warnings: int
) -> None:
    site.serve({f"/login?{number}": login for number in range(len(KEYS))})
    first = await crawls.run(LogsIn, site=site.url)
    assert first.reason == "finished"
    assert len(records(queue, "cookies")) == len(KEYS)
    crawl = await crawls.run(LogsIn, settings, site=site.url)
    wanted = settings.get("APIFY_RQ_COOKIES", True)
    assert len(records(queue, "cookies")) == (len(KEYS) if wanted else 0)
    assert crawl.log_text.count("Cookies are not saved: Jarless has no jars") == warnings


# Totals


async def test_totals_of_all_runs(site: Site, queue: Queue, crawls: Crawls) -> None:
    site.serve({"/": links("/1", "/2", "/bad"), "/1": [503, "page"], "/2": "page", "/bad": 404})
    few = {"CLOSESPIDER_PAGECOUNT": 1, "CONCURRENT_REQUESTS": 1}
    first = await crawls.run(Links, few, site=site.url)
    assert "; all" not in first.closing_line
    second = await crawls.run(Links, site=site.url)
    assert "this run handled 3 (1 of them failed) and retried 1; " in second.closing_line
    totals = r"; all 2 runs handled 4 \(1 of them failed\), retried 1 and scraped 3 items in 0:00:0"
    assert re.search(totals, second.closing_line)


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.usefixtures("haste")
async def test_each_worker_has_its_own_state(
    site: Site, queue: Queue, crawls: Crawls, has_key: bool
) -> None:
    """Their totals are added up. Without a key nobody could find the state again."""
    site.serve({"/": links("/1", "/2", "/3"), **dict.fromkeys(("/1", "/2", "/3"), login)})

    async def run(name: str, pages: int = 0) -> Crawl:
        key = {"APIFY_RQ_CLIENT_KEY": name} if has_key else {}
        few = {"CONCURRENT_REQUESTS": 1, "CLOSESPIDER_PAGECOUNT": pages}
        return await crawls.run(Counts, {"APIFY_RQ_ACCESS": "shared", **key, **few}, site=site.url)

    one, two = await run("one", 2), await run("two")
    again = await run("one")
    states = [crawl.spider.at_start.get("pages", 0) for crawl in (one, two, again)]
    first = one.spider.state["pages"]
    assert 2 <= first < 4
    assert two.spider.state["pages"] == 4 - first
    assert states == [0, 0, first if has_key else 0]
    assert len(records(queue, "spider.state")) == len(records(queue, "cookies")) == 2 * has_key
    assert ("only if APIFY_RQ_CLIENT_KEY names it" in again.log_text) == (not has_key)
    assert "all 3 runs handled 4 (0 of them failed)" in again.closing_line


# When it is saved


@pytest.mark.usefixtures("sloth")
async def test_all_is_saved_before_a_migration(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held("page")
    site.serve({"/": Page(links("/held"), headers={"Set-Cookie": "a=b"}), "/held": held})
    async with Platform() as platform:
        monkeypatch.setenv("ACTOR_EVENTS_WEBSOCKET_URL", platform.url)
        crawl = await crawls.start(Counts, site=site.url)
        await platform.connected()
        await begun(held)
        await wait_until(lambda: queue.handled == 1)
        assert records(queue) == {}
        await platform.send("migrating")
        await wait_until(lambda: len(records(queue)) == 3)
        held.go.set()
        await wait_until(lambda: queue.handled == 2)
        await crawl.crawler.stop_async()
        await crawl.end()
    assert '"pages":2' in records(queue)["totals/"]


@pytest.mark.usefixtures("sloth")
async def test_a_crawl_that_starts_afresh_has_no_state(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """Its own queue is emptied when it is finished, and its records with it."""
    site.serve({"/": Page("page", headers={"Set-Cookie": "a=b"})})
    own = {"APIFY_RQ_NAME": None}
    first = await crawls.run(Counts, own, site=site.url)
    assert sorted(name.partition("/")[0] for name in records(queue)) == [
        "cookies",
        "spider.state",
        "totals",
    ]
    again = await crawls.run(Counts, own, site=site.url)
    assert (again.spider.at_start, again.paths) == ({}, first.paths)
    assert "Cookie" not in dict(site.hits[-1].headers)
    assert "; all" not in again.closing_line
