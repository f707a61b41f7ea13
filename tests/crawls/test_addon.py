"""However a project installs us, and however its spider is written, it crawls with our queue."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from scrapy import Spider
from scrapy.core.scheduler import Scheduler as StockScheduler

import scrapy_apify_rq
from scrapy_apify_rq.errors import ConfigError
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import Queue
from tests.support.spiders import Links
from tests.support.website import Site, links

BOTH = {
    "DOWNLOADER_MIDDLEWARES": {"scrapy_apify_rq.DownloaderMiddleware": 10_000},
    "SPIDER_MIDDLEWARES": {"scrapy_apify_rq.SpiderMiddleware": 10_000},
}
BY_HAND: dict[str, Any] = {**BOTH, "ADDONS": {}, "SCHEDULER": "scrapy_apify_rq.Scheduler"}


def assert_ours(crawl: Crawl, pages: int) -> None:
    assert crawl.reason == "finished"
    assert crawl.stats["apify_rq/handled"] == pages
    warnings = [one.getMessage() for one in crawl.log if one.levelno >= logging.WARNING]
    assert warnings == []
    assert "Disabled" not in crawl.log_text


@pytest.mark.parametrize(
    "scheduler",
    [
        "scrapy_apify_rq.Scheduler",
        "scrapy_apify_rq.crawl.scheduler.Scheduler",
        scrapy_apify_rq.Scheduler,
    ],
)
@pytest.mark.parametrize(
    "more", [{}, BOTH, BY_HAND], ids=["alone", "with the middlewares", "by hand"]
)
async def test_scheduler_and_addon(
    site: Site, crawls: Crawls, scheduler: Any, more: dict[str, Any]
) -> None:
    site.serve({"/": links("/1", "/2"), "/1": "page", "/2": "page"})
    assert_ours(await crawls.run(Links, {**more, "SCHEDULER": scheduler}, site=site.url), 3)


async def test_scheduler_in_the_settings_of_the_spider(site: Site, crawls: Crawls) -> None:
    class Custom(Links):
        custom_settings = {"SCHEDULER": "scrapy_apify_rq.Scheduler"}  # noqa: RUF012 (Scrapy's way)

    site.serve({"/": "page"})
    assert_ours(await crawls.run(Custom, site=site.url), 1)


async def test_scheduler_of_others_and_addon(site: Site, queue: Queue, crawls: Crawls) -> None:
    """It was asked for, so it wins, and the log says so."""
    name = f"{StockScheduler.__module__}.{StockScheduler.__qualname__}"
    site.serve({"/": "page"})
    crawl = await crawls.run(Links, {"SCHEDULER": name}, site=site.url)
    (warning,) = (one.getMessage() for one in crawl.log if one.levelno >= logging.WARNING)
    assert f"the SCHEDULER setting is '{name}'" in warning
    assert_stock(crawl, queue, 1)


def assert_stock(crawl: Crawl, queue: Queue, pages: int) -> None:
    assert "apify_rq/handled" not in crawl.stats
    assert len(crawl.items) == crawl.stats["scheduler/enqueued/memory"] == pages
    assert not queue.folder.exists()


@pytest.mark.parametrize("settings", [{}, BY_HAND], ids=["add-on", "by hand"])
async def test_switched_off(
    site: Site, queue: Queue, crawls: Crawls, settings: dict[str, Any]
) -> None:
    site.serve({"/": links("/1"), "/1": "page"})
    crawl = await crawls.run(Links, {**settings, "APIFY_RQ_ENABLED": False}, site=site.url)
    assert [one.getMessage() for one in crawl.log if one.levelno >= logging.WARNING] == []
    assert_stock(crawl, queue, 2)


@pytest.mark.parametrize("missing", BOTH)
async def test_scheduler_without_one_of_its_middlewares(
    site: Site, crawls: Crawls, missing: str
) -> None:
    crawl = crawls.begin(Links, {**BY_HAND, missing: {}}, site=site.url)
    with pytest.raises((ConfigError, RuntimeError)) as raised:  # Scrapy's own may follow ours
        await crawl.end()
    error = raised.value if isinstance(raised.value, ConfigError) else raised.value.__context__
    assert isinstance(error, ConfigError)
    assert f"{missing} lacks scrapy_apify_rq." in str(error)
    assert 'ADDONS = {"scrapy_apify_rq.Addon": 500}' in str(error)
    assert site.paths == []


@pytest.mark.parametrize("queue_name", ["test-queue", None])
async def test_spider_named_in_its_constructor(
    site: Site, crawls: Crawls, queue_name: str | None
) -> None:
    class Nameless(Spider):
        def __init__(self, site: str, **arguments: Any) -> None:
            self.name = "named-late"
            super().__init__(**arguments)
            self.start_urls = [f"{site}/"]

        def parse(self, response: Any) -> Any:
            yield {"url": response.url}

    site.serve({"/": "page"})
    crawl = await crawls.run(Nameless, {"APIFY_RQ_NAME": queue_name}, site=site.url)
    assert_ours(crawl, 1)
    assert len(crawl.items) == 1
    if queue_name is None:
        assert "named-late" in crawl.closing_line
