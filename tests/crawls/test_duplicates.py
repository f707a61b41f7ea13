"""What is a duplicate, as the project's filter and ``dont_filter`` say it, after a kill as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.dupefilters import RFPDupeFilter
from scrapy.http import Response
from scrapy.utils.request import fingerprint

from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site

STOCK = {"ADDONS": {}}
LANGUAGES = ("cs", "de", "en")


class ByLanguage:
    """Fingerprints as Scrapy's manual makes them: one address in two languages is two pages."""

    def fingerprint(self, request: Request) -> bytes:
        return fingerprint(request, include_headers=["Accept-Language"])


class LanguageFilter(RFPDupeFilter):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "fingerprinter": ByLanguage()})


class ThriceFilter(RFPDupeFilter):
    """Lets each address through three times."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._times: Counter[str] = Counter()

    def request_seen(self, request: Request) -> bool:
        self._times[request.url] += 1
        return self._times[request.url] > 3


class Languages(SiteSpider):
    """Asks for five pages in each language, from two pages that link to them."""

    def parse(self, response: Response) -> Any:
        self.note(response)
        yield Request(f"{self.site}/again", self.parse_again)
        yield from self.pages()

    def parse_again(self, response: Response) -> Any:
        self.note(response)
        yield from self.pages()

    def pages(self) -> Any:
        for number in range(5):
            for language in LANGUAGES:
                headers = {"Accept-Language": language}
                yield Request(f"{self.site}/{number}", self.parse_page, headers=headers)

    def parse_page(self, response: Response) -> None:
        assert response.request is not None
        language = response.request.headers["Accept-Language"].decode()
        self.handled.append(f"{language} {response.url.removeprefix(self.site)}")


class Often(Languages):
    """Asks for each of four pages five times, from each of two pages."""

    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/", dont_filter=True)

    def pages(self) -> Any:
        for number in range(4):
            for _ in range(5):
                yield Request(f"{self.site}/{number}", self.parse_page)

    def parse_again(self, response: Response) -> Any:
        yield from super().parse_again(response)
        for _ in range(3):  # the filter has not seen the start request
            yield Request(f"{self.site}/", self.parse_page)

    def parse_page(self, response: Response) -> None:
        self.note(response)


@pytest.mark.parametrize(
    ("spider", "filter_class", "pages", "last"),
    [(Languages, LanguageFilter, 15, []), (Often, ThriceFilter, 12, ["/", "/", "/"])],
)
async def test_the_filter_of_the_project_decides_in_both_directions(
    site: Site,
    queue: Queue,
    crawls: Crawls,
    spider: Any,
    filter_class: type,
    pages: int,
    last: list[str],
) -> None:
    """As in stock Scrapy; and a crawl that is killed with one page left goes on with that one."""
    held = Held("page")
    site.serve({"/": "page", "/again": "page", **{f"/{number}": "page" for number in range(5)}})
    settings = {"DUPEFILTER_CLASS": filter_class}
    stock = await crawls.run(spider, {**settings, **STOCK}, site=site.url)
    assert len(stock.spider.handled) == pages + 2 + len(last)

    site.serve({"/again": [held, "page"]})
    crawl = await crawls.start(spider, settings, site=site.url)
    await wait_until(lambda: crawl.stats.get("apify_rq/handled") == pages + 1)
    await wait_until(held.begun.is_set)
    killed = queue.copy()
    held.go.set()
    await crawl.end()
    assert Counter(crawl.spider.handled) == Counter(stock.spider.handled)
    resumed = await crawls.run(spider, settings, queue=killed, site=site.url)
    assert resumed.spider.handled == ["/again", *last]


class Differ(SiteSpider):
    """Starts with requests of one page that differ in what no fingerprint says."""

    def requests(self) -> list[Request]:
        page = f"{self.site}/page"
        options: list[dict[str, Any]] = [
            {"cb_kwargs": {"who": "A"}},
            {"cb_kwargs": {"who": "B"}},
            {"meta": {"cookiejar": 1}},
            {"meta": {"cookiejar": 2}},
            {"headers": {"X-Who": "A"}},
            {"callback": self.parse_other},
            {},
            {},
        ]
        return [Request(page, dont_filter=True, **each) for each in options]

    async def start(self) -> AsyncIterator[Any]:
        for request in self.requests():
            yield request

    def parse(self, response: Response, who: str = "") -> None:
        assert response.request is not None
        headers = response.request.headers.to_unicode_dict()
        jar = response.meta.get("cookiejar", "")
        self.handled.append(f"parse {who} {jar} {headers.get('X-Who', '')}")

    def parse_other(self, response: Response) -> None:
        self.handled.append("parse_other")


class DifferInReverse(Differ):
    def requests(self) -> list[Request]:
        new = Request(f"{self.site}/page", dont_filter=True, cb_kwargs={"who": "new"})
        return [new, *reversed(super().requests())]


async def test_start_requests_that_differ_in_content_are_known_again_in_any_order(
    site: Site, crawls: Crawls
) -> None:
    """A list that has become longer adds what is new."""
    site.serve({"/page": "page"})
    few = {"CLOSESPIDER_PAGECOUNT": 3, "CONCURRENT_REQUESTS": 1, "APIFY_RQ_NAME": "named"}
    first = await crawls.run(Differ, few, site=site.url)
    assert 3 <= len(first.spider.handled) < 8
    second = await crawls.run(DifferInReverse, {"APIFY_RQ_NAME": "named"}, site=site.url)
    stock = await crawls.run(DifferInReverse, STOCK, site=site.url)
    both = Counter(first.spider.handled + second.spider.handled)
    assert both == Counter(stock.spider.handled)
    again = await crawls.run(Differ, {"APIFY_RQ_NAME": "named"}, site=site.url)
    assert again.spider.handled == []


class LogsIn(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        yield Request(f"{self.site}/login", self.note, dont_filter=True, meta=self.meta)
        yield Request(f"{self.site}/page", self.note, dont_filter=True)

    meta: dict[str, Any] = {}  # noqa: RUF012 (subclasses set it)


class LogsInEachRun(LogsIn):
    meta = {"apify_rq_each_run": True}  # noqa: RUF012


@pytest.mark.parametrize(
    ("spider", "settings", "again"),
    [
        (LogsIn, {}, []),
        (LogsIn, {"APIFY_RQ_REPEAT_START": True}, ["/login", "/page"]),
        (LogsInEachRun, {}, ["/login"]),
    ],
)
async def test_start_requests_are_repeated_where_the_project_wants_it(
    site: Site, crawls: Crawls, spider: Any, settings: dict[str, Any], again: list[str]
) -> None:
    site.serve({"/login": "in", "/page": "page"})
    named = {**settings, "APIFY_RQ_NAME": "named"}
    first = await crawls.run(spider, named, site=site.url)
    assert sorted(first.paths) == ["/login", "/page"]
    assert sorted((await crawls.run(spider, named, site=site.url)).paths) == again


class Chain(SiteSpider):
    """Each page leads to two pages that must not be filtered."""

    def parse(self, response: Response) -> Any:
        self.note(response)
        depth = response.meta["depth"]
        if depth < 4:
            for _ in range(2):
                yield Request(f"{self.site}/{depth}", self.parse, dont_filter=True)


async def test_a_page_that_is_repeated_after_a_kill_adds_no_child_twice(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """Killed with the ack of a page lost: the page is repeated, and its children are there."""
    held = [Held("page"), Held("page")]
    site.serve({"/": "page", "/0": "page", "/1": "page", "/2": [*held, "page"], "/3": "page"})
    crawl = await crawls.start(Chain, site=site.url)
    await wait_until(held[0].begun.is_set)
    killed = queue.copy()
    await _forget_acks(killed)
    for page in held:
        page.go.set()
    await crawl.end()
    expected = Counter({"/": 1, "/0": 2, "/1": 4, "/2": 8, "/3": 16})
    assert Counter(crawl.spider.handled) == expected
    resumed = await crawls.run(Chain, queue=killed, site=site.url)
    assert Counter(resumed.spider.handled) == expected
    assert (await killed.info()).total == sum(expected.values())


async def _forget_acks(queue: Queue) -> None:
    """Make all entries pending, as if no ack had been saved before the kill."""
    entries = await queue.entries()
    for entry in entries:
        entry.handled_at = entry.loaded_url = None
    await queue.update(*entries)
