"""Installation in one line: ``ADDONS = {"scrapy_apify_rq.Addon": 500}``.

https://docs.scrapy.org/en/latest/topics/addons.html
"""

from __future__ import annotations

from typing import Final

from scrapy.exceptions import NotConfigured
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from scrapy_apify_rq.config import is_enabled
from scrapy_apify_rq.crawl.middlewares import DownloaderMiddleware, SpiderMiddleware
from scrapy_apify_rq.crawl.scheduler import Scheduler

# Next to the downloader, and next to the spider: see the middlewares.
_INNERMOST: Final = 10_000


class Addon:
    """Installs the scheduler and the middlewares, unless the project has installed them itself."""

    def update_settings(self, settings: BaseSettings) -> None:
        if not is_enabled(settings):
            raise NotConfigured
        settings.set("SCHEDULER", Scheduler, "addon")
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
