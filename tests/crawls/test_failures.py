"""What goes wrong in our own work closes the spider with a reason, and the last line says so."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from scrapy import Request
from scrapy.core import engine as scrapy_engine
from scrapy.http import Response
from scrapy.statscollectors import MemoryStatsCollector

from tests.support.api_calls import Call, error
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

PATHS = [f"/{number}" for number in range(7)]


# An exception where nobody waits for it.


class Fragile(MemoryStatsCollector):
    """A project's own, which fails at our stats as often as ``failures`` says."""

    failures = 0

    def _check(self, key: str) -> None:
        if self.failures > 0 and key.startswith("apify_rq/"):
            self.failures -= 1
            raise LookupError(f"no such stat: {key}")

    def inc_value(self, key: str, *args: Any, **options: Any) -> None:
        self._check(key)
        super().inc_value(key, *args, **options)

    def max_value(self, key: str, *args: Any, **options: Any) -> None:
        self._check(key)
        super().max_value(key, *args, **options)


class Breaks(SiteSpider):
    """Breaks the stats in the callback of its second page, while the others are downloading."""

    def __init__(self, held: dict[str, Held], failures: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.held = held
        self.failures = failures

    def parse(self, response: Response) -> Any:
        self.note(response)
        for path in ("/second", *self.held):
            callback = self.parse_second if path == "/second" else self.note
            yield Request(f"{self.site}{path}", callback)

    async def parse_second(self, response: Response) -> None:
        await wait_until(lambda: all(held.begun.is_set() for held in self.held.values()))
        self.note(response)
        stats: Any = self.crawler.stats
        stats.failures = self.failures


@pytest.mark.parametrize("failures", [1, 1_000_000], ids=["once", "always"])
@pytest.mark.parametrize("downloads", [1, 2], ids=["idle downloader", "busy downloader"])
async def test_exception_while_a_page_is_settled(
    site: Site, queue: Queue, crawls: Crawls, downloads: int, failures: int
) -> None:
    """While the downloader is busy, the engine does not ask for requests, so that nobody but a
    task of ours looks for pages that are done."""
    held = {f"/held{number}": Held("page") for number in range(downloads)}
    site.serve({"/": "page", "/second": "page", **held})
    settings = {"STATS_CLASS": Fragile, "CONCURRENT_REQUESTS": 2}
    crawl = await crawls.start(Breaks, settings, held=held, failures=failures, site=site.url)
    await wait_until(lambda: "/second" in crawl.spider.handled)
    await asyncio.sleep(0.2)  # that page is settled, and the held ones are not
    for page in held.values():
        page.go.set()
    await crawl.end()
    assert (crawl.reason or "").startswith("apify_rq"), crawl.reason
    assert "no such stat" in crawl.log_text
    assert any(record.levelname in ("ERROR", "CRITICAL") for record in crawl.log)
    assert crawl.closing_line
    pending = {entry.url for entry in await queue.entries() if not entry.is_handled}

    resumed = await crawls.run(Breaks, held=held, failures=0, site=site.url)
    assert set(resumed.paths) == {url.removeprefix(site.url) for url in pending}
    assert (await queue.info()).pending == 0


# The last line.


async def test_closing_line_of_a_crawl_whose_adds_are_lost(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """They are in no queue, so nobody must think that the next run finds them there."""

    def before(call: Call) -> Any:
        is_add = call.is_("POST", "/requests/batch")
        return error(403) if is_add and call.json[0]["url"] != f"{site.url}/" else None

    served.api.before = before
    site.serve({"/": links(*PATHS)})
    crawl = await crawls.run(Links, queue=served, site=site.url)
    info = await served.info()
    assert (crawl.reason or "").startswith("apify_rq")
    assert (info.total, info.pending) == (1, 1)
    line = crawl.closing_line
    assert "requests they belong to are still pending" not in line
    assert re.search(rf"\b{len(PATHS)}\b", line), line


class Pipeline:
    def open_spider(self) -> None:
        raise LookupError("this pipeline cannot be opened")

    def process_item(self, item: Any) -> Any:
        return item


async def test_closing_line_of_a_crawl_that_could_not_begin(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """Another component fails when the queue is open and the engine does not run yet."""
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, "page")})
    stopped = await crawls.run(Links, {"CLOSESPIDER_PAGECOUNT": 3}, site=site.url)
    assert stopped.closing_line
    before = await queue.info()
    crawl = crawls.begin(Links, {"ITEM_PIPELINES": {Pipeline: 1}}, site=site.url)
    with pytest.raises(LookupError, match="cannot be opened"):
        await crawl.end()
    ours = [one.getMessage() for one in crawl.log if one.name.startswith("scrapy_apify_rq")]
    assert len(ours) > 1, "there is the opening line only"
    assert str(before.pending) in ours[-1]
    assert crawl.tasks_left == []
    assert (await queue.info()) == before


# A Scrapy that we do not know.


@pytest.mark.parametrize("name", ["inprogress", "nextcall", "closing"])
async def test_engine_without_a_private_name(
    site: Site, crawls: Crawls, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is reported when the spider is opened, not by an AttributeError in mid-crawl."""
    whole = scrapy_engine._Slot.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        whole(self, *args, **options)
        monkeypatch.delattr(self, name)

    monkeypatch.setattr(scrapy_engine._Slot, "__init__", init)
    site.serve({"/": "page"})
    crawl = crawls.begin(Links, site=site.url)
    with pytest.raises(Exception) as raised:  # noqa: PT011 (Scrapy's own may follow ours)
        await crawl.end(5)
    error_: BaseException | None = raised.value
    messages = []
    while error_ is not None:
        messages += [str(error_)] if isinstance(error_, RuntimeError) else []
        error_ = error_.__context__
    assert any(name in message and "scrapy-apify-rq" in message for message in messages)
    assert crawl.tasks_left == []
