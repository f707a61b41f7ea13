"""Several workers on one queue, in shared access: real processes, killed and stopped at will."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.project import Crawl, Project
from tests.support.website import Page, Site, links

pytestmark = pytest.mark.usefixtures("backend")

PAGES = 1000
SPIDER = """
    class Spider(scrapy.Spider):
        name = "spider"
        # The first twice: what Scrapy starts with is not filtered, and each counts.
        start_urls = [f"{SITE}/0", f"{SITE}/0", f"{SITE}/1"]

        def parse(self, response):
            yield from response.follow_all(css="a")
"""


def tree(pages: int, delay: float = 0) -> dict[str, Page]:
    """Ten new links on each page, and one to a page that others link to."""
    return {
        f"/{n}": Page(
            links(*(f"/{m}" for m in range(10 * n + 1, min(10 * n + 11, pages))), f"/{7 * n % 10}"),
            delay=delay,
        )
        for n in range(pages)
    }


def fetched(pages: int) -> Counter[str]:
    """What Scrapy fetches of the tree: what it starts with, and all that is linked to."""
    return Counter(f"/{n}" for n in range(pages)) + Counter(["/0", "/0", "/1"])


class Workers:
    """Crawls of one project at the same time."""

    def __init__(self, project: Project, count: int, *options: str) -> None:
        self.project = project
        command = ("crawl", "spider", "-s", "APIFY_RQ_ACCESS=shared", *options)
        self._running = ExitStack()
        self.processes = [self._running.enter_context(project.fork(*command)) for _ in range(count)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def wait(self, *which: int, timeout: float = 60) -> list[Crawl]:
        """Wait for the end of these, or of all; each must be a success."""
        crawls = []
        for n in which or range(len(self.processes)):
            status, output, log = self.processes[n].wait(timeout)
            assert status == 0, log
            for fault in ("Bug in scrapy-apify-rq", "Warning: ", "Traceback"):
                assert fault not in log, log
            stats = self.project.stats(self.processes[n].pid)
            assert stats["finish_reason"] == "finished"
            crawls.append(Crawl(0, log, output, stats))
        return crawls


@contextmanager
def shop(
    tmp_path: Path, pages: dict[str, Page], spider: str = SPIDER, **settings: object
) -> Iterator[tuple[Site, Project]]:
    with Site(pages) as site:
        yield site, Project(tmp_path, spider, site=site.url, settings=settings)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_four_workers_fetch_each_page_once(tmp_path: Path) -> None:
    with shop(tmp_path, tree(PAGES, delay=0.05)) as (site, project):
        with Workers(project, 4) as workers:
            crawls = workers.wait()
        assert Counter(site.paths) == fetched(PAGES)
        assert all(crawl.stats["apify_rq/handled"] > PAGES / 20 for crawl in crawls)
        assert not any("apify_rq/leases_lost" in crawl.stats for crawl in crawls)
        info = project.info()
        assert (info.handled, info.pending) == (PAGES + 3, 0)
        # An add, a lease and an ack for each page, and adds of what was there already.
        duplicates = sum(crawl.stats["dupefilter/filtered"] for crawl in crawls)
        assert project.writes() <= 3 * (PAGES + 3) + duplicates


def test_workers_killed_lose_no_page(tmp_path: Path) -> None:
    with shop(tmp_path, tree(PAGES, delay=0.05), APIFY_RQ_LOCK_SECS=2) as (site, project):
        with Workers(project, 4) as workers:
            unsettled = 0
            for n, hits in enumerate((PAGES // 5, PAGES // 2)):
                wait_until(lambda hits=hits: len(site.hits) > hits)  # type: ignore[misc]
                workers.processes[n].send_signal(signal.SIGKILL)
                unsettled += len(site.hits) - project.info().handled
            workers.wait(2, 3)
        assert set(site.paths) == {f"/{n}" for n in range(PAGES)}
        # What was in flight, or done and not acked, when they were killed; also at other workers.
        assert len(site.paths) - fetched(PAGES).total() <= unsettled
        info = project.info()
        assert (info.handled, info.pending) == (PAGES + 3, 0)


MANY_STARTS = """
    import asyncio
    import os
    from pathlib import Path

    class Spider(scrapy.Spider):
        name = "spider"

        async def start(self):
            Path(f"ready-{os.getpid()}").touch()
            while not Path("go").exists():
                await asyncio.sleep(0.05)
            for n in range(30):
                yield scrapy.Request(f"{SITE}/{n}")

        def parse(self, response):
            pass
