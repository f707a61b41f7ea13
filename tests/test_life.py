"""The life of an entry: each row of the table in the README, read back from the queue."""

from __future__ import annotations

from pathlib import Path

from tests.project import Project
from tests.site import Page, Site, links

SPIDER = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    def parse_page(self, response):
        yield {"url": response.url}
"""


def test_a_crawled_page_is_handled(tmp_path: Path) -> None:
    with Site({"/": links("/a", "/b"), "/a": "a", "/b": "b"}) as site:
        project = Project(tmp_path, SPIDER, site=site.url)
        crawl = project.crawl()
    assert crawl.stats["item_scraped_count"] == 2
    entry = project.entry("/a")
    assert entry.handled_at is not None
    assert entry.loaded_url == f"{site.url}/a"
    assert entry.error_messages == []
    assert entry.retry_count == 0
    assert entry.user_data["label"] == "parse_page"
    assert project.info().pending == 0


def test_a_page_that_fails_twice_is_one_entry(tmp_path: Path) -> None:
    with Site({"/": links("/a"), "/a": [503, 503, "a"]}) as site:
        project = Project(tmp_path, SPIDER, site=site.url)
        crawl = project.crawl()
    entry = project.entry("/a")
    assert entry.retry_count == 2
    assert entry.error_messages == ["503 Service Unavailable"] * 2
    assert entry.handled_at is not None
    assert not entry.failed
    assert crawl.stats["apify_rq/retried"] == 2


def test_a_page_that_gives_up_has_one_error_more_than_retries(tmp_path: Path) -> None:
    with Site({"/": links("/a"), "/a": Page(status=500)}) as site:
        project = Project(tmp_path, SPIDER, site=site.url)
        project.crawl()
    entry = project.entry("/a")
    assert entry.retry_count == 2
    assert entry.error_messages == ["500 Internal Server Error"] * 3
    assert entry.failed
