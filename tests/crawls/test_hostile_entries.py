"""What whoever can write to a queue can make a crawl do, and what not: see SECURITY.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.crawling import Crawls
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import SiteSpider
from tests.support.website import Site


def asking_for(url: str, callback: str) -> Entry:
    user_data = {"scrapy": {"v": 1, "callback": callback}, "label": callback}
    return Entry(id=request_id(callback), unique_key=callback, url=url, user_data=user_data)


class Quiet(SiteSpider):
    """Has hooks and callbacks of its own."""

    closed_with: tuple[Any, ...] = ()

    def parse(self, response: Response) -> None:
        self.note(response)

    def _parse_page(self, response: Response) -> None:
        self.note(response)

    def closed(self, *arguments: Any) -> None:
        self.closed_with += arguments


async def test_a_method_for_scrapy_to_call_is_not_a_callback(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    hooks = [
        "_set_crawler",
        "closed",
        "start",
        "from_crawler",
        "update_settings",
        "log",
        "__init__",
    ]
    callbacks = ["parse", "_parse_page", "note"]
    for name in (*hooks, *callbacks):
        site.serve({"/": "page", f"/{name}": "page"})
        await queue.add(asking_for(f"{site.url}/{name}", name))
    crawl = await crawls.run(Quiet, site=site.url)
    assert sorted(crawl.spider.handled) == sorted(["/", *(f"/{name}" for name in callbacks)])
    assert crawl.spider.closed_with == ("finished",)
    assert all([(await queue.entry(f"/{hook}")).failed for hook in hooks])
    assert crawl.stats["apify_rq/undecodable"] == len(hooks)


@pytest.mark.parametrize("schemes", [None, ["http", "file"]])
async def test_a_queue_of_the_api_asks_for_web_pages_only(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path, schemes: list[str] | None
) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("secret")
    site.serve({"/": "page"})
    await served.add(asking_for(file.as_uri(), "parse"))
    settings = {} if schemes is None else {"APIFY_RQ_SCHEMES": schemes}
    crawl = await crawls.run(Quiet, settings, queue=served, site=site.url)
    entry = await served.entry("secret.txt")
    if schemes is None:
        assert crawl.spider.handled == ["/"]
        assert "APIFY_RQ_SCHEMES" in entry.error_messages[0]
    else:
        assert len(crawl.spider.handled) == 2
        assert not entry.failed


class ReadsAFile(Quiet):
    file = ""

    def parse(self, response: Response) -> Any:
        self.note(response)
        if response.url.endswith("/"):
            yield Request(Path(self.file).as_uri())


async def test_what_the_spider_itself_asks_for_is_crawled_from_memory(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    file = tmp_path / "own.txt"
    file.write_text("own")
    site.serve({"/": "page"})
    crawl = await crawls.run(ReadsAFile, queue=served, site=site.url, file=str(file))
    assert crawl.spider.handled == ["/", str(file)]
    assert (await served.info()).total == 1
    assert crawl.stats["scheduler/unserializable"] == 1
    assert "APIFY_RQ_SCHEMES" in crawl.log_text
