"""Entries of other programs cost no page, however oddly they are written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.command_line import rq_ok
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.website import Site


class Reads(SiteSpider):
    """Crawls what is in the queue, and keeps the requests and bodies that its callback gets."""

    def __init__(self, site: str, **arguments: Any) -> None:
        super().__init__(site, **arguments)
        self.responses: list[Response] = []

    async def start(self) -> AsyncIterator[Any]:
        for path in ():
            yield path

    def parse(self, response: Response) -> Iterator[Any]:
        self.note(response)
        self.responses.append(response)
        yield from ()


@pytest.fixture(autouse=True)
def odd_answers(any_queue: Queue) -> Iterator[None]:
    """Our own server stores nothing odd; here it shows what it finds, against its description."""
    yield
    if isinstance(any_queue, ServedQueue):
        any_queue.api.complaints.clear()


async def write(queue: Queue, address: str, entries: dict[str, dict[str, Any]]) -> None:
    """Store these fields as they are, by the paths of their entries."""
    for path in entries:
        await queue.add(Entry(id=request_id(path), unique_key=path, url=address + path))
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db, db:
        for path, fields in entries.items():
            raw = {"id": request_id(path), "uniqueKey": path, "url": address + path, **fields}
            db.execute(
                "UPDATE requests SET json = ? WHERE id = ?", (json.dumps(raw), request_id(path))
            )


async def test_odd_values_cost_no_page(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    odd: dict[str, dict[str, Any]] = {
        "/headers": {"headers": {"N": 5, "B": True, "List": ["x", 2], "None": None}},
        "/counts": {"retryCount": "many", "errorMessages": "once", "handledAt": "yesterday"},
        "/more": {"loadedUrl": 5, "noRetry": [], "method": {}, "userData": "text"},
        "/buffer": {"method": "POST", "payload": {"type": "Buffer", "data": [0, 255]}},
        "/number": {"method": "POST", "payload": 5, "userData": {"label": 5}},
        "/texts": {
            "headers": {"H": "\ud800"},
            "userData": {"\udc00": "\ud83d"},
            "errorMessages": ["\ud800", 5],
            "retryCount": 2,
        },
    }
    await write(any_queue, site.url, odd)
    surrogate = {"url": f"{site.url}/url\ud800", "uniqueKey": "key\ud800"}
    await write(any_queue, site.url, {"key\ufffd": surrogate})
    found = "/url%EF%BF%BD"
    site.serve(dict.fromkeys([*odd, found], "page"))
    crawl = await crawls.run(Reads, queue=any_queue, site=site.url)
    assert sorted(crawl.spider.handled) == sorted([*odd, found])
    assert (crawl.reason, (await any_queue.info()).pending) == ("finished", 0)
    assert "apify_rq/undecodable" not in crawl.stats
    hits = {hit.path: hit for hit in site.hits}
    sent = dict(hits["/headers"].headers)
    assert [sent.get(name) for name in ("N", "B", "List", "None")] == ["5", "true", "x, 2", None]
    assert (hits["/buffer"].body, hits["/number"].body) == (b"\0\xff", b"5")
    counts = await any_queue.entry("/counts")
    assert (counts.retry_count, counts.error_messages) == (0, ["once"])
    assert "yesterday" in counts.user_data["scrapy_unreadable"]["original"]
    assert (await any_queue.entry("/texts")).error_messages == ["\ufffd", "5"]


async def test_what_nobody_can_read_costs_no_other(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    """It is refused once, however it comes: by its id, or in a list with others."""
    values = {f"/deep{depth}": "[" * depth + "]" * depth for depth in (190, 300, 2000)}
    values["/digits"] = "9" * 5000
    good = [*(f"/{n}" for n in range(80)), "/deep190"]
    nasty = {path: value for path, value in values.items() if path not in good}
    paths = [*good[:40], *nasty, *good[40:]]
    await write(any_queue, site.url, {path: {"userData": {"x": path}} for path in paths})
    with closing(sqlite3.connect(any_queue.folder / FILE_NAME)) as db, db:
        for path, text in nasty.items():
            db.execute(
                "UPDATE requests SET json = replace(json, ?, ?)",
                (f'{{"x": "{path}"}}', f'{{"x": {text}}}'),
            )
    site.serve(dict.fromkeys(good, "page"))
    crawl = await crawls.run(Reads, queue=any_queue, site=site.url)
    assert sorted(crawl.spider.handled) == sorted(good)
    assert (crawl.reason, (await any_queue.info()).pending) == ("finished", 0)
    assert crawl.stats["apify_rq/undecodable"] == len(nasty)
    for path, value in nasty.items():
        entry = await any_queue.entry(path)
        assert entry.failed
        assert value in entry.user_data["scrapy_unreadable"]["original"]


async def test_retry_of_an_entry_that_cannot_be_read(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    """It is refused again, with all that it held; it is not sent without what could not be read."""
    newer = {"scrapy": {"v": 9, "meta": {"retry_times": 3}, "priority": 1}}
    broken: dict[str, dict[str, Any]] = {
        "/headers": {"headers": ["Authorization: x"], "userData": {"page": 3}},
        "/newer": {"userData": newer, "payload": "body", "method": "POST"},
    }
    await write(any_queue, site.url, broken)
    for _ in "12":
        crawl = await crawls.run(Reads, queue=any_queue, site=site.url)
        assert crawl.stats["apify_rq/undecodable"] == 2
        assert site.hits == []
        stored = {path: await any_queue.entry(path) for path in broken}
        assert all(entry.failed for entry in stored.values())
        done = await rq_ok(any_queue, "retry", "--failed")
        assert done.out == "2 entries went back to the queue\n"
        headers, other = [await any_queue.entry(path) for path in broken]
        original = headers.user_data.pop("scrapy_unreadable")["original"]
        assert json.loads(original) == {"headers": ["Authorization: x"]}
        assert headers.user_data == {"page": 3}
        assert (headers.retry_count, headers.error_messages, headers.handled_at) == (0, [], None)
        assert (other.user_data, other.payload, other.method) == (newer, "body", "POST")


class Retries(Reads):
    def parse(self, response: Response) -> Iterator[Any]:
        yield from super().parse(response)
        if "links" in response.url:
            yield Request(f"{self.site}/child", meta=response.meta)


async def test_data_of_crawlee(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    kept = {
        "/tried": {"maxRetries": 1, "crawlDepth": 2, "sessionRotationCount": 1},
        "/links": {"skipNavigation": True, "crawlDepth": 4},
    }
    entries = {path: {"userData": {"__crawlee": data}} for path, data in kept.items()}
    await write(any_queue, site.url, entries)
    site.serve({"/tried": [503, 503, "page"], "/child": "page"})
    settings = {"RETRY_TIMES": 5, "HTTPERROR_ALLOWED_CODES": [503]}
    crawl = await crawls.run(Retries, settings, queue=any_queue, site=site.url)
    assert sorted(site.paths) == ["/child", "/tried", "/tried"]
    depths = {
        response.url.removeprefix(site.url): response.meta["depth"]
        for response in crawl.spider.responses
    }
    assert depths == {"/tried": 2, "/links": 4, "/child": 5}
    (empty,) = (one for one in crawl.spider.responses if one.url.endswith("/links"))
    assert (empty.status, empty.css("a").getall()) == (200, [])
    assert crawl.stats["apify_rq/navigation_skipped"] == 1
    stored = {path: await any_queue.entry(path) for path in kept}
    assert {path: entry.user_data["__crawlee"] for path, entry in stored.items()} == kept
    assert stored["/tried"].retry_count == 1
    assert (await any_queue.info()).pending == 0
