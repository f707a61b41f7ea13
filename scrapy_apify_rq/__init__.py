"""A Scrapy scheduler whose queue is an Apify request queue."""

from scrapy_apify_rq.addon import Addon
from scrapy_apify_rq.middlewares import DownloaderMiddleware, SpiderMiddleware
from scrapy_apify_rq.scheduler import Scheduler

__all__ = ["Addon", "DownloaderMiddleware", "Scheduler", "SpiderMiddleware"]
