"""Spiders run from scripts, from single files, or several in one process."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.project import Project
from tests.support.website import Site, links

pytestmark = pytest.mark.usefixtures("backend")

PREAMBLE = """
import asyncio
import atexit
import gc
import scrapy.crawler
from scrapy.utils.project import get_project_settings

settings = get_project_settings()
atexit.register(lambda: print("frozen at the end:", gc.get_freeze_count()))
"""
SCRIPTS = {
    "CrawlerProcess": """
        process = scrapy.crawler.CrawlerProcess(settings)
        process.crawl("spider")
        process.crawl("other")
        process.start()
    """,
    "AsyncCrawlerProcess": """
        process = scrapy.crawler.AsyncCrawlerProcess(settings)
        process.crawl("spider")
        process.crawl("other")
        process.start()
    """,
    "CrawlerRunner": """
        from scrapy.utils.reactor import install_reactor
        install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
        from twisted.internet import reactor

        runner = scrapy.crawler.CrawlerRunner(settings)
        runner.crawl("spider")
        runner.crawl("other")
        runner.join().addBoth(lambda _: reactor.stop())
        reactor.run()
    """,
    "AsyncCrawlerRunner": """
        from twisted.internet.task import react
        from scrapy.utils.defer import deferred_f_from_coro_f
        from scrapy.utils.reactor import install_reactor
        install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")

        async def crawl(_):
            runner = scrapy.crawler.AsyncCrawlerRunner(settings)
            await runner.crawl("spider")  # one after the other
            await runner.crawl("other")

        react(deferred_f_from_coro_f(crawl))
    """,
}
TWO_SPIDERS = """
import gc

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        print("frozen:", gc.get_freeze_count() > 0)
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href)


class Other(Spider):
    name = "other"
    start_urls = [SITE + "/1"]
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_spiders_in_one_process_have_a_queue_each(tmp_path: Path, script: str) -> None:
    with Site({"/": links("/1"), "/1": links("/2")}, default="page") as site:
        settings = {"APIFY_RQ_NAME": None, "APIFY_RQ_GC_FREEZE": True}
        project = Project(tmp_path, TWO_SPIDERS, site=site.url, settings=settings)
        crawl = project.run(script=PREAMBLE + dedent(SCRIPTS[script]))
    assert crawl.returncode == 0, crawl.log
    assert "ERROR" not in crawl.log
    assert sorted(site.paths) == ["/", "/1", "/1", "/2", "/2"]
    # What is spared the garbage collector is given back to it.
    assert "frozen: True" in crawl.output
    assert "frozen at the end: 0" in crawl.output
    for spider, pages in (("spider", 3), ("other", 2)):
        info = project.info(f"scrapybot-{spider}")
        assert (info.handled, info.pending) == (pages, 0)


def test_a_spider_in_a_single_file_is_crawled(tmp_path: Path) -> None:
    with Site({"/": links("/1"), "/1": "page"}) as site:
        file = tmp_path / "alone" / "spider.py"
        file.parent.mkdir()
        file.write_text(
            f"import scrapy\nSITE = {site.url!r}\n{TWO_SPIDERS.partition('class O')[0]}"
        )
        project = Project(tmp_path / "project", "")  # only for its clean environment
        crawl = project.run("runspider", str(file), "-s", 'ADDONS={"scrapy_apify_rq.Addon": 500}')
    assert crawl.returncode == 0, crawl.log
    assert sorted(site.paths) == ["/", "/1"]
    assert project.info().handled == 2


def test_a_scheduler_of_the_project_takes_precedence_and_the_log_says_so(tmp_path: Path) -> None:
    with Site({"/": links("/1"), "/1": "page"}) as site:
        settings = {"SCHEDULER": "project.spiders.Mine"}
        source = TWO_SPIDERS + (
            "from scrapy.core.scheduler import Scheduler\n"
            "class Mine(Scheduler):\n"
            "    def open(self, spider):\n"
            "        self.stats.set_value('test/mine', True)\n"
            "        return super().open(spider)\n"
        )
        project = Project(tmp_path, source, site=site.url, settings=settings)
        crawl = project.run("crawl", "spider")
    assert crawl.returncode == 0, crawl.log
    assert crawl.stats["test/mine"] is True
    assert sorted(site.paths) == ["/", "/1"]
    assert not (project.folder / "storage").exists()
    warnings = [line for line in crawl.log.splitlines() if " WARNING: " in line]
    assert len(warnings) == 1
    assert "SCHEDULER setting is 'project.spiders.Mine'" in warnings[0]
    assert "ERROR" not in crawl.log
