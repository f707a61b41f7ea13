"""``scrapy rq items``, and what other commands say about items."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scrapy import Field, Item, Request
from scrapy.http import Response

from tests.support.command_line import rq, rq_ok
from tests.support.crawling import Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links, SiteSpider
from tests.support.website import Site, links


class Scrapes(SiteSpider):
    async def start(self) -> AsyncIterator[Any]:
        yield {"path": "start", "price": 1}
        yield Request(f"{self.site}/")

    def parse(self, response: Response) -> Iterator[Any]:
        yield {"path": "/", "price": 2}
        yield Thing(path="thing", price=3)


class Thing(Item):
    path = Field()
    price = Field()


async def test_items_of_a_crawl(site: Site, queue: Queue, crawls: Crawls, tmp_path: Path) -> None:
    site.serve({"/": "home"})
    settings = {"SPIDER_MODULES": [__name__], "APIFY_RQ_ITEMS": True}
    crawl = await crawls.run(Scrapes, settings, queue=queue, site=site.url)
    assert "the queue holds 1 handled, 0 pending and 3 items" in crawl.closing_line
    done = await rq_ok(queue, "items", settings=settings)
    expected = [("start", 1), ("/", 2), ("thing", 3)]
    assert [(item["path"], item["price"]) for item in done.lines] == expected
    assert done.err.endswith("3 exported\n")
    for name, *options in (["a.csv"], ["b.xml"], ["c.txt", "--format", "csv"], ["d.json"]):
        await rq_ok(queue, "items", "-o", str(tmp_path / name), *options, settings=settings)
    assert (tmp_path / "a.csv").read_bytes() == b"path,price\r\nstart,1\r\n/,2\r\nthing,3\r\n"
    assert (tmp_path / "c.txt").read_bytes() == (tmp_path / "a.csv").read_bytes()
    assert (tmp_path / "b.xml").read_text().count("<item>") == 3
    assert len(json.loads((tmp_path / "d.json").read_text())) == 3
    assert (await rq(queue, "items", "-o", "x.unknown", settings=settings)).code == 2
    await assert_local_storage(queue, settings, tmp_path / "local")
    assert "3 items saved" in (await rq_ok(queue, "status")).out
    assert (await rq_ok(queue, "status", "--json")).json["items"] == 3
    asked = await rq(queue, "purge", stdin=b"no\n")
    assert "and 3 saved items of request queue" in asked.out + asked.err
    purged = await rq_ok(queue, "purge", "--yes")
    assert "1 deleted, and 3 saved items" in purged.out + purged.err
    assert (await rq_ok(queue, "items")).out == ""


async def assert_local_storage(queue: Queue, settings: dict[str, Any], folder: Path) -> None:
    """Apify's SDK reads the items and goes on behind them."""
    words = ("items", "--storage", str(folder))
    done = await rq_ok(queue, *words, settings=settings)
    assert done.err.endswith("3 exported\n")
    dataset = folder / "datasets" / "default"
    numbers = ["000000001", "000000002", "000000003", "__metadata__"]
    assert sorted(file.stem for file in dataset.iterdir()) == numbers
    assert json.loads((dataset / "000000003.json").read_text()) == {"path": "thing", "price": 3}
    assert json.loads((dataset / "__metadata__.json").read_text())["item_count"] == 3
    again = await rq(queue, *words, settings=settings)
    assert (again.code, "default has items already: remove it" in again.err) == (1, True)
    for more in ("-o", "--format"):
        assert (await rq(queue, *words, more, "csv", settings=settings)).code == 2
    if find_spec("crawlee") is None:
        return
    from crawlee.configuration import Configuration
    from crawlee.storage_clients import FileSystemStorageClient
    from crawlee.storages import Dataset

    configuration = Configuration(storage_dir=str(folder), purge_on_start=False)
    client = FileSystemStorageClient()
    opened = await Dataset.open(storage_client=client, configuration=configuration)
    await opened.push_data({"path": "more"})
    prices = [item.get("price") async for item in opened.iterate_items()]
    assert prices == [1, 2, 3, None]
    assert json.loads((dataset / "000000004.json").read_text()) == {"path": "more"}


async def test_items_move_with_their_queue(
    site: Site, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """The crawl goes on elsewhere, and its feed gets the items."""
    site.serve({"/": links("/a"), "/a": "page"})
    feed = {str(tmp_path / "items.jl"): {"format": "jsonlines", "overwrite": True}}
    settings = {"APIFY_RQ_ITEMS": True, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Links, settings, queue=queue, site=site.url)
    file = str(tmp_path / "export")
    await rq_ok(queue, "export", file)
    other = Queue(tmp_path / "other")
    for _ in range(2):
        done = await rq_ok(other, "import", file)
        assert "1 item read" in done.err
    crawl = await crawls.run(Links, {"FEEDS": feed}, queue=other, site=site.url)
    assert crawl.paths == ["/a"]
    lines = (tmp_path / "items.jl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["/", "/a"]
