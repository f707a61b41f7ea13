"""A Scrapy scheduler whose queue is an Apify request queue."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from scrapy_apify_rq.addon import Addon
    from scrapy_apify_rq.crawl.middlewares import DownloaderMiddleware, SpiderMiddleware
    from scrapy_apify_rq.crawl.scheduler import Scheduler

__all__ = ["Addon", "DownloaderMiddleware", "Scheduler", "SpiderMiddleware"]

_MODULES: Final = {
    "Addon": "addon",
    "DownloaderMiddleware": "crawl.middlewares",
    "Scheduler": "crawl.scheduler",
    "SpiderMiddleware": "crawl.middlewares",
}


def __getattr__(name: str) -> Any:
    """Load late what only a crawl needs: to offer ``scrapy rq``, Scrapy imports this package at
    each of its commands.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
