"""Whose a response, an error or a retry is, and what becomes of the entry in the end."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
from scrapy import Request
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from scrapy_apify_rq.crawl.flight import Stage
from scrapy_apify_rq.crawl.inflight import InFlight
from tests.support.crawling import Crawls
from tests.support.engine_driver import EngineDriver, driving
from tests.support.queues import Queue
from tests.support.waiting import wait_until

URL = "http://localhost/"


def answer(request: Request, status: int = 200, url: str | None = None) -> Response:
    return Response(url or request.url, status, request=request)


def again(engine: EngineDriver, request: Request) -> Request:
    assert engine.crawl.spider is not None
    retry = get_retry_request(request, spider=engine.crawl.spider, reason="why")
    assert retry is not None
    return retry


# What the middlewares report, step by step, and what the entry says of it.
Step = Callable[[EngineDriver, InFlight, Request], object]


def downloaded(status: int) -> Step:
    return lambda engine, inflight, request: inflight.downloaded(request, answer(request, status))


def failed(engine: EngineDriver, inflight: InFlight, request: Request) -> None:
    inflight.download_failed(request, OSError("refused"))


def reached(engine: EngineDriver, inflight: InFlight, request: Request) -> None:
    inflight.reached_callback(answer(request, url=f"{URL}end"))


def raised(engine: EngineDriver, inflight: InFlight, request: Request) -> None:
    inflight.callback_failed(request, ValueError("no price"))


def retried(engine: EngineDriver, inflight: InFlight, request: Request) -> None:
    assert engine.schedule(again(engine, request)) == [True]


def redirected(engine: EngineDriver, inflight: InFlight, request: Request) -> None:
    meta = {"redirect_urls": [request.url]}
    assert engine.schedule(request.replace(url=f"{URL}target", meta=meta)) == [True]


@pytest.mark.parametrize(
    ("steps", "loaded", "problems"),
    [
        ([downloaded(200), reached], "end", []),
        ([downloaded(404), reached], "end", []),
        ([downloaded(200), reached, raised], "end", ["ValueError: no price"]),
        ([downloaded(404)], None, ["404 Not Found"]),
        ([downloaded(302)], None, ["302 Found, but a middleware kept it from the callback"]),
        ([failed], None, ["OSError: refused"]),
        ([failed, downloaded(200), reached], "end", []),
        ([downloaded(302), redirected], "target", []),
        ([], None, []),
    ],
)
async def test_what_an_entry_says_when_scrapy_has_finished(
    queue: Queue, crawls: Crawls, steps: list[Step], loaded: str | None, problems: list[str]
) -> None:
    async with driving(crawls) as engine:
        engine.schedule(Request(f"{URL}1"))
        request = await engine.take()
        for step in steps:
            step(engine, engine.scheduler.inflight, request)
    entry = await queue.entry("/1")
    assert entry.is_handled
    assert entry.loaded_url == (None if loaded is None else URL + loaded)
    assert (entry.error_messages, entry.retry_count) == (problems, 0)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([downloaded(503), retried], "503 Service Unavailable"),
        ([failed, retried], "OSError: refused"),
        ([downloaded(200), reached, retried], "200 OK, but the callback asked for a retry"),
        ([downloaded(200), reached, raised, retried], "ValueError: no price"),
        ([retried], "a middleware asked for a retry"),
    ],
)
async def test_a_retry_is_the_same_entry(
    queue: Queue, crawls: Crawls, steps: list[Step], reason: str
) -> None:
    async with driving(crawls) as engine:
        engine.schedule(Request(f"{URL}1"))
        request = await engine.take()
        for step in steps:
            step(engine, engine.scheduler.inflight, request)
        engine.finish(request)
        retry = await engine.take()
        assert retry.meta["retry_times"] == 1
        assert (await queue.info()).total == 1
        entry = await queue.entry("/1")
        assert (entry.retry_count, entry.error_messages, entry.handled_at) == (1, [reason], None)


async def test_an_exception_of_the_callback_is_tried_again_where_the_project_wants_it(
    queue: Queue, crawls: Crawls
) -> None:
    async with driving(crawls, {"APIFY_RQ_RETRY_SPIDER_ERRORS": 1}) as engine:
        engine.schedule(Request(f"{URL}1"))
        for _ in range(2):
            request = await engine.take()
            for step in (downloaded(200), reached, raised):
                step(engine, engine.scheduler.inflight, request)
            engine.finish(request)
        await wait_until(lambda: not engine.scheduler.has_pending_requests())
    entry = await queue.entry("/1")
    assert (entry.retry_count, entry.error_messages) == (1, ["ValueError: no price"] * 2)


async def test_the_context_says_whose_a_response_is(queue: Queue, crawls: Crawls) -> None:
    """Neither the response's request nor its content does, if a middleware has copied it."""
    async with driving(crawls) as engine:
        inflight = engine.scheduler.inflight
        twins = [Request(f"{URL}1", dont_filter=True) for _ in range(2)]
        engine.schedule(*twins)
        contexts, taken = [], []
        for _ in twins:
            taken.append(await engine.take())
            contexts.append(copy_context())
        for context, request, problem in zip(contexts, taken, ["first", "second"], strict=True):
            inflight.downloaded(request, answer(request))
            context.run(inflight.callback_failed, Request(f"{URL}1"), ValueError(problem))
            assert context.run(inflight.match, None, Stage.SCRAPING).request is request
        # Whoever runs outside those contexts is known by the very object only.
        inflight.take_nothing()
        assert inflight.match(taken[0], Stage.SCRAPING) is not None
        assert inflight.match(taken[0].copy(), Stage.SCRAPING) is None
        expected = {
            visit.entry.id: [f"ValueError: {problem}"]
            for request, problem in zip(taken, ["first", "second"], strict=True)
            for visit in inflight.visits.values()
            if visit.entry is not None and visit.request is request
        }
    assert {entry.id: entry.error_messages for entry in await queue.entries()} == expected


