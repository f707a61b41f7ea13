"""What is scraped survives a kill, in every feed. What a kill leaves: ``Queue.copy()``."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scrapy import Field, Item, Request, signals
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import DontCloseSpider
from scrapy.exporters import JsonLinesItemExporter
from scrapy.extensions.feedexport import BlockingFeedStorage, FeedExporter, FileFeedStorage
from scrapy.extensions.postprocessing import GzipPlugin
from scrapy.http import Response
from scrapy.statscollectors import DummyStatsCollector
from scrapy.utils.defer import deferred_from_coro

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.crawl.feed_files import LocalFile
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, begun, let_go, links

UNNAMED = {"APIFY_RQ_NAME": None, "BOT_NAME": "bot"}


class Page(Item):
    path = Field()


class Kinds(Links):
    """Scrapes a dict and an Item of each page."""

    def parse(self, response: Response) -> Iterator[Any]:
        yield from super().parse(response)
        yield Page(path=self.handled[-1])


def feeds(folder: Path) -> dict[str, dict[str, Any]]:
    """One of each kind."""
    return {
        str(folder / name): {"format": kind, **options}
        for name, kind, options in (
            ("over.json", "json", {"overwrite": True}),
            ("add.jl", "jsonlines", {}),
            ("add.csv", "csv", {}),
            ("over.xml", "xml", {"overwrite": True}),
            ("batch-%(batch_id)d.jl", "jsonlines", {"overwrite": True, "batch_item_count": 3}),
            ("more-%(batch_id)d.jl", "jsonlines", {"batch_item_count": 3}),
            ("time-%(batch_time)s.jl", "jsonlines", {"batch_item_count": 3}),
            ("over.gz", "jsonlines", {"overwrite": True, "postprocessing": [GzipPlugin]}),
            ("add.gz", "jsonlines", {"postprocessing": [GzipPlugin]}),
            ("items.jl", "jsonlines", {"item_classes": [Page]}),
        )
    }


def lines(text: str) -> list[str]:
    return [json.loads(line)["path"] for line in text.splitlines()]


def contents(folder: Path) -> dict[str, Counter[str]]:
    """The paths in each feed; all batches of one are one."""
    found: dict[str, Counter[str]] = {}
    for file in filter(Path.is_file, folder.iterdir()):
        if file.suffix == ".gz":
            paths = lines(gzip.decompress(file.read_bytes()).decode())
        elif file.suffix == ".csv":
            rows = csv.reader(file.read_text().splitlines())
            paths = [row[0] for row in rows if row[0] != "path"]
        elif file.suffix == ".xml":
            paths = [item.findtext("path") or "" for item in ElementTree.parse(file).getroot()]
        elif file.suffix == ".json":
            paths = [item["path"] for item in json.loads(file.read_text())]
        else:
            paths = lines(file.read_text())
        found.setdefault(file.name.partition("-")[0], Counter()).update(paths)
    return found


async def killed(queue: Queue, crawl: Crawl, folder: Path, *held: Held) -> Queue:
    """What ``kill -9`` leaves at this moment: the queue, and what is written in ``folder``."""
    left = queue.copy()
    written = files_in(folder)
    let_go(*held)
    await crawl.end()
    restore(folder, written)
    return left


async def killed_at_b(
    site: Site, queue: Queue, crawls: Crawls, settings: dict[str, Any], folder: Path
) -> Queue:
    """What a crawl of "/", "/a" and "/b" leaves that is killed while it waits for "/b"."""
    held = Held()
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": held})
    crawl = await crawls.start(Links, settings, queue=queue, site=site.url)
    await begun(held)
    await wait_until(lambda: queue.handled == 2)
    return await killed(queue, crawl, folder, held)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def restore(folder: Path, written: dict[Path, bytes]) -> None:
    for path in folder.glob("*"):
        if path in written:
            path.write_bytes(written[path])  # in place: it is still the same file
        else:
            path.unlink()


async def test_feeds_of_every_kind_end_as_without_kills(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """Three kills, while pages are in flight whose items have reached the feeds already."""
    pages = [f"/{number}" for number in range(12)]
    folder = tmp_path / "feeds"
    settings = {**UNNAMED, "FEEDS": feeds(folder), "CONCURRENT_REQUESTS": 2}
    site.serve({"/": links(*pages), **dict.fromkeys(pages, "page")})
    for path in pages[2::4]:
        held = Held()
        site.serve({path: held})
        crawl = await crawls.start(Kinds, settings, queue=queue, site=site.url)
        await begun(held)
        await wait_until(lambda crawl=crawl: crawl.stats["item_scraped_count"] > 4)
        queue = await killed(queue, crawl, folder, held)
    crawl = await crawls.run(Kinds, settings, queue=queue, site=site.url)
    assert crawl.reason == "finished"
    assert "and 26 items" in crawl.closing_line
    every = Counter(["/", *pages])
    found = contents(folder)
    assert found.pop("items.jl") == every
    assert len(found) == 9
    assert found == dict.fromkeys(found, every + every)
    # Stored, so the next run starts afresh, and with no items.
    crawl = await crawls.run(Kinds, settings, queue=queue, site=site.url)
    assert "emptied of 13 entries and 26 saved items, its crawl was finished" in crawl.log_text
    found = contents(folder)
    assert found["over.json"] == every + every
    assert found["add.jl"] == every + every + every + every


# Items that belong to no request.


class Loose(SiteSpider):
    """Yields items from ``start()``, and three more when it is idle."""

    def __init__(self, site: str, **arguments: Any) -> None:
        super().__init__(site, **arguments)
        self.left = 3
        self.stays = False
        self.tasks: list[Any] = []

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Loose:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.idle, signals.spider_idle)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        for number in (1, 2, 2, 3):
            yield {"path": f"start {number}"}
        yield Request(f"{self.site}/")

    def parse(self, response: Response) -> Any:
        yield {"path": "/"}

    def idle(self) -> None:
        items, self.left = self.left, 0
        for number in range(items):
            self.tasks.append(asyncio.ensure_future(self.scrape(number)))
        if items or self.stays:
            raise DontCloseSpider

    async def scrape(self, number: int) -> None:
        item = {"path": f"idle {number % 2}"}
        await self.crawler.engine.scraper.start_itemproc_async(item, response=None)
        scrapy_private.wake(self.crawler.engine)


async def test_items_of_no_request_come_once(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    held = Held()
    site.serve({"/": held})
    folder = tmp_path / "feeds"
    settings = {**UNNAMED, "FEEDS": {str(folder / "items.jl"): {"format": "jsonlines"}}}
    crawl = await crawls.start(Loose, settings, queue=queue, site=site.url)
    await begun(held)
    await wait_until(lambda: crawl.stats.get("item_scraped_count") == 4)
    queue = await killed(queue, crawl, folder, held)
    crawl = await crawls.start(Loose, settings, queue=queue, site=site.url)
    crawl.spider.stays = True
    await wait_until(lambda: crawl.stats.get("item_scraped_count") == 4)  # "/" and all of idle
    await wait_until(lambda: len(saved(queue)) == 8)
    crawl.spider.stays = False
    scrapy_private.wake(crawl.crawler.engine)
    queue = await killed(queue, crawl, folder)
    crawl = await crawls.run(Loose, settings, queue=queue, site=site.url)
    expected = Counter([f"start {n}" for n in (1, 2, 2, 3)] + ["/", "idle 0", "idle 0", "idle 1"])
    assert contents(folder)["items.jl"] == expected
    assert crawl.stats["apify_rq/items_known"] == 7
    assert crawl.paths == []


# With which request an item is saved.


class OnlyInMemory(SiteSpider):
    """Its page leads to two pages by callbacks that cannot be written, one after the other."""

    def parse(self, response: Response) -> Iterator[Any]:
        yield {"path": "/"}
        yield response.follow("/a", lambda response: self.second(response))

    def second(self, response: Response) -> Iterator[Any]:
        yield {"path": "/a"}
        yield response.follow("/b", lambda response: [{"path": "/b"}])


async def test_items_of_requests_in_memory_wait_for_the_page_that_led_there(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    held = Held()
    site.serve({"/": "home", "/a": "page", "/b": held})
    folder = tmp_path / "feeds"
    settings = {**UNNAMED, "FEEDS": {str(folder / "items.jl"): {"format": "jsonlines"}}}
    crawl = await crawls.start(OnlyInMemory, settings, queue=queue, site=site.url)
    await begun(held)
    queue = await killed(queue, crawl, folder, held)
    assert saved(queue) == []
    crawl = await crawls.run(OnlyInMemory, settings, queue=queue, site=site.url)
    assert crawl.paths == ["/", "/a", "/b"]
    assert contents(folder)["items.jl"] == Counter(["/", "/a", "/b"])
    assert saved(queue) == ["/", "/a", "/b"]


def saved(queue: Queue) -> list[str]:
    """The paths of the saved items of the file's only queue."""
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db:
        rows = db.execute(
            "SELECT json FROM items JOIN item_texts USING (number) WHERE valid ORDER BY number"
        ).fetchall()
    return [json.loads(line)["path"] for (text,) in rows for line in text.split("\n")]


