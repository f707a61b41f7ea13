"""Installation in one line: ``ADDONS = {"scrapy_apify_rq.Addon": 500}``.

https://docs.scrapy.org/en/latest/topics/addons.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scrapy.exceptions import NotConfigured
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from scrapy_apify_rq.actor import spider_input
from scrapy_apify_rq.config import is_enabled
from scrapy_apify_rq.crawl.middlewares import DownloaderMiddleware, SpiderMiddleware
from scrapy_apify_rq.crawl.refusal import tell_in_one_line
from scrapy_apify_rq.crawl.scheduler import Scheduler

if TYPE_CHECKING:
    from typing import Self

    from scrapy.crawler import Crawler

# Next to the downloader, and next to the spider: see the middlewares.
_INNERMOST: Final = 10_000


# See ProxyMiddleware.
_AFTER_HTTP_PROXY: Final = 760
_OF_THE_SDK: Final = "apify.scrapy."


class Addon:
    """Installs the scheduler and the middlewares, unless the project has installed them itself."""

    @classmethod
    def update_pre_crawler_settings(cls, settings: BaseSettings) -> None:
        spider_input.install(settings)

    def __init__(self, crawler: Crawler | None = None) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        tell_in_one_line()
        return cls(crawler)

    def update_settings(self, settings: BaseSettings) -> None:
        if not is_enabled(settings):
            raise NotConfigured
        settings.set("SCHEDULER", Scheduler, "addon")
        if str(settings["SCHEDULER"]).startswith(_OF_THE_SDK):
            raise NotConfigured(
                "apply_apify_settings() has set SCHEDULER, which takes precedence. Call del"
                ' settings["SCHEDULER"] after it to keep the requests in a request queue, or leave'
                " the call out: docs/moving-from-template.md says what replaces it"
            )
        # Not issubclass: for Scrapy, any class with the same methods is a subclass of a scheduler.
        if Scheduler not in load_object(settings["SCHEDULER"]).__mro__:
            raise NotConfigured(
                f"the SCHEDULER setting is {settings['SCHEDULER']!r} and takes precedence; remove"
                " it to keep the requests in a request queue"
            )
        for name, middleware in (
            ("DOWNLOADER_MIDDLEWARES", DownloaderMiddleware),
            ("SPIDER_MIDDLEWARES", SpiderMiddleware),
        ):
            settings.setdefault_in_component_priority_dict(name, middleware, _INNERMOST)
        if settings.get("APIFY_RQ_PROXY"):
            from scrapy_apify_rq.actor.proxy_middleware import ProxyMiddleware

            settings.setdefault_in_component_priority_dict(
                "DOWNLOADER_MIDDLEWARES", ProxyMiddleware, _AFTER_HTTP_PROXY
            )
        if self._crawler is not None:
            spider_input.report_missing(self._crawler)
