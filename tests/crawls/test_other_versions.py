"""What only another version of the project can read stays pending, and everything else goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from scrapy.http import Response

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import Pages, SiteSpider
from tests.support.website import Site

PATHS = [f"/{number}" for number in range(20)]
ACCESS = [{}, {"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_LOCK_SECS": 60}]


def asking_for(url: str, **blob: Any) -> Entry:
    user_data = {"scrapy": {"v": 1, **blob}}
    return Entry(id=request_id(url), unique_key=url, url=url, user_data=user_data)


class Renamed(SiteSpider):
    """``Pages`` after its callback was renamed."""

    def parse(self, response: Response) -> None:
        self.note(response)

    def parse_detail(self, response: Response) -> None:
        self.note(response)


async def fill(site: Site, queue: Queue) -> None:
    site.serve({"/": "page", "/new": "page", **dict.fromkeys(PATHS, "page")})
    await queue.add(*[asking_for(f"{site.url}{path}", callback="parse_page") for path in PATHS])
    await queue.add(asking_for(f"{site.url}/new", callback="parse_detail"))


def complaints(crawl: Crawl) -> list[str]:
    return [line for line in crawl.log_text.split("\n") if "parse_page" in line]


@pytest.mark.parametrize("access", ACCESS, ids=["single", "shared"])
async def test_a_renamed_callback_burns_no_entry(
    site: Site, any_queue: Queue, crawls: Crawls, access: dict[str, Any]
) -> None:
    """The entries that it can read are behind more than one claim of those that it cannot."""
    await fill(site, any_queue)
    settings = {**access, "APIFY_RQ_WINDOW": 4}
    crawl = await crawls.run(Renamed, settings, queue=any_queue, site=site.url)
    assert sorted(crawl.spider.handled) == ["/", "/new"]
    assert crawl.reason == "apify_rq_missing"
    assert crawl.stats["apify_rq/missing"] == 20
    assert "apify_rq/failed" not in crawl.stats
    once, closing = complaints(crawl)
    assert "old_name = new_name" in once
    left = "20 entries left pending, which this version of the project cannot read"
    assert f"20 pending; {left}" in closing
    assert (await any_queue.info()).pending == 20
    assert any_queue.locked == 0

    back = await crawls.run(Pages, settings, queue=any_queue, site=site.url)
    assert sorted(back.spider.handled) == sorted(PATHS)
    assert back.reason == "finished"
    assert (await any_queue.info()).pending == 0


async def test_workers_of_two_versions(site: Site, any_queue: Queue, crawls: Crawls) -> None:
    """What one worker cannot read, the other takes; both come to their end."""
    await fill(site, any_queue)
    settings = {**ACCESS[1], "APIFY_RQ_WINDOW": 4}
    old = await crawls.start(Renamed, settings, queue=any_queue, site=site.url)
    new = await crawls.start(Pages, settings, queue=any_queue, site=site.url)
    await old.end()
    await new.end()
    assert sorted(new.spider.handled) == sorted(PATHS)
    assert "/new" in old.spider.handled
    assert (await any_queue.info()).pending == 0


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The project's package. Nothing imports its module ``items`` by itself."""
    name = f"shop_{uuid4().hex}"
    for folder in (name, f"{name}/spiders"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    text = "import dataclasses\n@dataclasses.dataclass\nclass Thing:\n    a: int\n"
    (tmp_path / name / "items.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


class Takes(SiteSpider):
    def parse(self, response: Response, thing: Any = None) -> None:
        self.handled.append(repr(thing).partition("(")[0])


@pytest.mark.parametrize("is_own", [True, False])
async def test_a_module_of_the_project_is_imported(
    site: Site, queue: Queue, crawls: Crawls, package: str, is_own: bool
) -> None:
    site.serve({"/": "page", "/1": "page"})
    thing = {"$item": [f"{package}.items:Thing", [["a", 1]]]}
    await queue.add(asking_for(f"{site.url}/1", callback="parse", cb_kwargs={"thing": thing}))
    settings = {"SPIDER_MODULES": [f"{package}.spiders"]} if is_own else {}
    crawl = await crawls.run(Takes, settings, site=site.url)
    assert sorted(crawl.spider.handled) == ["None", *(["Thing"] if is_own else [])]
    assert crawl.reason == ("finished" if is_own else "apify_rq_missing")
    assert ("APIFY_RQ_TRUSTED_MODULES" in crawl.log_text) is not is_own
