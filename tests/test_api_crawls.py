"""Crawls over the API as it is on a bad day, and what they cost: calls, memory, stalls."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.project import QUEUE, Project
from tests.server import Server, serve
from tests.support.website import Answer, Hit, Page, Site, links

TOKEN = "secret-token"

SPIDERS = """
    from pathlib import Path

    class Spider(scrapy.Spider):
        name = "spider"

        def __init__(self, start_urls=(), **kwargs):
            super().__init__(**kwargs)
            self.start_urls = start_urls.split() if isinstance(start_urls, str) else start_urls

        def closed(self, reason):
            # Not ru_maxrss, in which a process starts with what its parent had.
            lines = Path("/proc/self/status").read_text().splitlines()
            (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
            self.crawler.stats.set_value("peak", int(peak) * 1024)

        def parse(self, response):
            for href in response.css("a::attr(href)").getall():
                yield response.follow(href)
"""

# Crawls each queue as often as it has settings, one after the other; all queues at one time.
SCRIPT = """
    import asyncio, json, sys
    from scrapy.crawler import AsyncCrawlerRunner, Crawler
    from scrapy.utils.defer import deferred_f_from_coro_f
    from scrapy.utils.project import get_project_settings
    from scrapy.utils.reactor import install_reactor

    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")

    async def crawl(runner, queue, url, rounds):
        from project.spiders import Spider

        reasons = []
        for values in rounds:
            settings = get_project_settings()
            settings.update({**values, "APIFY_RQ_NAME": queue}, priority="cmdline")
            crawler = Crawler(Spider, settings)
            await runner.crawl(crawler, start_urls=[url])
            reasons.append(crawler.stats.get_value("finish_reason"))
        return queue, reasons

    async def main(_):
        runner = AsyncCrawlerRunner(get_project_settings())
        jobs = json.loads(sys.argv[1])
        print(json.dumps(dict(await asyncio.gather(*(crawl(runner, *job) for job in jobs)))))

    from twisted.internet.task import react
    react(deferred_f_from_coro_f(main))
"""


class Other:
    """Another program that adds entries to queues by the API."""

    def __init__(self, server: Server, site: Site) -> None:
        self._url = f"{server.url}/v2/request-queues"
        self._site = site

    def add(self, queue: str, *paths: str) -> None:
        id = self._post(f"?name={queue}")["id"]
        urls = [self._site.url + path for path in paths]
        for start in range(0, len(urls), 25):
            batch = [{"url": url, "uniqueKey": url} for url in urls[start : start + 25]]
            self._post(f"/{id}/requests/batch", json.dumps(batch).encode())

    def _post(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]


@dataclass
class Small:
    """One small site under a path of its own, crawled into a queue of its own."""

    pages: dict[str, Answer]
    """The first is where the crawl starts. Paths are relative, links and redirects whole."""
    hits: dict[str, int]
    """How often each path must be fetched in all."""
    before: Sequence[str] = ()
    """Paths that another program adds just before the crawl."""
    rounds: Sequence[dict[str, Any]] = field(default_factory=lambda: [{}])
    """The settings of each crawl."""


def once(*paths: str) -> dict[str, int]:
    return dict.fromkeys(paths, 1)


def small_sites(root: str, other: Other) -> dict[str, Small]:
    """One of each shape, by the name of its queue. Ten crawls."""

    def to(*names: str) -> str:
        return links(*(f"{root}/{name}" for name in names))

    def adds_at_its_end(hit: Hit) -> Page:
        other.add(queue("during"), f"{root}/during/late")
        return Page()

    def adds_while_idle(hit: Hit) -> Page:
        threading.Timer(1, other.add, (queue("idle"), f"{root}/idle/late")).start()
        return Page()

    def queue(shape: str) -> str:
        return f"{root.strip('/')}-{shape}"

    chain = [f"chain/{n}" for n in range(6)]
    star = [f"star/{n}" for n in range(8)]
    # More than are fetched one by one: the list of pending entries lags like the head.
    many = [f"stopped/{n}" for n in range(80)]
    added = [f"{root}/before/{n}" for n in range(3)]
    moved = Page(status=302, headers={"Location": f"{root}/moved/new"})
    flaky = {"flaky": [503, to("flaky/leaf")], "flaky/leaf": [503, 503, to()]}
    sites = {
        "one": Small({"one": to()}, once("one")),
        "chain": Small(
            {a: to(b) for a, b in zip(["chain", *chain], chain, strict=False)},
            once("chain", *chain),
        ),
        "star": Small({"star": to(*star)}, once("star", *star)),
        "flaky": Small(flaky, {"flaky": 2, "flaky/leaf": 3}),
        "moved": Small(
            {"moved": moved, "moved/new": to("moved/leaf")},
            once("moved", "moved/new", "moved/leaf"),
        ),
        "before": Small(
            {"before": to("before/leaf")},
            once("before", "before/leaf", "before/0", "before/1", "before/2"),
            before=added,
        ),
        "during": Small(
            {"during": to("during/last"), "during/last": adds_at_its_end},
            once("during", "during/last", "during/late"),
        ),
        "idle": Small(
            {"idle": adds_while_idle},
            once("idle", "idle/late"),
            rounds=[{"APIFY_RQ_IDLE_BEFORE_CLOSE": 6}],
        ),
        "stopped": Small(
            {"stopped": to(*many)},
            once("stopped", *many),
            rounds=[{"CLOSESPIDER_PAGECOUNT": 20, "CONCURRENT_REQUESTS": 2}, {}],
        ),
    }
    return {queue(shape): small for shape, small in sites.items()}


def a_project(folder: Path, server: Server, site: Site | None = None) -> Project:
    settings = {"APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": server.url, "LOG_LEVEL": "INFO"}
    return Project(folder, SPIDERS, site=site.url if site else "", settings=settings)


@contextmanager
def a_place(tmp_path: Path) -> Iterator[tuple[Project, Server, Site]]:
    with serve(tmp_path / "crawl" / "storage") as server, Site({}, default=Page()) as site:
        yield a_project(tmp_path / "crawl", server, site), server, site


def test_fifty_small_crawls_end_in_time_while_the_head_and_the_counters_lag(tmp_path: Path) -> None:
    with a_place(tmp_path) as (project, server, site):
        server.faults(head_lag=3, counter_lag=10)
        other = Other(server, site)
        roots = [f"/{n}" for n in range(5)]
        groups = [small_sites(root, other) for root in roots]
        for root, group in zip(roots, groups, strict=True):
            for small in group.values():
                site.serve({f"{root}/{path}": page for path, page in small.pages.items()})

        def crawl(number: int) -> dict[str, list[str]]:
            group = groups[number]
            jobs = []
            for queue, small in group.items():
                if small.before:
                    other.add(queue, *small.before)
                start = f"{site.url}/{number}/{next(iter(small.pages))}"
                jobs.append((queue, start, small.rounds))
            program = a_project(tmp_path / str(number), server, site)
            crawl = program.run(json.dumps(jobs), script=SCRIPT, timeout=60)
            assert crawl.returncode == 0, crawl.log[-3000:]
            assert "Bug in" not in crawl.log, crawl.log
            reasons: dict[str, list[str]] = json.loads(crawl.output)
            return reasons

        with ThreadPoolExecutor(5) as pool:
            reasons = dict(
                pair for reasons in pool.map(crawl, range(5)) for pair in reasons.items()
            )
        infos = {queue: project.info(queue) for group in groups for queue in group}

    assert sum(map(len, reasons.values())) == 50
    assert {reason for all_reasons in reasons.values() for reason in all_reasons} == {
        "finished",
        "closespider_pagecount",
    }
    hits = Counter(site.paths)
    for root, group in zip(roots, groups, strict=True):
        for queue, small in group.items():
            fetched = {path: hits[f"{root}/{path}"] for path in small.hits}
            assert (queue, fetched) == (queue, small.hits)
            assert (queue, infos[queue].pending) == (queue, 0)


# How many calls


@contextmanager
def large_site(pages: int) -> Iterator[str]:
    """The address of the benchmarks' site, which has a process of its own."""
    program = Path(__file__).parents[1] / "benchmarks" / "site.py"
    command = [sys.executable, str(program), "--pages", str(pages)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_page_costs_1_1_calls_and_the_rates_are_kept(tmp_path: Path) -> None:
    pages = 2000
    with serve(tmp_path / "storage") as server, large_site(pages) as site:
        server.faults(latency=0.05, rates=True)
        project = a_project(tmp_path / "crawl", server)
        crawl = project.crawl("-a", f"start_urls={site}/p/0", "-s", "CONCURRENT_REQUESTS=16")
        with urllib.request.urlopen(f"{site}/_hits") as answer:
            hits = json.load(answer)["hits"]
        calls = server.calls

    # A start request is not filtered, so the link back to it is one page more.
    assert hits == {f"/p/{n}": 1 for n in range(pages)} | {"/p/0": 2}
    assert crawl.stats["apify_rq/handled"] == pages + 1
    assert calls.total / pages <= 1.10, calls
    assert calls.outcomes.get("429", 0) / calls.total <= 0.01, calls


def test_resuming_what_others_added_costs_1_05_calls_a_page_and_starts_after_3_round_trips(
    tmp_path: Path,
) -> None:
    pages, latency, slack = 2000, 0.5, 0.4
    first_hits: list[float] = []
    calls_before_the_first_page: list[dict[str, int]] = []

    def page(hit: Hit) -> Page:
        if not first_hits:
            first_hits.append(time.time())
            calls_before_the_first_page.append(server.calls.operations)
            server.faults(latency=0.02)
        return Page()

    with serve(tmp_path / "crawl" / "storage") as server, Site({}, default=page) as site:
        project = a_project(tmp_path / "crawl", server, site)
        other = Other(server, site)
        other.add(QUEUE, *(f"/{n}" for n in range(pages)))
        server.forget_calls()
        server.faults(latency=latency)
        crawl = project.crawl("-s", "CONCURRENT_REQUESTS=16", timeout=120)
        calls = server.calls
        paths = Counter(site.paths)

    assert paths == {f"/{n}": 1 for n in range(pages)}
    assert calls.total / pages <= 1.05, calls
    # The first round trip opened the queue, before the start as Scrapy counts it.
    assert calls_before_the_first_page[0]["POST queues"] == 1
    assert "GET queue" not in calls_before_the_first_page[0]
    start = datetime.fromisoformat(crawl.stats["start_time"]).timestamp()
    assert first_hits[0] - start <= 2 * latency + slack


# How much memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak")
def test_memory_does_not_grow_with_what_is_pending(tmp_path: Path) -> None:
    """Pending: nothing, and 20,000 entries of 1 kB, all of which would take 60 MB and more."""

    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        with serve(folder / "storage") as server, Site({}, default=Page()) as site:
            project = a_project(folder, server, site)
            project.add(*(an_entry(f"{site.url}/{n}") for n in range(count)))
            crawl = project.crawl("-s", "CLOSESPIDER_PAGECOUNT=300")
            assert crawl.stats["apify_rq/handled"] >= 300
        return int(crawl.stats["peak"])

    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(peak, (400, 20_000))
    assert many - few <= 40_000_000


def an_entry(url: str) -> Entry:
    return Entry(id=request_id(url), unique_key=url, url=url, user_data={"text": "x" * 1000})
