"""Crawls over the API on a bad day: its answers lag, its rates are reached, it takes its time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import pytest

from scrapy_apify_rq.backends.apify import endpoints, http
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.server import application
from scrapy_apify_rq.server.faults import Faults
from tests.support.api_calls import Call
from tests.support.crawling import Crawls
from tests.support.queues import NAME, ServedQueue, serving
from tests.support.raw_calls import Caller, called
from tests.support.spiders import Links
from tests.support.website import Answer, Hit, Page, Site, links

# The lag of the platform is scaled down to a third.
HEAD_LAG = 1.0
COUNTER_LAG = 3.3
LAG = 10.0


class Resumes(Links):
    """Has nothing to start with."""

    async def start(self) -> AsyncIterator[Any]:
        for request in ():
            yield request


class Small(NamedTuple):
    """A small site, crawled into a queue of its own. The crawl starts at the first page."""

    pages: Mapping[str, Answer]
    hits: Mapping[str, int]
    """How often each path must be fetched in all."""
    before: Sequence[str] = ()
    """Paths that another program adds just before the crawl."""
    rounds: Sequence[Mapping[str, Any]] = ({},)
    """The settings of each crawl."""


def add(api: Caller, site: Site, queue: str, *paths: str) -> None:
    """As another program does."""
    id = api("POST", name=queue).data["id"]
    urls = [site.url + path for path in paths]
    for start in range(0, len(urls), 25):
        batch = [{"url": url, "uniqueKey": url} for url in urls[start : start + 25]]
        assert api("POST", f"/{id}/requests/batch", batch).status == 201


def small_sites(number: int, api: Caller, site: Site) -> dict[str, Small]:
    """One of each shape, by the name of its queue. Ten crawls."""

    def path(*names: object) -> str:
        return "/".join(map(str, ("", number, *names)))

    def once(*paths: str) -> dict[str, int]:
        return dict.fromkeys(paths, 1)

    def adds_at_its_end(_: Hit) -> Page:
        add(api, site, f"{number}-during", path("during", "late"))
        return Page()

    def adds_while_idle(_: Hit) -> Page:
        Timer(HEAD_LAG / 3, add, (api, site, f"{number}-idle", path("idle", "late"))).start()
        return Page()

    chain = [path("chain", n) for n in ("", *range(6))]
    star = [path("star", n) for n in range(8)]
    # More than are fetched one by one: the list of pending entries lags like the head.
    many = [path("stopped", n) for n in range(80)]
    flaky, leaf = path("flaky", ""), path("flaky", "leaf")
    moved, new, last = (path("moved", name) for name in ("", "new", "leaf"))
    before, added = path("before", ""), [path("before", n) for n in range(3)]
    during, at_end = path("during", ""), path("during", "last")
    few = {"CLOSESPIDER_PAGECOUNT": 20, "CONCURRENT_REQUESTS": 2}
    sites = {
        "one": Small({path("one", ""): 200}, once(path("one", ""))),
        "chain": Small(
            dict(zip(chain, [*map(links, chain[1:]), links()], strict=True)), once(*chain)
        ),
        "star": Small({path("star", ""): links(*star)}, once(path("star", ""), *star)),
        "flaky": Small({flaky: [503, links(leaf)], leaf: [503, 503, "leaf"]}, {flaky: 2, leaf: 3}),
        "moved": Small(
            {moved: Page(status=302, headers={"Location": new}), new: links(last)},
            once(moved, new, last),
        ),
        "before": Small(
            {before: links(path("before", "leaf"))},
            once(before, path("before", "leaf"), *added),
            before=added,
        ),
        "during": Small(
            {during: links(at_end), at_end: adds_at_its_end},
            once(during, at_end, path("during", "late")),
        ),
        "idle": Small(
            {path("idle", ""): adds_while_idle},
            once(path("idle", ""), path("idle", "late")),
            rounds=[{"APIFY_RQ_IDLE_BEFORE_CLOSE": 2 * HEAD_LAG}],
        ),
        "stopped": Small(
            {path("stopped", ""): links(*many)},
            once(path("stopped", ""), *many),
            rounds=[few, {}],
        ),
    }
    return {f"{number}-{shape}": small for shape, small in sites.items()}


async def test_fifty_small_crawls_end_in_time_while_the_head_and_the_counters_lag(
    served: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "consistency_delay", HEAD_LAG)
    monkeypatch.setattr(ApifyBackend, "lag", LAG)
    served.faults(Faults(head_lag=HEAD_LAG, counter_lag=COUNTER_LAG))

    async def crawl(name: str, small: Small) -> list[str | None]:
        site.serve(small.pages)
        if small.before:
            await asyncio.to_thread(add, api, site, name, *small.before)
        start = site.url + next(iter(small.pages)).removesuffix("/")
        reasons = []
        for settings in small.rounds:
            named = {"APIFY_RQ_NAME": name, "RETRY_TIMES": 2, **settings}
            ended = await crawls.run(Links, named, queue=served, patience=60, site=start)
            reasons.append(ended.reason)
        return reasons

    with Site({}, default=Page()) as site, called(served) as api:
        small = {
            name: one for number in range(5) for name, one in small_sites(number, api, site).items()
        }
        reasons = await asyncio.gather(*(crawl(name, one) for name, one in small.items()))
        served.faults(Faults())
        pending = {name: api("GET", f"/~{name}").data["pendingRequestCount"] for name in small}

    ends = Counter(reason for rounds in reasons for reason in rounds)
    assert ends == {"finished": 45, "closespider_pagecount": 5}
    assert pending == dict.fromkeys(small, 0)
    expected = {path: count for one in small.values() for path, count in one.hits.items()}
    assert Counter(site.paths) == expected


async def test_page_costs_1_1_calls_and_the_rates_are_kept(
    tmp_path: Path, site: Site, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of updates is scaled down, so that a slow machine reaches it, too."""
    for module in (endpoints, http, application):
        monkeypatch.setattr(module, "CRUD_RATE", 100)
    count = 400
    others = {n: [f"/{(10 * n + other) % count}" for other in range(10)] for n in range(count)}
    site.serve({"/": links("/1"), **{f"/{n}": links(*paths) for n, paths in others.items()}})
    with serving(tmp_path / "server") as served:
        served.faults(Faults(latency=0.05, rates=True))
        crawl = await crawls.run(Links, queue=served, site=site.url, patience=60)

    assert Counter(site.paths) == Counter(["/", *(f"/{n}" for n in range(count))])
    assert crawl.stats["apify_rq/handled"] == count + 1
    assert len(served.api.calls) / count <= 1.10
    assert crawl.stats.get("apify_rq/api/rate_limited", 0) / len(served.api.calls) <= 0.01


