"""Crawl two spiders in one process, in the way that the first argument names."""

import atexit
import gc
import sys
from typing import Any

from scrapy import Request
from scrapy.crawler import AsyncCrawlerProcess, AsyncCrawlerRunner, CrawlerProcess, CrawlerRunner
from scrapy.http import Response
from scrapy.utils.defer import deferred_f_from_coro_f
from scrapy.utils.project import get_project_settings
from scrapy.utils.reactor import install_reactor

from tests.support.spiders import Links


class First(Links):
    name = "first"

    def parse(self, response: Response) -> Any:
        print("frozen:", gc.get_freeze_count() > 0)
        return super().parse(response)


class Second(First):
    name = "second"

    async def start(self) -> Any:
        yield Request(f"{self.site}/1")


def process(kind: type[CrawlerProcess | AsyncCrawlerProcess], settings: Any, site: str) -> None:
    process = kind(settings)
    for name in ("first", "second"):
        process.crawl(name, site=site)
    process.start()


def runner(settings: Any, site: str) -> None:
    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    from twisted.internet import reactor

    runner = CrawlerRunner(settings)
    for name in ("first", "second"):
        runner.crawl(name, site=site)
    runner.join().addBoth(lambda _: reactor.stop())
    reactor.run()


def async_runner(settings: Any, site: str) -> None:
    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    from twisted.internet.task import react

    async def crawl(_: object) -> None:
        runner = AsyncCrawlerRunner(settings)
        for name in ("first", "second"):
            await runner.crawl(name, site=site)  # one after the other

    react(deferred_f_from_coro_f(crawl))


WAYS = {
    "CrawlerProcess": lambda *given: process(CrawlerProcess, *given),
    "AsyncCrawlerProcess": lambda *given: process(AsyncCrawlerProcess, *given),
    "CrawlerRunner": runner,
    "AsyncCrawlerRunner": async_runner,
}

if __name__ == "__main__":
    atexit.register(lambda: print("frozen at the end:", gc.get_freeze_count()))
    WAYS[sys.argv[1]](get_project_settings(), sys.argv[2])
