"""A crawl takes up its own queue only: that of the same spider with the same arguments."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.http import Response

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.backends.sqlite.queue import FILE_NAME
from scrapy_apify_rq.errors import ConfigError
from tests.support.command_line import rq, rq_ok
from tests.support.crawling import Crawls
from tests.support.first_edition import downgrade
from tests.support.queues import Queue, ServedQueue
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

UNNAMED = {"APIFY_RQ_NAME": None, "BOT_NAME": "bot", "SPIDER_MODULES": [__name__]}


class Category(SiteSpider):
    """Crawls the pages of one category, and keeps nothing of its arguments as it was."""

    name = "category"

    def __init__(self, site: str, **arguments: Any) -> None:
        super().__init__(site)
        self.path = arguments.pop("cat").lower()

    async def start(self) -> Any:
        yield self.request(f"/{self.path}/")

    def request(self, path: str) -> Any:
        return Response(self.site).follow(f"{self.site}{path}", self.parse_page)

    def parse_page(self, response: Response) -> Iterator[Any]:
        for link in response.css("a::attr(href)").getall():
            yield response.follow(link, self.parse_page)


def serve(site: Site) -> None:
    for cat in "ab":
        paths = [f"/{cat}/{number}" for number in range(5)]
        site.serve({f"/{cat}/": links(*paths), **dict.fromkeys(paths, "page")})


async def test_other_arguments_are_another_crawl(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    """An interrupted crawl of category A is left alone by one of B, and resumed by one of A."""
    serve(site)
    stop = {**UNNAMED, "CONCURRENT_REQUESTS": 1, "CLOSESPIDER_PAGECOUNT": 3}
    first = await crawls.run(Category, stop, queue=any_queue, site=site.url, cat="A")
    other = await crawls.run(Category, UNNAMED, queue=any_queue, site=site.url, cat="B")
    assert set(other.paths) == {"/b/", *(f"/b/{n}" for n in range(5))}
    # In another order, and for another scrapyd job.
    again = {"cat": "A", "_job": "2", "site": site.url}
    rest = await crawls.run(Category, UNNAMED, queue=any_queue, **again)
    assert "of this spider with these values of cat, site: resuming, " in rest.log_text
    assert sorted(first.paths + rest.paths) == ["/a/", *(f"/a/{n}" for n in range(5))]


async def test_two_crawlers_of_one_class_in_one_process(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    serve(site)
    both = [
        crawls.begin(Category, UNNAMED, queue=any_queue, site=site.url, cat=cat) for cat in "AB"
    ]
    for crawl, cat in zip(both, "ab", strict=True):
        await crawl.end()
        assert sorted(crawl.paths) == [f"/{cat}/", *(f"/{cat}/{n}" for n in range(5))]
        assert "Another program" not in crawl.log_text


class AtHome(Links):
    """Needs no arguments."""

    url = ""

    def __init__(self) -> None:
        super().__init__(site=self.url)


async def test_queue_of_the_first_edition(
    site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which had no arguments, and another format."""
    paths = [f"/{number}" for number in range(8)]
    site.serve({"/": links(*paths), **dict.fromkeys(paths, "page")})
    monkeypatch.setattr(AtHome, "url", site.url)
    stop = {**UNNAMED, "CONCURRENT_REQUESTS": 1, "CLOSESPIDER_PAGECOUNT": 2}
    await crawls.run(AtHome, stop)
    downgrade(queue.folder)
    with closing(sqlite3.connect(queue.folder / FILE_NAME)) as db:
        assert db.execute("SELECT name, title FROM queues").fetchall() == [("bot-spider", None)]
    resumed = await crawls.run(AtHome, UNNAMED)
    assert "Request queue 'bot-spider' in " in resumed.log_text
    assert re.search(": resuming, [1-7] pending, [2-8] handled", resumed.log_text)
    assert sorted(site.paths) == ["/", *paths]