async def test_resuming_what_others_added_costs_a_call_a_page_and_starts_after_3_round_trips(
    served: ServedQueue, crawls: Crawls
) -> None:
    count, latency, slack = 400, 0.5, 0.4
    first: list[tuple[float, list[Call]]] = []

    def page(_: Hit) -> Page:
        if not first:
            first.append((time.time(), served.api.calls.copy()))
            served.faults(Faults(latency=0.02))
        return Page()

    with Site({}, default=page) as site, called(served) as api:
        add(api, site, NAME, *(f"/{n}" for n in range(count)))
        served.api.calls.clear()
        served.faults(Faults(latency=latency))
        crawl = await crawls.run(Resumes, {"APIFY_RQ_WINDOW": 200}, queue=served, patience=60)

    assert Counter(site.paths) == Counter(f"/{n}" for n in range(count))
    # 16 entries are fetched one by one, the others by one call; the window is filled a few times.
    assert len(served.api.calls) <= count + 35
    ((hit_at, calls),) = first
    # The first round trip opened the queue, before the start as Scrapy counts it.
    assert [call.path for call in calls].count("/v2/request-queues") == 1
    assert not [call for call in calls if call.is_("GET", "")]
    assert hit_at - crawl.stats["start_time"].timestamp() <= 2 * latency + slack
