"""Crawls over the API on a bad day: its answers lag, its rates are reached, it takes its time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import pytest
from scrapy import signals

from scrapy_apify_rq.backends.apify import endpoints
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from tests.support import faults
from tests.support.api_calls import Call
from tests.support.crawling import Crawls
from tests.support.faults import Faults
from tests.support.queues import NAME, ServedQueue, serving
from tests.support.raw_calls import Caller, called
from tests.support.spiders import Links
from tests.support.website import Answer, Hit, Page, Site, links

# The lag of the platform is scaled down to an eighth.
HEAD_LAG = 0.4
COUNTER_LAG = 1.3
LAG = 4.0


class Resumes(Links):
    """Has nothing to start with."""

    async def start(self) -> AsyncIterator[Any]:
        for request in ():
            yield request


class Small(NamedTuple):
    """A small site, crawled into a queue of its own from the page "" on. Names are relative."""

    pages: Mapping[str, Answer]
    """Others have no links."""
    fetched: Sequence[str]
    before: Sequence[str] = ()
    """Pages that another program adds just before the crawl."""
    rounds: Sequence[Mapping[str, Any]] = ({},)
    """The settings of each crawl."""


def add(api: Caller, queue: str, *urls: str) -> None:
    """As another program does."""
    id = api("POST", name=queue).data["id"]
    for start in range(0, len(urls), 25):
        batch = [{"url": url, "uniqueKey": url} for url in urls[start : start + 25]]
        assert api("POST", f"/{id}/requests/batch", batch).status == 201


def shapes(api: Caller, site: Site) -> dict[str, Small]:
    """Ten crawls."""

    def add_late(hit: Hit) -> Page:
        _, number, shape, _ = hit.path.split("/")
        add(api, f"{number}-{shape}", f"{site.url}/{number}/{shape}/late")
        return Page()

    def add_while_idle(hit: Hit) -> Page:
        Timer(HEAD_LAG / 3, add_late, [hit]).start()
        return Page()

    # More than are fetched one by one: the list of pending entries lags like the head.
    many = [str(n) for n in range(80)]
    chain = {str(n): links(str(n + 1)) for n in range(5)}
    few = {"CLOSESPIDER_PAGECOUNT": 20, "CONCURRENT_REQUESTS": 2}
    idle = {"APIFY_RQ_IDLE_BEFORE_CLOSE": 6 * HEAD_LAG}
    moved = Page(status=302, headers={"Location": "new"})
    flaky = {"": [503, links("leaf")], "leaf": [503, 503, "text"]}
    return {
        "one": Small({}, [""]),
        "chain": Small({"": links("0"), **chain}, ["", *"012345"]),
        "star": Small({"": links(*"01234567")}, ["", *"01234567"]),
        "flaky": Small(flaky, ["", "", "leaf", "leaf", "leaf"]),
        "moved": Small({"": moved, "new": links("leaf")}, ["", "new", "leaf"]),
        "before": Small({"": links("leaf")}, ["", "leaf", *"012"], before="012"),
        "during": Small({"": links("last"), "last": add_late}, ["", "last", "late"]),
        "idle": Small({"": add_while_idle}, ["", "late"], rounds=[idle]),
        "stopped": Small({"": links(*many)}, ["", *many], rounds=[few, {}]),
    }


async def test_many_small_crawls_end_in_time_while_the_head_and_the_counters_lag(
    served: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ApifyBackend, "consistency_delay", HEAD_LAG)
    monkeypatch.setattr(ApifyBackend, "lag", LAG)
    served.faults(Faults(head_lag=HEAD_LAG, counter_lag=COUNTER_LAG))
    expected: Counter[str] = Counter()

    async def crawl(number: int, shape: str, small: Small) -> list[str | None]:
        queue, root = f"{number}-{shape}", f"/{number}/{shape}/"
        expected.update(root + name for name in small.fetched)
        site.serve({root + name: page for name, page in small.pages.items()})
        if before := [site.url + root + name for name in small.before]:
            await asyncio.to_thread(add, api, queue, *before)
        reasons = []
        for settings in small.rounds:
            named = {"APIFY_RQ_NAME": queue, **settings}
            start = site.url + root.removesuffix("/")
            # Not run(), which would wait only for a moment until all of them are open.
            ended = await crawls.begin(Links, named, queue=served, site=start).end()
            reasons.append(ended.reason)
        return reasons

    with Site({}, default=Page()) as site, called(served) as api:
        small = [(n, shape, one) for n in range(1) for shape, one in shapes(api, site).items()]
        reasons = await asyncio.gather(*(crawl(*one) for one in small))
        served.faults(Faults())
        infos = [api("GET", f"/~{n}-{shape}").data for n, shape, _ in small]

    ends = Counter(reason for rounds in reasons for reason in rounds)
    assert ends == {"finished": 9, "closespider_pagecount": 1}
    hits = Counter(site.paths)
    assert (hits - expected, expected - hits) == ({}, {})
    assert [info["pendingRequestCount"] for info in infos] == [0] * 9


async def test_page_costs_1_1_calls(site: Site, served: ServedQueue, crawls: Crawls) -> None:
    count = 160
    others = {n: [f"/{(10 * n + other) % count}" for other in range(10)] for n in range(count)}
    site.serve({"/": links("/1"), **{f"/{n}": links(*paths) for n, paths in others.items()}})
    served.faults(Faults(latency=0.05))
    crawl = await crawls.run(Links, queue=served, site=site.url)
    assert Counter(site.paths) == Counter(["/", *(f"/{n}" for n in range(count))])
    assert crawl.stats["apify_rq/handled"] == count + 1
    # An ack for each, and an add for 25; the others do not grow: 1.1 a page for 300 pages.
    assert sum(call.is_about_queue for call in served.api.calls) <= (1 + 1 / 25) * count + 18


async def test_rates_are_kept(
    tmp_path: Path, site: Site, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of updates is scaled down, so that a busy machine would exceed it, too."""
    for module in (endpoints, faults):
        monkeypatch.setattr(module, "CRUD_RATE", 20)
    paths = [f"/{n}" for n in range(34)]
    site.serve({"/": links(*paths), **dict.fromkeys(paths, "page")})
    with serving(tmp_path / "server") as served:
        served.faults(Faults(latency=0.05, rates=True))
        crawl = await crawls.run(Links, queue=served, site=site.url)
    assert Counter(site.paths) == Counter(["/", *paths])
    assert crawl.stats["apify_rq/handled"] == len(paths) + 1
    assert crawl.stats.get("apify_rq/api/rate_limited", 0) <= 1


