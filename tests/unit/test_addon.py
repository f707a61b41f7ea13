"""The add-on works with what the project has set by itself."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy.core.scheduler import Scheduler as StockScheduler
from scrapy.exceptions import NotConfigured
from scrapy.settings import Settings

import scrapy_apify_rq
from scrapy_apify_rq.addon import Addon
from scrapy_apify_rq.crawl.middlewares import DownloaderMiddleware, SpiderMiddleware
from scrapy_apify_rq.crawl.scheduler import Scheduler


class OwnScheduler(Scheduler):
    pass


OURS = [
    "scrapy_apify_rq.Scheduler",
    "scrapy_apify_rq.crawl.scheduler.Scheduler",
    Scheduler,
    scrapy_apify_rq.Scheduler,
    OwnScheduler,
    f"{__name__}.OwnScheduler",
]


@pytest.mark.parametrize("scheduler", OURS, ids=range(len(OURS)))
@pytest.mark.parametrize("priority", ["project", "spider", "cmdline"])
def test_our_scheduler_set_by_the_project(scheduler: object, priority: str) -> None:
    settings = Settings()
    settings.set("SCHEDULER", scheduler, priority)
    Addon().update_settings(settings)
    assert settings["SCHEDULER"] is scheduler
    assert DownloaderMiddleware in settings["DOWNLOADER_MIDDLEWARES"]
    assert SpiderMiddleware in settings["SPIDER_MIDDLEWARES"]


@pytest.mark.parametrize("scheduler", [StockScheduler, "scrapy.core.scheduler.Scheduler"])
def test_another_scheduler_set_by_the_project_takes_precedence(scheduler: object) -> None:
    settings = Settings({"SCHEDULER": scheduler})
    with pytest.raises(NotConfigured, match=r"the SCHEDULER setting is .* takes precedence"):
        Addon().update_settings(settings)
    assert not settings["DOWNLOADER_MIDDLEWARES"]


def test_after_apply_apify_settings() -> None:
    """One line says what to do, and that works."""
    settings = Settings({"SCHEDULER": "apify.scrapy.scheduler.ApifyScheduler"})
    with pytest.raises(NotConfigured, match=r'Call del settings\["SCHEDULER"\] after it'):
        Addon().update_settings(settings)
    del settings["SCHEDULER"]
    Addon().update_settings(settings)
    assert settings["SCHEDULER"] is Scheduler


def test_the_scheduler_of_scrapy_itself_is_replaced() -> None:
    settings = Settings()
    Addon().update_settings(settings)
    assert settings["SCHEDULER"] is Scheduler


@pytest.mark.parametrize(
    "key", [DownloaderMiddleware, "scrapy_apify_rq.DownloaderMiddleware"], ids=["class", "string"]
)
@pytest.mark.parametrize("order", [5, 20_000, None])
def test_middlewares_set_by_the_project_keep_its_order(key: Any, order: int | None) -> None:
    settings = Settings({"DOWNLOADER_MIDDLEWARES": {key: order, "project.Other": 1}})
    Addon().update_settings(settings)
    assert dict(settings["DOWNLOADER_MIDDLEWARES"]) == {key: order, "project.Other": 1}