class AsksAgain(SiteSpider):
    """Downloads its own request again in the callback, then scrapes."""

    async def parse(self, response: Response) -> AsyncIterator[Any]:
        yield {"path": "before"}
        again = await self.crawler.engine.download_async(response.request.replace(dont_filter=True))
        yield {"path": again.text}


async def test_a_callback_that_downloads_its_own_request_again(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    held = Held("again")
    site.serve({"/": ["first", held, "first", "again"]})
    folder = tmp_path / "feeds"
    settings = {**UNNAMED, "FEEDS": {str(folder / "items.jl"): {"format": "jsonlines"}}}
    crawl = await crawls.start(AsksAgain, settings, queue=queue, site=site.url)
    await begun(held)
    queue = await killed(queue, crawl, folder, held)
    crawl = await crawls.run(AsksAgain, settings, queue=queue, site=site.url)
    assert crawl.paths == ["/", "/"]
    assert contents(folder)["items.jl"] == Counter(["before", "again"])


class Retries(SiteSpider):
    def parse(self, response: Response) -> Iterator[Any]:
        yield {"path": response.text}
        if response.text == "no":
            yield get_retry_request(response.request, spider=self, reason="no")


async def test_items_before_a_retry_count_as_in_stock(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    held = Held("yes")
    site.serve({"/": ["no", held, "yes"]})
    folder = tmp_path / "feeds"
    settings = {**UNNAMED, "FEEDS": {str(folder / "items.jl"): {"format": "jsonlines"}}}
    crawl = await crawls.start(Retries, settings, queue=queue, site=site.url)
    await begun(held)
    queue = await killed(queue, crawl, folder, held)
    await crawls.run(Retries, settings, queue=queue, site=site.url)
    site.forget()
    held.go.set()
    stock = await crawls.run(Retries, {"ADDONS": {}}, site=site.url)
    expected = Counter(item["path"] for item in stock.items)
    assert contents(folder)["items.jl"] == expected == Counter(["no", "yes"])


class Many(SiteSpider):
    """One callback scrapes many items, and then waits."""

    count = 1000

    def __init__(self, site: str, go: asyncio.Event) -> None:
        super().__init__(site)
        self.go = go

    async def parse(self, response: Response) -> AsyncIterator[Any]:
        for number in range(self.count):
            yield {"path": number}
        await self.go.wait()


async def test_many_items_of_one_callback_are_sent_ahead(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """They are valid with the ack, and not before."""
    site.serve({"/": "page"})
    go = asyncio.Event()
    settings = {**UNNAMED, "APIFY_RQ_ITEMS": True, "LOG_LEVEL": "INFO"}
    crawl = await crawls.start(Many, settings, queue=queue, site=site.url, go=go)
    await wait_until(lambda: crawl.stats.get("apify_rq/items") == Many.count)
    (flight,) = crawl.crawler.engine._slot.scheduler.inflight._flights.values()
    assert len(flight.items) <= 256
    left = queue.copy()
    go.set()
    await crawl.end()
    assert saved(queue) == list(range(Many.count))
    assert saved(left) == []

    class Fewer(Many):
        count = 10

    await crawls.run(Fewer, settings, queue=left, site=site.url, go=go)
    assert saved(left) == list(range(10))
    with closing(sqlite3.connect(left.folder / FILE_NAME)) as db:
        assert db.execute("SELECT count(*) FROM item_texts").fetchone() == (1,)


# When a crawl is over.


class SlowStorage(FileFeedStorage):
    """Stores when the test lets it."""

    may_store: asyncio.Event
    fails = False

    def __init__(self, uri: str, *, feed_options: Any = None) -> None:
        super().__init__(uri.rpartition("://")[2], feed_options=feed_options)

    async def _store(self, file: Any) -> None:
        await type(self).may_store.wait()
        file.close()
        if type(self).fails:
            raise OSError("no space on the server")

    def store(self, file: Any) -> Any:
        return deferred_from_coro(self._store(file))


class CannotEnd(JsonLinesItemExporter):
    fails = False

    def finish_exporting(self) -> None:
        if type(self).fails:
            self.file.close()
            no_space()


@pytest.mark.parametrize("how", ["killed", "failed", "failed without stats", "batch failed"])
async def test_an_upload_that_did_not_come_to_its_end(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path, how: str
) -> None:
    """The next run stores without fetching a page; the one after it starts afresh."""
    site.serve({"/": links("/a"), "/a": "page"})
    folder = tmp_path / "feeds"
    settings = {
        **UNNAMED,
        "FEED_STORAGES": {"slow": SlowStorage},
        "FEEDS": {f"slow://{folder}/items.json": {"format": "json", "overwrite": True}},
        "FEED_EXPORTERS": {"full": CannotEnd},
    }
    if how == "failed without stats":
        settings["STATS_CLASS"] = DummyStatsCollector
    elif how == "batch failed":
        feed = {"format": "full", "batch_item_count": 1}
        settings["FEEDS"] = {f"{folder}/%(batch_id)d.jl": feed}
    SlowStorage.may_store, SlowStorage.fails = asyncio.Event(), how.startswith("failed")
    CannotEnd.fails = how == "batch failed"
    crawl = await crawls.start(Links, settings, queue=queue, site=site.url)
    if how != "killed":
        SlowStorage.may_store.set()
        await crawl.end()
    else:
        await wait_until(lambda: "Closing spider" in crawl.log_text)
        await wait_until(lambda: queue.handled == 2)
        left = queue.copy()
        SlowStorage.may_store.set()
        await crawl.end()
        queue = left
    SlowStorage.fails = CannotEnd.fails = False
    second = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert second.paths == []
    assert "resuming, all 2 handled" in second.log_text
    assert "The feeds have got the 2 items that earlier runs have saved" in second.log_text
    third = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert third.paths == ["/", "/a"]


async def test_a_failed_upload_of_items_that_are_not_saved(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """Nothing but a new crawl can bring them back."""
    site.serve({"/": "page"})
    settings = {
        **UNNAMED,
        "APIFY_RQ_ITEMS": False,
        "FEED_STORAGES": {"slow": SlowStorage},
        "FEEDS": {f"slow://{tmp_path}/items.jl": {"format": "jsonlines"}},
    }
    SlowStorage.may_store, SlowStorage.fails = asyncio.Event(), True
    SlowStorage.may_store.set()
    runs = [await crawls.run(Links, settings, queue=queue, site=site.url) for _ in range(2)]
    assert [run.paths for run in runs] == [["/"], ["/"]]


async def test_killed_after_its_last_ack(site: Site, queue: Queue, crawls: Crawls) -> None:
    """It is completed, not crawled again, though nothing is to be stored."""
    site.serve({"/": links("/a"), "/a": "page"})
    lefts: list[Queue] = []

    class Kills(Links):
        @classmethod
        def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Kills:
            spider = super().from_crawler(crawler, *args, **kwargs)
            crawler.signals.connect(spider.idle, signals.spider_idle)
            return spider

        def idle(self) -> None:
            if not lefts:
                lefts.append(queue.copy())

    await crawls.run(Kills, UNNAMED, queue=queue, site=site.url)
    runs = [await crawls.run(Links, UNNAMED, queue=lefts[0], site=site.url) for _ in range(2)]
    assert [run.paths for run in runs] == [[], ["/", "/a"]]


# Files that feeds append to.


def gzipped(text: str) -> bytes:
    return gzip.compress(text.encode())


@pytest.mark.parametrize("name", ["items.jl", "items.csv", "items.gz"])
async def test_a_file_with_an_old_line(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "feeds"
    folder.mkdir()
    (folder / name).write_bytes(
        {"items.jl": b'{"path": "old"}\n', "items.csv": b"old\r\n"}.get(name)
        or gzipped('{"path": "old"}\n')
    )
    options = {"format": "csv" if name.endswith("csv") else "jsonlines"}
    if name.endswith("gz"):
        options["postprocessing"] = [GzipPlugin]
    settings = {**UNNAMED, "FEEDS": {str(folder / name): options}}
    queue = await killed_at_b(site, queue, crawls, settings, folder)
    await crawls.run(Links, settings, queue=queue, site=site.url)
    assert contents(folder)[name] == Counter(["old", "/", "/a", "/b"])


@pytest.mark.parametrize("old", ["", '{"path": "old"}\n'])
async def test_a_file_that_somebody_has_replaced(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path, old: str
) -> None:
    folder = tmp_path / "feeds"
    folder.mkdir()
    file = folder / "items.jl"
    file.write_text(old)
    settings = {**UNNAMED, "FEEDS": {str(file): {"format": "jsonlines"}}}
    queue = await killed_at_b(site, queue, crawls, settings, folder)
    other = folder / "other"
    other.write_text('{"path": "of somebody else"}\n' * 9)
    other.replace(file)
    crawl = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert lines(file.read_text()) == ["of somebody else"] * 9 + ["/b"]
    assert crawl.log_text.count(f"WARNING: The feed {file} is not the one that earlier runs") == 1


def no_space(*_: Any) -> None:
    raise OSError("no space left")


class FullDisk(JsonLinesItemExporter):
    is_full = False

    def export_item(self, item: Any) -> None:
        if type(self).is_full:
            no_space()
        super().export_item(item)


@pytest.mark.parametrize("what", ["cut", "written"])
async def test_a_file_that_cannot_be(
    site: Site,
    queue: Queue,
    crawls: Crawls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Once it can be, it gets all items, and no page is fetched again."""
    folder = tmp_path / "feeds"
    settings = {
        **UNNAMED,
        "FEEDS": {str(folder / "items.jl"): {"format": "full"}},
        "FEED_EXPORTERS": {"full": FullDisk},
    }
    monkeypatch.setattr(FullDisk, "is_full", what == "written")
    if what == "cut":
        queue = await killed_at_b(site, queue, crawls, settings, folder)
        with monkeypatch.context() as patched:
            patched.setattr(LocalFile, "restore", no_space)
            failed = await crawls.run(Links, settings, queue=queue, site=site.url)
        assert (failed.reason, failed.paths) == ("apify_rq_items", [])
    else:
        site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
        await crawls.run(Links, settings, queue=queue, site=site.url)
        monkeypatch.setattr(FullDisk, "is_full", False)
    crawl = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert crawl.paths == (["/b"] if what == "cut" else [])
    assert contents(folder)["items.jl"] == Counter(["/", "/a", "/b"])


async def test_two_feeds_that_append_to_one_file(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """As without the kill, it has two lines of each item; also if a feed is written differently."""
    folder = tmp_path / "feeds"
    feed = {"format": "jsonlines"}

    def settings(*files: str) -> dict[str, Any]:
        return {**UNNAMED, "FEEDS": dict.fromkeys(files, feed)}

    plain, with_scheme = f"{folder}/items.jl", f"file://{folder}/items.jl"
    queue = await killed_at_b(site, queue, crawls, settings(plain, with_scheme), folder)
    other = f"{folder}/../feeds/items.jl"
    await crawls.run(Links, settings(other, with_scheme), queue=queue, site=site.url)
    assert contents(folder)["items.jl"] == Counter(["/", "/a", "/b"] * 2)


async def test_two_crawls_that_append_to_one_file(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """No line is lost, and none of the other's is cut."""
    held = Held()
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": held})
    folder = tmp_path / "feeds"
    file = folder / "items.jl"
    settings = {**UNNAMED, "FEEDS": {str(file): {"format": "jsonlines"}}}

    class Other(SiteSpider):
        name = "other"

        def parse(self, response: Response) -> Any:
            yield {"path": "other"}

    crawl = await crawls.start(Links, settings, queue=queue, site=site.url)
    await begun(held)
    await wait_until(lambda: queue.handled == 2)
    await crawls.run(Other, settings, queue=queue, site=site.url)
    queue = await killed(queue, crawl, folder, held)
    crawl = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert contents(folder)["items.jl"] == Counter(["/", "/a", "/b", "other"])
    warning = f"WARNING: The feed {file} is one that another crawl has written to, too"
    assert crawl.log_text.count(warning) == 1


# Where nothing is saved, or not all.


ODD = threading.Lock()


class Unwritable(SiteSpider):
    def parse(self, response: Response) -> Iterator[Any]:
        yield {"path": "/", "odd": [ODD]}
        yield {"path": "/a", "odd": [ODD]}
        yield {"path": "/b"}


async def test_an_item_that_cannot_be_written(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    site.serve({"/": "page"})
    file = tmp_path / "feeds" / "items.csv"
    settings = {"FEEDS": {str(file): {"format": "csv"}}}
    crawl = await crawls.run(Unwritable, settings, queue=queue, site=site.url)
    assert contents(file.parent)["items.csv"] == Counter(["/", "/a", "/b"])
    assert saved(queue) == ["/b"]
    assert crawl.stats["apify_rq/items_unsaved"] == 2
    assert crawl.log_text.count("cannot be saved: ") == 1


async def test_a_queue_with_a_name_gives_its_feeds_what_is_new(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """Its first crawl was over. What the command for items exports is all of it."""
    site.serve({"/": links("/a"), "/a": "page", "/b": "page"})
    file = tmp_path / "items.jl"
    settings = {"FEEDS": {str(file): {"format": "jsonlines", "overwrite": True}}}
    await crawls.run(Links, settings, queue=queue, site=site.url)

    class New(Links):
        async def start(self) -> AsyncIterator[Any]:
            yield Request(f"{self.site}/b")

    await crawls.run(New, settings, queue=queue, site=site.url)
    assert lines(file.read_text()) == ["/b"]
    assert saved(queue) == ["/", "/a", "/b"]


SCRAPYS = "scrapy.extensions.feedexport.FeedExporter"


class OwnExporter(FeedExporter):
    """Of a project: with methods that take less, and more."""

    def open_spider(self, spider: Any) -> None:
        super().open_spider(spider)
        self.exported = 0

    def item_scraped(self, item: Any, spider: Any) -> None:
        super().item_scraped(item, spider)
        self.exported += 1


class OwnHandlers(FeedExporter):
    """Of a project that does not leave Scrapy's signals to Scrapy's class."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> OwnHandlers:
        exporter = cls(crawler)
        crawler.signals.connect(exporter.opened, signals.spider_opened)
        crawler.signals.connect(exporter.item_scraped, signals.item_scraped)
        crawler.signals.connect(exporter.close_spider, signals.spider_closed)
        return exporter

    def opened(self, spider: Any) -> None:
        self.open_spider(spider)


class SecondExporter(FeedExporter):
    """Of a project that has Scrapy's own, too."""

    def __init__(self, crawler: Any) -> None:
        super().__init__(crawler)
        for named in (self.feeds, self.filters):
            for uri in list(named):
                named[f"{uri}2"] = named.pop(uri)


async def test_two_exporters(site: Site, queue: Queue, crawls: Crawls, tmp_path: Path) -> None:
    folder = tmp_path / "feeds"
    settings = {
        **UNNAMED,
        "EXTENSIONS": {SecondExporter: 0},
        "FEEDS": {str(folder / "items.jl"): {"format": "jsonlines"}},
    }
    queue = await killed_at_b(site, queue, crawls, settings, folder)
    await crawls.run(Links, settings, queue=queue, site=site.url)
    expected = Counter(["/", "/a", "/b"])
    assert contents(folder) == {"items.jl": expected, "items.jl2": expected}
    assert saved(queue) == ["/", "/a", "/b"]


@pytest.mark.parametrize(
    ("settings", "is_saved"),
    [
        ({}, True),
        ({"FEEDS": {}}, False),
        ({"FEEDS": {}, "APIFY_RQ_ITEMS": True}, True),
        ({"APIFY_RQ_ITEMS": False}, False),
        ({"EXTENSIONS": {SCRAPYS: None}}, False),
        ({"EXTENSIONS": {SCRAPYS: None, OwnExporter: 0}}, True),
        ({"EXTENSIONS": {SCRAPYS: None, OwnHandlers: 0}}, False),
    ],
)
async def test_when_items_are_saved(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path, settings: Any, is_saved: bool
) -> None:
    folder = tmp_path / "feeds"
    feed = {"FEEDS": {str(folder / "items.jl"): {"format": "jsonlines", "overwrite": True}}}
    settings = {**UNNAMED, **feed, **settings}
    queue = await killed_at_b(site, queue, crawls, settings, folder)
    assert saved(queue) == (["/", "/a"] if is_saved else [])
    crawl = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert crawl.paths == ["/b"]
    if "Stored jsonlines feed" in crawl.log_text:
        assert contents(folder)["items.jl"] == Counter(["/", "/a", "/b"] if is_saved else ["/b"])


class RemoteFile(BlockingFeedStorage):
    """Appends to what is there only when it stores, as FTP does."""

    def __init__(self, uri: str, *, feed_options: Any = None) -> None:
        self.path = Path(uri.removeprefix("remote://"))

    def _store_in_thread(self, file: Any) -> None:
        file.seek(0)
        with self.path.open("ab") as target:
            target.write(file.read())
        file.close()


@pytest.mark.parametrize("storage", ["local", "remote"])
async def test_ctrl_c_during_the_replay(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path, storage: str
) -> None:
    """The feeds get the rest in the next run."""
    site.serve({"/": "page"})
    go = asyncio.Event()
    go.set()
    folder = tmp_path / "feeds"
    folder.mkdir()
    settings = {
        **UNNAMED,
        "LOG_LEVEL": "INFO",
        "FEED_STORAGES": {"remote": RemoteFile},
        "FEEDS": {str(folder / "items.json"): {"format": "json", "overwrite": True}}
        if storage == "local"
        else {f"remote://{folder}/items.jl": {"format": "jsonlines", "overwrite": False}},
    }
    SlowStorage.may_store, SlowStorage.fails = asyncio.Event(), True
    SlowStorage.may_store.set()
    arguments = {"site": site.url, "go": go}
    failing = {**settings, "FEED_STORAGES": dict.fromkeys(("file", "", "remote"), SlowStorage)}
    await crawls.run(Many, failing, queue=queue, **arguments)
    crawl = crawls.begin(Many, settings, queue=queue, **arguments)
    await wait_until(lambda: "apify_rq" in crawl.log_text and "resuming" in crawl.log_text)
    await asyncio.sleep(0)
    await crawl.crawler.stop_async()
    await crawl.end()
    assert "The feeds have got only" in crawl.log_text
    crawl = await crawls.run(Many, settings, queue=queue, **arguments)
    (found,) = contents(folder).values()
    assert found == Counter(range(Many.count))
    assert crawl.paths == []


async def test_a_storage_that_appends_gets_only_what_it_has_not(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
    file = tmp_path / "items.jl"
    settings = {
        **UNNAMED,
        "FEED_STORAGES": {"remote": RemoteFile},
        "FEEDS": {f"remote://{file}": {"format": "jsonlines", "overwrite": False}},
    }
    first = {**settings, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Links, first, queue=queue, site=site.url)
    assert lines(file.read_text()) == ["/"]
    await crawls.run(Links, settings, queue=queue, site=site.url)
    assert Counter(lines(file.read_text())) == Counter(["/", "/a", "/b"])


class NeedsPassword(RemoteFile):
    def __init__(self, uri: str, *, feed_options: Any = None) -> None:
        super().__init__(uri.replace("me:hunter2@", "", 1), feed_options=feed_options)
        assert "me:hunter2@" in uri


async def test_the_password_of_a_storage_is_not_stored(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """All runs use the name that the first one has given, and each its own password."""
    site.serve({"/": links("/a"), "/a": "page"})
    folder = tmp_path / "feeds"
    folder.mkdir()
    uri = f"remote://me:hunter2@{folder}/items-%(batch_time)s.jl"
    settings = {
        **UNNAMED,
        "FEED_STORAGES": {"remote": NeedsPassword},
        "FEEDS": {uri: {"format": "jsonlines", "overwrite": False}},
    }
    for few in ({"CLOSESPIDER_PAGECOUNT": 1}, {}):
        await crawls.run(Links, {**settings, **few}, queue=queue, site=site.url)
    (file,) = folder.iterdir()
    assert lines(file.read_text()) == ["/", "/a"]
    stored = b"".join(file.read_bytes() for file in queue.folder.glob(f"{FILE_NAME}*"))
    assert b"items-" in stored
    assert b"hunter2" not in stored


async def test_a_worker_gets_back_what_it_has_saved_itself(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    feed = {"format": "jsonlines", "overwrite": True}

    def settings(key: str) -> dict[str, Any]:
        feeds = {str(tmp_path / key): feed}
        return {"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_CLIENT_KEY": key, "FEEDS": feeds}

    queue = await killed_at_b(site, queue, crawls, settings("x"), tmp_path / "none")
    held = Held()
    site.serve({"/b": held})
    crawl = await crawls.start(Links, settings("x"), queue=queue, site=site.url)
    other = await crawls.start(Links, settings("y"), queue=queue, site=site.url)
    await begun(held)
    let_go(held)
    await asyncio.gather(crawl.end(), other.end())
    assert contents(tmp_path)["x"] == Counter(["/", "/a", "/b"])
    assert not other.items
    assert saved(queue) == ["/", "/a", "/b"]


async def test_a_run_that_saves_nothing_is_missed(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
    await crawls.run(Links, {**UNNAMED, "CLOSESPIDER_PAGECOUNT": 1}, queue=queue, site=site.url)
    settings = {**UNNAMED, "FEEDS": {str(tmp_path / "items.jl"): {"format": "jsonlines"}}}
    crawl = await crawls.run(Links, settings, queue=queue, site=site.url)
    assert "Earlier runs of this crawl have not saved their items" in crawl.log_text