async def test_values_of_arguments_stay_here(
    site: Site, any_queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """The log names the arguments only, and so does the API; the file has what is no secret."""
    site.serve({"/": "page"})
    arguments = {"site": site.url, "password": "hunter2", "colour": "crimson", "db": object()}
    crawl = await crawls.run(Links, UNNAMED, queue=any_queue, **arguments)
    assert "with these values of colour, db, password, site: new" in crawl.log_text
    assert "arguments db cannot be written as text" in crawl.log_text
    ours = "\n".join(r.getMessage() for r in crawl.log if r.name.startswith("scrapy_apify_rq"))
    stored = b"".join(file.read_bytes() for file in any_queue.folder.glob(f"{FILE_NAME}*"))
    assert b"spider: colour" in stored
    assert "hunter2" not in ours
    assert b"hunter2" not in stored
    assert "crimson" not in ours
    assert (b"crimson" in stored) == (not isinstance(any_queue, ServedQueue))
    if not isinstance(any_queue, ServedQueue):
        assert (any_queue.folder / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_arguments_are_found_in_a_crawl_only() -> None:
    assert scrapy_private.arguments(Crawler(Spider)) is None


async def test_queue_of_an_embedded_crawl_is_taken(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    """By a crawl alone, or by workers; a second one is refused at once, and fetches nothing."""
    shared = {"APIFY_RQ_ACCESS": "shared"}
    for first, second in (({}, {}), ({}, shared), (shared, {})):
        held = Held("page")
        site.serve({"/": held})
        crawl = await crawls.start(Links, first, site=site.url)
        await wait_until(held.begun.is_set)
        with pytest.raises(ConfigError) as refused:
            await crawls.run(Links, second, site=site.url)
        assert "is being crawled already, by this process (" in str(refused.value)
        assert 'APIFY_RQ_ACCESS = "shared"' in str(refused.value)
        purged = await rq(queue, "purge", "--yes")
        assert purged.code == 1
        assert "is being crawled already" in purged.err
        held.go.set()
        await crawl.end()
        assert crawl.paths == ["/"]
        await rq_ok(queue, "purge", "--yes")


async def test_refused_even_if_both_start_at_the_same_time(
    site: Site, queue: Queue, crawls: Crawls
) -> None:
    site.serve({"/": "page"})
    one, other = (crawls.begin(Links, site=site.url) for _ in "ab")
    await one.end()
    with pytest.raises(ConfigError, match="is being crawled already"):
        await other.end()
    assert site.paths == ["/"]


async def test_commands_find_the_spiders_queue(
    site: Site, any_queue: Queue, crawls: Crawls
) -> None:
    serve(site)

    async def status(*words: str) -> Any:
        words = ("status", "--json", "--spider", "category", *words)
        return await rq(any_queue, *words, settings=UNNAMED)

    assert "there is no request queue 'bot-category' in" in (await status()).err
    settings = {**UNNAMED, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Category, settings, queue=any_queue, site=site.url, cat="A", token="T")
    assert (await status()).json["total"] == 6  # the only one
    added = await rq_ok(
        any_queue, "add", f"{site.url}/a/6", "--spider", "category", settings=UNNAMED
    )
    assert added.out.startswith("1 added")
    assert (await status()).json["total"] == 7
    await crawls.run(Category, UNNAMED, queue=any_queue, site=site.url, cat="B")
    which = await status()
    assert which.code == 2
    assert "spider 'category' has several queues in" in which.err
    names = [line.split()[0] for line in which.err.splitlines() if line.startswith("  bot-")]
    assert len(names) == 2
    shown = "cat, site, token"
    if not isinstance(any_queue, ServedQueue):
        shown = f"cat='A', site='{site.url}', token=***"
    assert f"  {shown}  (" in which.err
    of_a = ["-a", "token=T", "-a", f"site={site.url}", "-a", "cat=A"]
    assert (await status(*of_a)).json["total"] == 7
    assert {(await status("-q", name)).json["total"] for name in names} == {6, 7}
    assert "there is no request queue" in (await status("-a", "cat=A")).err
    assert (await status("-a", "cat")).code == 2