"""


def test_leases_outlast_slow_pages(tmp_path: Path) -> None:
    """Leases of one second, pages of three, and more of them than the workers take at once."""
    pages = {f"/{n}": Page(delay=3) for n in range(30)}
    settings = {"APIFY_RQ_LOCK_SECS": 1, "CONCURRENT_REQUESTS": 4}
    with shop(tmp_path, pages, MANY_STARTS, **settings) as (site, project):
        with Workers(project, 3) as workers:
            # A machine that is busy with starting processes has no time for leases so short.
            wait_until(lambda: len(list(project.folder.glob("ready-*"))) == 3)
            (project.folder / "go").touch()
            crawls = workers.wait()
        assert Counter(site.paths) == Counter(list(pages))
        assert not any("apify_rq/leases_lost" in crawl.stats for crawl in crawls)


def test_the_same_client_key_takes_over_at_once(tmp_path: Path) -> None:
    settings = {"APIFY_RQ_CLIENT_KEY": "worker-1"}
    with shop(tmp_path, tree(60, delay=0.2), **settings) as (site, project):
        with Workers(project, 1) as workers:
            wait_until(lambda: len(site.hits) > 20)
            workers.processes[0].send_signal(signal.SIGKILL)
        assert project.locked()
        with Workers(project, 1) as workers:  # leases last for 180 seconds
            workers.wait(timeout=30)
        assert set(site.paths) == set(fetched(60))
        assert project.info().pending == 0


def test_what_waited_in_a_stopped_worker_is_left_to_others(tmp_path: Path) -> None:
    with shop(tmp_path, tree(40, delay=0.3), APIFY_RQ_LOCK_SECS=1) as (site, project):
        with Workers(project, 1, "-s", "CONCURRENT_REQUESTS=1") as first:
            wait_until(lambda: len(site.hits) > 4 and len(project.locked()) > 3)
            first.processes[0].send_signal(signal.SIGSTOP)
            assert len(project.locked()) <= 6  # a slow worker leaves the rest to others
            with Workers(project, 1) as second:
                second.wait()
            first.processes[0].send_signal(signal.SIGCONT)
            (crawl,) = first.wait()
        left = re.findall(r"lease on entry \w+ \((\S+)\) ended before it was handed out", crawl.log)
        assert left
        assert crawl.stats["apify_rq/leases_lost"] >= len(left)
        crawled = re.findall(r"Crawled \(200\) <GET (\S+)>", crawl.log)
        assert not set(left).intersection(crawled)
        # One was in flight, and one perhaps done and not acked.
        assert len(site.paths) - fetched(40).total() <= 2
        assert project.info().pending == 0


def test_an_interrupted_worker_gives_its_leases_back(tmp_path: Path) -> None:
    with shop(tmp_path, tree(100, delay=0.3)) as (site, project):
        with Workers(project, 1) as workers:
            wait_until(lambda: len(site.hits) > 10)
            workers.processes[0].send_signal(signal.SIGINT)
            workers.processes[0].wait(30)
        assert not project.locked()
        done = len(site.hits)
        assert project.info().handled == done
        with Workers(project, 2) as workers:
            workers.wait()
        assert Counter(site.paths) == fetched(100)


RETRY_SPIDER = """
    import asyncio
    from scrapy import signals

    class Spider(scrapy.Spider):
        name = "spider"
        start_urls = [f"{SITE}/flaky"]

        @classmethod
        def from_crawler(cls, crawler):
            spider = super().from_crawler(crawler)
            crawler.signals.connect(spider.leave, signals.response_downloaded)
            return spider

        def leave(self, response, request):
            # Another process is to find the queue as it is then.
            if response.status == 503:
                closing = self.crawler.engine.close_spider_async(reason="left")
                self.closing = asyncio.ensure_future(closing)

        def parse(self, response):
            yield {"retries": response.meta["retry_times"], "note": response.meta["note"]}

        async def start(self):
            for n in range(3):
                yield scrapy.Request(f"{SITE}/{n}", callback=self.later)
            yield scrapy.Request(f"{SITE}/flaky", meta={"note": "kept"}, priority=1)

        def later(self, response):
            pass