async def test_a_download_is_known_by_its_very_request_only(crawls: Crawls) -> None:
    """A callback may download anything, its own request included; that is no news of its entry."""
    async with driving(crawls) as engine:
        inflight = engine.scheduler.inflight
        engine.schedule(Request(f"{URL}1"))
        request = await engine.take()
        assert inflight.match(request.copy(), Stage.DOWNLOADED) is None
        inflight.downloaded(request, answer(request))
        inflight.reached_callback(answer(request))
        assert inflight.match(request, Stage.DOWNLOADED) is None


async def test_a_request_that_finished_owns_nothing_any_more(crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        engine.schedule(Request(f"{URL}1"))
        request = await engine.take()
        engine.finish(request)
        assert engine.scheduler.inflight.match(request, Stage.SCRAPING) is None
        # Its late retry is a request like any other.
        assert engine.schedule(again(engine, request)) == [True]
        assert not engine.scheduler.inflight.is_retry(again(engine, request))


@pytest.mark.parametrize(
    ("change", "is_retry"),
    [
        ({}, True),
        ({"dont_filter": False}, False),
        ({"url": f"{URL}2"}, False),
        ({"method": "POST"}, False),
        ({"body": b"other"}, False),
        ({"meta": {"retry_times": 2}}, False),
        ({"meta": {"retry_times": "1"}}, False),
        ({"meta": {"retry_times": 1, "redirect_urls": [f"{URL}0"]}}, False),
    ],
)
@pytest.mark.parametrize("is_by_itself", [False, True])
async def test_what_counts_as_a_retry(
    crawls: Crawls, change: dict[str, Any], is_retry: bool, is_by_itself: bool
) -> None:
    """On behalf of the request, or by an extension that acts by itself after its download."""
    async with driving(crawls) as engine:
        inflight = engine.scheduler.inflight
        engine.schedule(Request(f"{URL}1"))
        request = await engine.take()
        inflight.downloaded(request, answer(request, 503))
        if is_by_itself:
            inflight.take_nothing()
        assert inflight.is_retry(again(engine, request).replace(**change)) == is_retry


async def test_the_verdict_waits_for_children_in_memory(queue: Queue, crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        frontier = engine.scheduler.frontier
        engine.schedule(Request(f"{URL}1"))
        parent = await engine.take()
        engine.schedule(Request(f"{URL}2", callback=lambda response: None))
        engine.finish(parent)
        child = await engine.take()
        assert frontier.unsaved_updates == 0
        # A retry of the child is waited for as well.
        engine.scheduler.inflight.downloaded(child, answer(child, 503))
        engine.schedule(again(engine, child))
        engine.finish(child)
        retry = await engine.take()
        assert frontier.unsaved_updates == 0
        assert not (await queue.entry("/1")).is_handled
        engine.finish(retry)
        await wait_until(lambda: not engine.scheduler.has_pending_requests())
        assert (await queue.entry("/1")).is_handled


async def test_so_many_bytes_are_in_flight_and_not_more(crawls: Crawls) -> None:
    async with driving(crawls, {"APIFY_RQ_MEMORY_MB": 1}) as engine:
        for number in range(3):
            engine.schedule(Request(f"{URL}{number}", method="POST", body=b"x" * 200_000))
        first, second = await engine.take(), await engine.take()
        assert engine.scheduler.inflight.is_full()
        assert engine.next() is None
        engine.finish(first)
        assert await engine.take()
        engine.finish(second)
