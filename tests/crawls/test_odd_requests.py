"""One odd request costs that request at most: never its page's other links, never the crawl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site

PATHS = [f"/{number}" for number in range(60)]


class Yields(SiteSpider):
    """Its first page yields what ``requests`` makes with the site's address and the callback."""

    def __init__(self, requests: Callable[[str, Any], Iterator[Request]], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.requests = requests

    def parse(self, response: Response) -> Any:
        self.note(response)
        yield from self.requests(self.site, self.parse_page)

    def parse_page(self, response: Response) -> None:
        assert response.request is not None
        self.note(response)


def serve(site: Site) -> None:
    site.serve({"/": "page", **dict.fromkeys(PATHS, "page")})


def assert_healthy(crawl: Crawl) -> None:
    assert crawl.reason == "finished"
    assert "Bug in scrapy-apify-rq" not in crawl.log_text
    assert [one.getMessage() for one in crawl.log if one.exc_info] == []


class Uncopyable(Request):
    """It holds something that there is once."""

    def replace(self, *args: Any, **options: Any) -> Any:
        raise TypeError("cannot be copied")

    def copy(self) -> Any:
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("outbox", [1, 5, 2000])
async def test_uncopyable_links_in_a_full_outbox(site: Site, crawls: Crawls, outbox: int) -> None:
    serve(site)

    def requests(address: str, callback: Any) -> Iterator[Request]:
        return (Uncopyable(f"{address}{path}", callback) for path in PATHS)

    crawl = await crawls.run(Yields, {"APIFY_RQ_OUTBOX": outbox}, requests=requests, site=site.url)
    assert Counter(crawl.spider.handled) == Counter(["/", *PATHS])
    assert_healthy(crawl)


@pytest.mark.parametrize("outbox", [1, 2000])
@pytest.mark.parametrize("cls", [Request, Uncopyable])
@pytest.mark.parametrize("writable", [True, False])
async def test_one_object_yielded_twice(
    site: Site, crawls: Crawls, outbox: int, cls: type[Request], writable: bool
) -> None:
    """With ``dont_filter``, each time counts. Scrapy's own scheduler loses one of them."""
    serve(site)

    def requests(address: str, callback: Any) -> Iterator[Request]:
        method = callback if writable else lambda response: callback(response)
        one = cls(f"{address}/1", method, dont_filter=True)
        yield one
        yield one
        yield Request(f"{address}/2", callback)

    crawl = await crawls.run(Yields, {"APIFY_RQ_OUTBOX": outbox}, requests=requests, site=site.url)
    assert Counter(crawl.spider.handled) == {"/": 1, "/1": 2, "/2": 1}
    assert_healthy(crawl)


def with_surrogate_in_the_url(address: str, callback: Any) -> Request:
    return Request(f"{address}/\ud800", callback, meta={"verbatim_url": True})


def with_surrogate_in_the_method(address: str, callback: Any) -> Request:
    return Request(f"{address}/59", callback, method="G\ud800T")


needs_verbatim = pytest.mark.skipif(
    not hasattr(Request, "_url_is_verbatim"), reason="Scrapy 2.16 lets no such URL in"
)


@pytest.mark.parametrize(
    "make",
    [pytest.param(with_surrogate_in_the_url, marks=needs_verbatim), with_surrogate_in_the_method],
)
@pytest.mark.parametrize("outbox", [1, 2000])
async def test_lone_surrogate(
    site: Site, queue: Queue, crawls: Crawls, make: Callable[[str, Any], Request], outbox: int
) -> None:
    serve(site)

    def requests(address: str, callback: Any) -> Iterator[Request]:
        for path in PATHS[:30]:
            yield Request(f"{address}{path}", callback)
        yield make(address, callback)
        for path in PATHS[30:59]:
            yield Request(f"{address}{path}", callback)

    crawl = await crawls.run(Yields, {"APIFY_RQ_OUTBOX": outbox}, requests=requests, site=site.url)
    assert Counter(crawl.spider.handled) == Counter(["/", *PATHS[:59]])
    assert crawl.reason == "finished"
    assert "Bug in scrapy-apify-rq" not in crawl.log_text
    info = await queue.info()
    assert (info.total, info.pending) == (60, 0)
    assert crawl.stats["scheduler/unserializable"] == 1


class Paged(Request):
    """Its constructor takes pages up to 10 only; what is set later is not checked."""

    attributes = (*Request.attributes, "page")

    def __init__(self, *args: Any, page: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        self.page = min(page, 10)


class ReadsPages(SiteSpider):
    """Keeps the page numbers that its callbacks have found in their requests."""

    numbers = (1, 50, 2)

    def parse(self, response: Response) -> Any:
        self.note(response)
        for number in self.numbers:
            request = Paged(f"{self.site}/{number}", self.parse_page)
            request.page = number
            yield request

    def parse_page(self, response: Response) -> None:
        assert isinstance(response.request, Paged)
        self.handled.append(f"page {response.request.page}")


@pytest.mark.parametrize("numbers", [(1, 50, 2), (50, 1, 2)])
async def test_class_whose_constructor_looks_at_its_values(
    site: Site, queue: Queue, crawls: Crawls, numbers: tuple[int, ...]
) -> None:
    """The one request that would not come back the same is kept in memory, the others stored."""

    class Spider(ReadsPages):
        pass

    Spider.numbers = numbers  # type: ignore[assignment]
    answers = {f"/{number}": Held("page") for number in numbers}
    site.serve({"/": "page", **answers})
    crawl = await crawls.start(Spider, site=site.url)
    await wait_until(lambda: all(answer.begun.is_set() for answer in answers.values()))
    copy = queue.copy()
    for answer in answers.values():
        answer.go.set()
    await crawl.end()
    expected = ["page 1", "page 2", "page 50"]
    assert sorted(crawl.spider.handled[1:]) == expected
    assert crawl.stats["scheduler/unserializable"] == 1
    stored = {entry.url.rpartition("/")[2] for entry in await queue.entries()}
    assert stored == {"", "1", "2"}

    resumed = await crawls.run(Spider, queue=copy, site=site.url)
    assert sorted(resumed.spider.handled) == ["/", *expected]