async def test_resuming_what_others_added_costs_a_call_a_page_and_starts_after_3_round_trips(
    served: ServedQueue, crawls: Crawls
) -> None:
    count, latency = 120, 0.6
    first: list[list[Call]] = []

    def handed_out() -> None:
        if not first:
            first.append(served.api.calls.copy())
            served.faults(Faults(latency=0.02))

    with Site({}, default=Page()) as site, called(served) as api:
        add(api, NAME, *(f"{site.url}/{n}" for n in range(count)))
        served.api.calls.clear()
        served.faults(Faults(latency=latency))
        crawl = crawls.begin(Resumes, {"APIFY_RQ_WINDOW": 80}, queue=served)
        crawl.crawler.signals.connect(handed_out, signals.request_reached_downloader)
        await crawl.end()

    assert Counter(site.paths) == Counter(f"/{n}" for n in range(count))
    # 16 entries are fetched one by one at first, and again up to 49, which are too few for a list;
    # the others come in lists. The window is filled a few times.
    assert sum(call.is_about_queue for call in served.api.calls) <= count + 16 + 49 + 15
    (calls,) = first
    assert [call.path for call in calls].count("/v2/request-queues") == 1
    assert not [call for call in calls if call.is_("GET", "")]
    # After the opening, the head and the entries were asked for; and then, for more.
    rounds: list[float] = []
    for call in calls:
        if call.is_about_queue and (not rounds or call.at - rounds[-1] >= latency):
            rounds.append(call.at)
    assert 2 <= len(rounds) <= 3
