"""Begin a crawl on one backend and finish it on the other: SQLite to the API, and back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scrapy_apify_rq.entries.models import Entry
from tests import project
from tests.project import Crawl, Project
from tests.servers import Servers
from tests.support.readme import commands
from tests.support.website import Hit, Page, Site, links

SPIDER = """
    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [SITE + "/"]

        def parse(self, response, parent=None):
            for link in response.css("a::attr(href)"):
                yield response.follow(link, cb_kwargs={"parent": (response.url, 1)})
"""
PATHS = [f"/{n}" for n in range(60)]
CONCURRENCY = 4
DELAY = 0.1


class Moved(NamedTuple):
    site: Site
    hits: int
    """The number of hits when the first crawl was killed."""
    before: list[Entry]
    """The entries of the first queue, when its crawl was killed."""
    after: list[Entry]
    """The entries of the second queue, before its crawl."""
    imported: Crawl
    crawl: Crawl
    target: Project


@pytest.fixture(scope="module", params=["to the API", "to SQLite"])
def moved(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moved]:
    folder = tmp_path_factory.mktemp("moved")
    half_way = threading.Event()

    def page(hit: Hit) -> Page:
        number = int(hit.path[1:])
        if number == 30:
            half_way.set()
        return Page(links(PATHS[(number + 7) % 60], f"/more/{number % 9}"), delay=DELAY)

    pages = {"/": links(*PATHS), **dict.fromkeys(PATHS, page), PATHS[3]: 404}
    with Site(pages, default=links()) as site:
        local = _project(folder / "local", site, None)
        cloud = _project(folder / "cloud", site, servers)
        source, target = (local, cloud) if request.param == "to the API" else (cloud, local)
        with source.start("crawl", "spider") as process:
            assert half_way.wait(30)
            process.kill()
        hits = len(site.hits)
        lines = commands("Between here and the cloud")
        exporting, importing, crawling = lines[:3] if source is local else lines[3:]
        file = str(folder / "crawl.jsonl")
        exported = source.run(*_words(exporting, source is cloud, file))
        assert exported.returncode == 0, exported.log
        imported = target.run(*_words(importing, target is cloud, file))
        before, after = source.entries(), target.entries()
        assert _words(crawling, target is cloud, file) == ["crawl", "spider"]
        yield Moved(site, hits, before, after, imported, target.crawl(), target)


def _words(command: list[str], is_cloud: bool, file: str) -> list[str]:
    """The arguments of a command in the README. The token is left out; the environment has it."""
    assert command[0].startswith("APIFY_TOKEN=") == is_cloud
    words = command[2:] if is_cloud else command[1:]
    return [file if word == "crawl.jsonl" else word for word in words]


def _project(folder: Path, site: Site, servers: Servers | None) -> Project:
    project.servers = servers
    settings = {"CONCURRENT_REQUESTS": CONCURRENCY, "CONCURRENT_REQUESTS_PER_DOMAIN": CONCURRENCY}
    made = Project(folder, SPIDER, site=site.url, settings=settings)
    project.servers = None
    return made


def test_both_queues_hold_the_same_entries(moved: Moved) -> None:
    assert moved.imported.returncode == 0, moved.imported.log
    before, after = ({one.id: one.to_json() for one in entries} for entries in moved[2:4])
    assert before == after
    states = Counter("failed" if e.failed else bool(e.handled_at) for e in moved.after)
    assert states["failed"] == 1
    assert states[True] >= 10
    assert states[False] >= 10


def test_the_second_crawl_finishes(moved: Moved) -> None:
    more = {f"/more/{n}" for n in range(9)}
    assert set(moved.site.paths) == {"/", *PATHS, *more}
    assert moved.crawl.stats["finish_reason"] == "finished"
    assert moved.target.info().pending == 0


def test_only_what_was_in_flight_is_crawled_again(moved: Moved) -> None:
    again = Counter(moved.site.paths) - Counter(set(moved.site.paths))
    # A page in flight is being downloaded, is held back before its callback (older versions of
    # Scrapy do that for 0.1 s), or waits for its ack. The ack waits for the page's links, which
    # wait up to 0.1 s until a batch is full.
    assert again.total() <= 4 * CONCURRENCY
    assert moved.hits < len(moved.site.hits)
