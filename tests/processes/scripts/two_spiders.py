"""Crawl two spiders of one project in one process, in the way that the first argument names."""

import atexit
import gc
import os
import sys
import warnings
from typing import Any

import scrapy.crawler
from scrapy.http import Response
from scrapy.utils.project import get_project_settings
from scrapy.utils.reactor import install_reactor

from tests.support.spiders import Links

warnings.filterwarnings("ignore", ".*returned a Deferred")  # Scrapy's parse command does


class First(Links):
    name = "first"

    def parse(self, response: Response) -> Any:
        print("frozen:", gc.get_freeze_count() > 0)
        return super().parse(response)

    parse.__doc__ = f"@url {os.environ.get('SITE')}/\n@returns requests 1 1"


class Second(First):
    name = "second"


def main(way: str, site: str) -> None:
    if way == "CrawlerRunner":
        install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    crawling = getattr(scrapy.crawler, way)(get_project_settings())
    crawling.crawl("first", site=site)
    crawling.crawl("second", site=f"{site}/1")
    if way == "CrawlerRunner":
        from twisted.internet import reactor

        crawling.join().addBoth(lambda _: reactor.stop())
        reactor.run()
    else:
        crawling.start()


if __name__ == "__main__":
    atexit.register(lambda: print("frozen at the end:", gc.get_freeze_count()))
    main(*sys.argv[1:])