"""


def test_another_worker_takes_a_retry(tmp_path: Path) -> None:
    flaky = [Page(status=503), Page("<html>well</html>")]
    pages = {"/flaky": flaky, **{f"/{n}": Page(delay=1) for n in range(3)}}
    with Site(pages) as site:
        project = Project(
            tmp_path, RETRY_SPIDER, site=site.url, settings={"CONCURRENT_REQUESTS": 1}
        )
        crawl = project.run("crawl", "spider", "-s", "APIFY_RQ_ACCESS=shared")
        assert crawl.stats["finish_reason"] == "left"
        assert not project.locked()
        flaky_entry = project.entry("/flaky")
        assert (flaky_entry.retry_count, flaky_entry.handled_at) == (1, None)
        assert project.pending()[0].id == flaky_entry.id
        with Workers(project, 1) as workers:
            (crawl,) = workers.wait()
        assert "{'retries': 1, 'note': 'kept'}" in crawl.log
        assert site.paths.count("/flaky") == 2
        assert not project.entry("/flaky").failed


def test_a_worker_waits_for_the_work_of_others(tmp_path: Path) -> None:
    """It asks seldom, without a write, and takes part in what comes of their last page."""
    pages = {"/0": Page(links(*(f"/{n}" for n in range(1, 41))), delay=4.5)}
    pages |= {f"/{n}": Page(delay=0.6) for n in range(1, 41)}
    spider = SPIDER.replace(', f"{SITE}/0", f"{SITE}/1"', "")
    with shop(tmp_path, pages, spider, CONCURRENT_REQUESTS=4) as (site, project):
        with Workers(project, 2) as workers:
            wait_until(lambda: len(site.hits) == 1)
            wait_until(lambda: calls(project)["POST requests/batch"] == 2 or not project.server)
            before = calls(project)
            time.sleep(3)
            between = calls(project) - before
            crawls = workers.wait()
        assert Counter(site.paths) == Counter(list(pages))
        assert all(crawl.stats["apify_rq/handled"] > 5 for crawl in crawls)
        if project.server is not None:
            assert set(between) == {"POST head/lock"}
            assert between["POST head/lock"] <= 2 * 4  # at first, and after 0.5, 1, 2 seconds


def calls(project: Project) -> Counter[str]:
    return Counter(project.server.calls.operations if project.server else {})


def test_two_crawls_in_single_access_are_warned_once(tmp_path: Path) -> None:
    single = ("-s", "APIFY_RQ_ACCESS=single", "-s", "CLOSESPIDER_PAGECOUNT=50")
    with (
        shop(tmp_path, tree(100, delay=0.1)) as (_, project),
        Workers(project, 2, *single) as workers,
    ):
        logs = [process.wait(60)[2] for process in workers.processes]
    warnings = [log.count("Another program uses the request queue") for log in logs]
    assert sum(warnings) >= 1
    assert max(warnings) == 1
    assert "set APIFY_RQ_ACCESS = 'shared'" in "".join(logs)


def test_late_workers_leave_a_finished_queue_alone(tmp_path: Path) -> None:
    """Even one that nobody named, which a single crawl would start afresh."""
    with shop(tmp_path, tree(20), APIFY_RQ_NAME=None) as (site, project):
        for _ in range(2):
            with Workers(project, 1) as workers:
                (crawl,) = workers.wait()
        assert Counter(site.paths) == fetched(20)
        assert "is finished: 23 handled, none pending" in crawl.log


def test_lost_answers_leave_no_leases_behind(tmp_path: Path) -> None:
    """Leases of an hour: were one forgotten, the crawl would wait for its end."""
    with shop(tmp_path, tree(80), APIFY_RQ_LOCK_SECS=3600) as (site, project):
        if project.server is None:
            pytest.skip("the embedded queue loses no answers")
        share = 0.03
        project.server.faults(
            limited=share, failed=share, dropped=share, lost=share, unprocessed=share, seed=4
        )
        with Workers(project, 2) as workers:
            workers.wait()
        assert set(site.paths) == set(fetched(80))
        assert project.info().pending == 0


def test_workers_do_not_end_before_their_writes_show(tmp_path: Path) -> None:
    """The head is two seconds late: nobody may take that for the end of the crawl."""
    # Each page links to the next only, so that the head seems empty after each.
    pages = {f"/{n}": Page(links(f"/{n + 1}")) for n in range(2)} | {"/2": Page()}
    spider = SPIDER.replace(', f"{SITE}/0", f"{SITE}/1"', "")
    with shop(tmp_path, pages, spider) as (site, project):
        if project.server is None:
            pytest.skip("the embedded queue is never late")
        project.server.faults(head_lag=2, counter_lag=4)
        with (project.folder / "project" / "__init__.py").open("a") as file:
            file.write("ApifyBackend.consistency_delay = 2.0\n")
        with Workers(project, 2) as workers:
            workers.wait()
        assert Counter(site.paths) == Counter(list(pages))
        assert project.info().pending == 0
