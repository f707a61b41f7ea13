"""What the engine asks of the scheduler, one call at a time."""

from __future__ import annotations

from typing import Any

from scrapy import Request, Spider
from scrapy.core.scheduler import Scheduler as StockScheduler
from scrapy.crawler import Crawler
from scrapy.utils.engine import get_engine_status

from scrapy_apify_rq.crawl.scheduler import Scheduler
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import BackendError
from tests.support.crawling import Crawls
from tests.support.engine_driver import driving
from tests.support.queues import Queue
from tests.support.waiting import wait_until

URL = "http://localhost/"


def numbers(*requests: Request | None) -> list[str | None]:
    return [None if request is None else request.url.removeprefix(URL) for request in requests]


async def test_a_request_is_taken_once_and_stored(queue: Queue, crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        one = Request(f"{URL}1")
        assert engine.schedule(one, Request(f"{URL}1"), Request(f"{URL}2")) == [True, False, True]
        assert engine.schedule(Request(f"{URL}1", dont_filter=True)) == [True]
        await wait_until(lambda: len(engine.scheduler) == 3)
        assert engine.next() is one
    paths = sorted(entry.url.removeprefix(URL) for entry in await queue.entries())
    assert paths == ["1", "1", "2"]
    assert engine.crawl.stats["dupefilter/filtered"] == 1


async def test_the_most_urgent_first_and_then_in_turn(crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        for number, priority in enumerate([0, -1, 5, 0]):
            engine.schedule(Request(f"{URL}{number}", priority=priority))
        await wait_until(lambda: len(engine.scheduler) == 4)
        handed_out = [engine.next() for _ in range(5)]
    assert numbers(*handed_out) == ["2", "0", "3", "1", None]


async def test_it_has_pending_requests_until_all_is_finished_and_saved(
    queue: Queue, crawls: Crawls
) -> None:
    async with driving(crawls) as engine:
        engine.schedule(Request(f"{URL}1"))
        assert engine.scheduler.has_pending_requests()
        request = await engine.take()
        assert len(engine.scheduler) == 0
        assert engine.scheduler.has_pending_requests()
        engine.finish(request)
        assert engine.scheduler.has_pending_requests()
        await wait_until(lambda: not engine.scheduler.has_pending_requests())
        assert (await queue.entry("/1")).is_handled


async def test_a_request_that_cannot_be_written_stays_in_memory(
    queue: Queue, crawls: Crawls
) -> None:
    async with driving(crawls) as engine:
        request = Request(f"{URL}1", callback=lambda response: None)
        assert engine.schedule(request, Request(f"{URL}1")) == [True, False]
        assert await engine.take() is request
        engine.finish(request)
    assert await queue.entries() == []
    assert engine.crawl.stats["scheduler/unserializable"] == 1
    assert engine.crawl.stats["scheduler/dequeued/memory"] == 1


async def test_one_object_scheduled_twice_is_handed_out_in_turn(crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        request = Request(f"{URL}1", callback=lambda response: None, dont_filter=True)
        assert engine.schedule(request, request) == [True, True]
        assert await engine.take() is request
        assert engine.next() is None
        engine.finish(request)
        assert await engine.take() is request
        engine.finish(request)


async def test_status_is_what_scrapys_tools_show(crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        engine.schedule(*(Request(f"{URL}{number}") for number in range(3)))
        engine.schedule(Request(f"{URL}3", lambda response: None, priority=-1))
        await wait_until(lambda: len(engine.scheduler) == 4)
        await engine.take()
        status = {"waiting": 3, "memory_only": 1, "in_flight": 1}
        assert engine.scheduler.status() == {**status, "unsaved_adds": 0, "unsaved_updates": 0}
        assert engine.crawl.crawler.engine is not None
        # Scrapy 2.16 and 2.17 show them as those of engine._slot.scheduler.
        shown = {
            name.rpartition(".")[2]: value
            for name, value in get_engine_status(engine.crawl.crawler.engine)
        }
        assert (shown["dqs or [])"], shown["mqs)"]) == (2, 1)


async def test_an_entry_that_cannot_be_read_is_handled_with_the_reason(
    queue: Queue, crawls: Crawls
) -> None:
    user_data = {"scrapy": {"v": 1, "callback": "closed"}}
    await queue.add(
        *(
            Entry(id=request_id(url), unique_key=url, url=url, user_data=data)
            for url, data in [(f"{URL}1", user_data), (f"{URL}2", {})]
        )
    )
    async with driving(crawls) as engine:
        assert numbers(await engine.take(), engine.next()) == ["2", None]
    entry = await queue.entry("/1")
    assert entry.failed
    assert entry.error_messages[0].startswith("not crawled, since it cannot be decoded: ")
    assert engine.crawl.stats["apify_rq/undecodable"] == 1


async def test_the_spider_waits_for_room_but_not_with_a_duplicate(crawls: Crawls) -> None:
    async with driving(crawls, {"APIFY_RQ_OUTBOX": 1}) as engine:
        scheduler = engine.scheduler
        assert not scheduler.is_full()
        engine.schedule(Request(f"{URL}1"))
        assert scheduler.is_full()
        await scheduler.room(Request(f"{URL}1"))
        assert scheduler.is_full()
        await scheduler.room(Request(f"{URL}2"))
        assert not scheduler.is_full()


def made(settings: dict[str, Any], *, crawling: bool = True) -> Any:
    crawler = Crawler(Spider, settings)
    crawler.crawling = crawling
    crawler._apply_settings()
    return Scheduler.from_crawler(crawler)


def test_scrapys_own_scheduler_where_there_is_no_crawl() -> None:
    assert isinstance(made({}, crawling=False), StockScheduler)
    assert isinstance(made({"APIFY_RQ_ENABLED": False}), StockScheduler)


async def test_a_queue_that_fails_does_not_look_finished(crawls: Crawls) -> None:
    async with driving(crawls) as engine:
        await wait_until(lambda: not engine.scheduler.has_pending_requests())
        engine.scheduler._life.failed(BackendError("It is gone.", "apify_rq_gone"))
        assert engine.scheduler.has_pending_requests()
        await wait_until(lambda: engine.crawl.reason == "apify_rq_gone")
