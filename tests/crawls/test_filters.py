"""What the queue has is not added again, unless the request says so or cannot be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from scrapy import Request, signals
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.http import Response

from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import Pages
from tests.support.website import Site, links


class Moody(Request):
    """It cannot always be written."""

    attributes = (*Request.attributes, "mood")

    def __init__(self, *args: Any, mood: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._mood = mood

    @property
    def mood(self) -> str | None:
        if self._mood == "bad" or "retry_times" in self.meta:
            raise RuntimeError("in no mood")
        return self._mood


class Unfiltered(Pages):
    def parse(self, response: Response) -> Iterator[Any]:
        for dont_filter in (False, True, True):
            yield response.follow("/page", callback=self.parse_page, dont_filter=dont_filter)
        yield Moody(f"{self.site}/bad", self.parse_page, mood="bad")
        yield Moody(f"{self.site}/again", self.parse_page)
        for path in ("/memory/1", "/memory/2", "/memory/2"):
            yield response.follow(path, callback=lambda response: self.parse_page(response))


async def test_not_filtered_and_not_stored(site: Site, crawls: Crawls, any_queue: Queue) -> None:
    once = {"/page": 3, "/bad": 1, "/memory/1": 1, "/memory/2": 1}
    site.serve({**dict.fromkeys(("/", *once), "page"), "/again": [503, "page"]})
    crawl = await crawls.run(Unfiltered, queue=any_queue, site=site.url)
    assert Counter(site.paths) == {"/": 1, **once, "/again": 2}
    assert Counter(item["path"] for item in crawl.items) == {**once, "/again": 1}
    entries = await any_queue.entries()
    stored = Counter(entry.url.removeprefix(site.url) for entry in entries)
    assert stored == {"/": 1, "/page": 3, "/again": 1}
    assert len({entry.unique_key for entry in entries}) == 5
    assert all(entry.is_handled for entry in entries)
    assert crawl.stats["scheduler/unserializable"] == 4
    assert crawl.log_text.count("Unable to serialize request") == 1
    assert "reason: RuntimeError: in no mood." in crawl.log_text
    assert crawl.stats["dupefilter/filtered"] == 1


class Starts(Pages):
    path = "/"

    async def start(self) -> AsyncIterator[Any]:
        for _ in range(2):
            yield Request(f"{self.site}{self.path}", dont_filter=True)


async def test_crawl_stopped_resumed_and_run_from_another_page(
    site: Site, crawls: Crawls, any_queue: Queue
) -> None:
    site.serve({"/": links("/a", "/b", "/b"), "/other": links("/a", "/b", "/c")})
    site.serve(dict.fromkeys(("/a", "/b", "/c"), "page"))
    # No page is fetched before the callback of the one before it has ended.
    one_by_one = {"CONCURRENT_REQUESTS": 1, "SCRAPER_SLOT_MAX_ACTIVE_SIZE": 1}
    runs, pending, dropped = [], [], []
    drops: Counter[str] = Counter()

    def note_drop(request: Request) -> None:
        drops[request.url.removeprefix(site.url)] += 1

    for path, pages in ("/", 2), ("/", 0), ("/other", 0):
        settings = {**one_by_one, "CLOSESPIDER_PAGECOUNT": pages}
        crawl = crawls.begin(Starts, settings, queue=any_queue, path=path, site=site.url)
        crawl.crawler.signals.connect(note_drop, signals.request_dropped)
        runs.append(await crawl.end())
        dropped.append(Counter(drops))
        drops.clear()
        pending.append((await any_queue.info()).pending)
    assert pending[0] > 0
    assert pending[1:] == [0, 0]
    # Start requests are crawled as often as given, and never again; the rest once.
    assert Counter(site.paths) == {"/": 2, "/other": 2, "/a": 1, "/b": 1, "/c": 1}
    assert dropped == [
        {"/a": 1, "/b": 3},  # both start requests yield the same three links, two of which differ
        {"/": 2},
        {"/a": 2, "/b": 2, "/c": 1},
    ]
    assert [run.stats["dupefilter/filtered"] for run in runs] == [4, 2, 5]
    assert runs[2].stats["scheduler/enqueued"] == 3
    entries = await any_queue.entries()
    starts = [entry.unique_key for entry in entries if entry.url == f"{site.url}/"]
    assert sorted(key.partition(":")[2] for key in starts) == ["start1", "start2"]
    assert all(entry.is_handled for entry in entries)


class NoLetters(RFPDupeFilter):
    def request_seen(self, request: Request) -> bool:
        return request.url.endswith("/a") or super().request_seen(request)


@pytest.mark.parametrize("dupefilter", [NoLetters, BaseDupeFilter])
async def test_dupefilter_of_the_project(
    site: Site, crawls: Crawls, any_queue: Queue, dupefilter: type[BaseDupeFilter]
) -> None:
    """It is asked before the queue is; with one that keeps nothing out, nothing is."""
    paths = ["/", "/1"] if dupefilter is NoLetters else ["/", "/a", "/1", "/1"]
    site.serve({"/": links("/a", "/1", "/1"), "/a": "page", "/1": "page"})
    settings = {"DUPEFILTER_CLASS": dupefilter}
    crawl = await crawls.run(Pages, settings, queue=any_queue, site=site.url)
    stored = [entry.url.removeprefix(site.url) for entry in await any_queue.entries()]
    assert sorted(site.paths) == sorted(stored) == sorted(paths)
    assert crawl.stats.get("dupefilter/filtered", 0) == 4 - len(paths)
