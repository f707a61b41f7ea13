"""``scrapy rq import-jobdir``: finish a crawl that stock Scrapy has paused."""

from __future__ import annotations

import pickle
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from scrapy_apify_rq.commands.jobdir import SEEN
from tests.support.command_line import rq, rq_ok
from tests.support.crawling import Crawls
from tests.support.documents import commands
from tests.support.queues import Queue
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Answer, Hit, Page, Site, links

# Older versions of Scrapy do not close the empty disk queues that they open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)

PATHS = ["/" + "x" * (number % 7) + str(number) for number in range(40)]
STARTS = ["/", "/second", "/third"]


class Maze(SiteSpider):
    async def start(self) -> Any:
        for path in STARTS:
            meta = {"download_slot": "slot 1"}
            yield Request(f"{self.site}{path}", dont_filter=True, meta=meta, priority=-5)

    def parse(self, response: Response, came_from: str | None = None) -> Iterator[Any]:
        assert came_from in (None, "a page")
        self.state["pages"] = self.state.get("pages", 0) + 1
        for link in response.css("a::attr(href)").getall():
            number = len(link)
            yield response.follow(
                link,
                cb_kwargs={"came_from": "a page"},
                priority=number % 3 - 1,
                meta={"download_slot": f"slot {number % 2}"},
                errback=self.failed,
            )
        if response.url.endswith("0"):
            yield Request(f"{self.site}/again", self.note, dont_filter=True)
            yield Request(f"{self.site}/form", self.note, method="POST", body=b"\xff")

    def failed(self, failure: Any) -> Iterator[Request]:
        yield Request(f"{self.site}/failed", self.note, dont_filter=True)


def maze() -> dict[str, Answer]:
    """Every page links to others and to the start. Three fail at first, two are missing."""

    def page(number: int) -> Page:
        to = [PATHS[(3 * number + more) % 40] for more in range(1, 5)]
        return Page(links("/", *to), delay=0.01)

    pages: dict[str, Answer] = {path: page(number) for number, path in enumerate(PATHS)}
    pages |= {PATHS[number]: [503, page(number)] for number in (1, 4, 9)}
    pages |= {PATHS[2]: 404, PATHS[17]: 404}
    # Longer than older versions of Scrapy delay a response before its callback.
    pages |= {"/": Page(links(*PATHS[:9]), delay=0.15)}
    pages |= {"/second": Page(links(*PATHS[5:9]), delay=0.15)}
    pages |= dict.fromkeys(("/again", "/form", "/failed"), "x")
    return {**pages, "/third": links("/third")}


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hits(site: Site) -> Counter[Any]:
    return Counter((hit.method, hit.path, hit.body) for hit in site.hits)


# With one download at a time, links are crawled before the last start request, which stays pending.
@pytest.mark.parametrize(
    ("any_queue", "priority_queue", "disk_queue", "at_once", "has_pending_starts"),
    [
        ("sqlite", "DownloaderAwarePriorityQueue", "PickleLifoDiskQueue", 1, True),
        ("apify", "ScrapyPriorityQueue", "MarshalFifoDiskQueue", 4, False),
    ],
    indirect=["any_queue"],
)
async def test_import(
    tmp_path: Path,
    site: Site,
    any_queue: Queue,
    crawls: Crawls,
    priority_queue: str,
    disk_queue: str,
    at_once: int,
    has_pending_starts: bool,
) -> None:
    queue, jobdir = any_queue, tmp_path / "job"
    settings = {
        "SPIDER_MODULES": [__name__],
        "SCHEDULER_PRIORITY_QUEUE": f"scrapy.pqueues.{priority_queue}",
        "SCHEDULER_DISK_QUEUE": f"scrapy.squeues.{disk_queue}",
        "CONCURRENT_REQUESTS": at_once,
    }
    stock = {**settings, "ADDONS": {}}
    site.serve(maze())
    await crawls.run(Maze, {**stock, "JOBDIR": str(tmp_path / "whole")}, site=site.url)
    uninterrupted = hits(site)

    # Stock Scrapy pauses.
    site.forget()
    enough = threading.Event()

    def last(hit: Hit) -> Page:
        enough.set()
        return Page(delay=0.1)

    site.serve({"/again": [links(), last]})
    paused = await crawls.start(Maze, {**stock, "JOBDIR": str(jobdir)}, site=site.url)
    await wait_until(enough.is_set)
    await paused.crawler.stop_async()
    await paused.end()
    assert paused.reason == "shutdown"
    before = files(jobdir)
    assert any("requests.queue" in str(path) for path in before)
    assert 10 <= len(site.hits) <= uninterrupted.total() - 15

    # The import, which can be repeated.
    (_, _, *command), crawling = commands("docs/migrating.md", "From a JOBDIR")
    words = [str(jobdir) if word == "crawls/spider-1" else word for word in command]
    words += ["-a", f"site={site.url}"]
    first = await rq_ok(queue, *words, settings=settings)
    second = await rq_ok(queue, *words, settings=settings)
    found = re.search(r"Added: (\d+) pending requests?, (\d) start requests? counted as", first.out)
    assert found
    assert int(found[1]) == (await queue.info()).pending > 0
    assert (int(found[2]) < len(STARTS)) == has_pending_starts
    assert "Added: 0 pending requests, 0 start requests counted as crawled, 0 seen" in second.out
    info = await queue.info()
    assert f"{info.handled} handled, {info.pending} pending" in second.out
    assert files(jobdir) == before
    imported = await queue.entries()
    seen = [entry for entry in imported if entry.url.startswith(SEEN)]
    assert 5 < len(seen) <= info.handled
    assert all(entry.unique_key == entry.url.removeprefix(SEEN) for entry in seen)
    assert {entry.state for entry in seen} == {"handled"}

    # Both crawls together fetch exactly the pages of an uninterrupted one.
    assert crawling == ["scrapy", "crawl", Maze.name]
    crawl = await crawls.run(Maze, {**settings, "JOBDIR": str(jobdir)}, queue=queue, site=site.url)
    assert crawl.reason == "finished"
    assert hits(site) == uninterrupted
    assert (await queue.info()).pending == 0
    # Finished start requests are not repeated.
    starts = [entry for entry in await queue.entries() if ":start" in entry.unique_key]
    assert len(starts) == len(STARTS)
    assert crawl.stats["dupefilter/filtered"] >= len(STARTS)
    # The spider's state continues if JOBDIR stays set, and no other file is changed.
    after, state = files(jobdir), jobdir / "spider.state"
    pages = pickle.loads(before.pop(state))["pages"]
    assert 0 < pages < pickle.loads(after[state])["pages"]
    assert pickle.loads(after[state])["pages"] <= pages + crawl.stats["response_received_count"]
    assert before.items() <= after.items()


async def test_it_asks_whether_the_pickles_are_your_own(tmp_path: Path, queue: Queue) -> None:
    (tmp_path / "job").mkdir()
    words = ("import-jobdir", str(tmp_path / "job"), "--spider", Maze.name)
    refused = await rq(queue, *words, settings={"SPIDER_MODULES": [__name__]})
    assert refused.code == 2
    assert "holds pickles" in refused.err
    assert "--yes" in refused.err
