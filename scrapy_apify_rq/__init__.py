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
    """Import a public name when it is first used.

    Scrapy imports this package for each of its commands, to offer ``scrapy rq``. Only a crawl needs
    the rest.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
