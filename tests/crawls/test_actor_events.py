"""A crawl inside an Actor run: its environment, the platform's events, and the end of its time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.settings import Settings

from scrapy_apify_rq.actor import events as actor
from scrapy_apify_rq.config import Config
from tests.support.apify_sdk import environ
from tests.support.crawling import Crawl, Crawls
from tests.support.event_server import SECRET, Platform, end_run_after
from tests.support.queues import TOKEN, Queue, ServedQueue, copied
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site, begun, let_go, links

TIME_TO_STOP = actor._TIME_TO_STOP
AT_ONCE = 4
SETTINGS: dict[str, Any] = {"CONCURRENT_REQUESTS": AT_ONCE}
PAGES = [f"/{number}" for number in range(20)]
GARBAGE = ("", "{", "[]", "null", '"migrating"', '{"name": ["aborting"]}', "[" * 9999, b"\xff\x00")
LOST = "The connection for the events"


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_TIME_TO_STOP", 1.0)
    monkeypatch.setattr(actor, "_FIRST_PAUSE", 0.05)


async def logged(crawl: Crawl, text: str, times: int = 1) -> None:
    await wait_until(lambda: crawl.log_text.count(text) >= times, text)


def assert_quiet(crawl: Crawl) -> None:
    assert not [record for record in crawl.log if record.exc_info]
    assert "Bug in scrapy-apify-rq" not in crawl.log_text
    assert SECRET not in crawl.log_text


def lost_connections(crawl: Crawl) -> list[str]:
    """The warnings of it."""
    lines = crawl.log_text.splitlines()
    return [line for line in lines if LOST in line and line.startswith("WARNING")]


# Events.


async def test_migrating(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is handed out, what is under way is saved, and the crawl waits to be killed."""
    held = {path: Held("page") for path in PAGES}
    site.serve({"/": links(*PAGES), **held})
    # Were the leases not given back, the next worker would wait 180 seconds for the rest.
    settings = {**SETTINGS, "APIFY_RQ_ACCESS": "shared"}
    async with Platform() as platform:
        monkeypatch.setenv("ACTOR_EVENTS_WEBSOCKET_URL", platform.url)
        crawl = await crawls.start(Links, settings, queue=any_queue, site=site.url)
        await begun(*(held[path] for path in PAGES[:AT_ONCE]))
        await platform.connected()
        # As many again are ready, so that no claim is under way, which would be made yet.
        await wait_until(lambda: any_queue.locked == 2 * AT_ONCE)
        await platform.send("migrating", timeRemainingSecs=30)
        await logged(crawl, "about to be migrated")
        let_go(*held.values())
        await wait_until(lambda: any_queue.handled == 1 + AT_ONCE and any_queue.locked == 0)
        # Woken again and again, the engine would ask for more, or find itself idle.
        await platform.send("systemInfo", cpuCurrentUsage=1)
        await platform.send("migrating")
        await logged(crawl, "about to be migrated", 2)
        assert not crawl.task.done()
        assert any_queue.handled == 1 + AT_ONCE
        assert "Spider closed" not in crawl.log_text
        assert len(site.paths) == 1 + AT_ONCE
        monkeypatch.delenv("ACTOR_EVENTS_WEBSOCKET_URL")
        with copied(any_queue) as after_the_kill:
            again = await crawls.run(Links, settings, queue=after_the_kill, site=site.url)
            assert (await after_the_kill.info()).pending == 0
        assert sorted(site.paths) == sorted(["/", *PAGES])  # nothing lost, nothing twice
        assert again.reason == "finished"
        assert len(again.items) == len(PAGES) - AT_ONCE
        await crawl.crawler.stop_async()
        await crawl.end()
    assert_quiet(crawl)


async def test_aborting_a_crawl_that_is_closing(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not cut off."""
    monkeypatch.setattr(actor, "_TIME_TO_STOP", 30.0)
    held = {path: Held("page") for path in ("/last", *PAGES)}
    site.serve({"/": links(*held), **held})
    settings = {**SETTINGS, "CLOSESPIDER_PAGECOUNT": 2}
    async with Platform() as platform:
        monkeypatch.setenv("ACTOR_EVENTS_WEBSOCKET_URL", platform.url)
        crawl = await crawls.start(Links, settings, queue=any_queue, site=site.url)
        await platform.connected()
        await begun(*(held[path] for path in ("/last", *PAGES[: AT_ONCE - 1])))
        let_go(held["/last"])
        await logged(crawl, "Closing spider (closespider_pagecount)")
        await platform.send("aborting")
        await logged(crawl, "is being aborted")
        let_go(*held.values())
        await crawl.end()
    assert_quiet(crawl)
    assert crawl.reason == "closespider_pagecount"
    # The root, what was under way, and perhaps one that the engine took before it was closing.
    assert len(site.paths) in (1 + AT_ONCE, 2 + AT_ONCE)
    assert f"this run handled {len(site.paths)}" in crawl.closing_line
    assert (await any_queue.info()).handled == len(site.paths)


async def test_end_of_the_time_of_a_run(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped halfway, in a run that has no events."""
    monkeypatch.setattr(actor, "_TIME_TO_STOP", 30.0)
    site.serve({"/": Page(links("/0"))})
    site.serve({f"/{n}": Page(links(f"/{n + 1}", f"/{n + 2}"), delay=0.25) for n in range(500)})
    end_run_after(4, monkeypatch)
    monkeypatch.setenv("ACTOR_EVENTS_WEBSOCKET_URL", f"no address {SECRET}")
    crawl = await crawls.run(Links, SETTINGS, queue=any_queue, site=site.url)
    (stop,) = [one.created for one in crawl.log if "has nearly used up" in one.getMessage()]
    assert time.time() < stop + 4 / 2
    assert_quiet(crawl)
    assert len(lost_connections(crawl)) == 1
    assert "abandoned" not in crawl.log_text
    assert crawl.reason == "shutdown"
    info = await any_queue.info()
    assert len(set(site.paths)) == len(site.paths) == info.handled
    assert info.pending > 0


def test_the_times_fit_the_platform() -> None:
    """It kills an aborted run after 30 seconds: the half is left for saving what is done."""
    assert TIME_TO_STOP <= 30


# A websocket that does not work.


async def test_a_bad_connection(
    site: Site, any_queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not disturb the crawl."""
    gate = Held("page")
    site.serve({"/": links("/gate", *PAGES), "/gate": gate, **dict.fromkeys(PAGES, "page")})
    async with Platform(refuse=2) as platform:
        monkeypatch.setenv("APIFY_ACTOR_EVENTS_WS_URL", platform.url)
        crawl = await crawls.start(Links, queue=any_queue, site=site.url)
        await platform.connected()
        for message in GARBAGE:
            await platform.send_raw(message)
        await platform.send("persistState", isMigrating=False)
        platform.drop()
        await platform.connected(2)
        await platform.close(1001)
        await platform.connected(3)
        await platform.send_raw("\x00")
        await platform.close(1008)
        await logged(crawl, "closed with code 1008; not connecting again")
        gate.go.set()
        await crawl.end()
        assert (platform.refused, platform.connections) == (2, 3)
    assert_quiet(crawl)
    (lost,) = lost_connections(crawl)
    assert "WSServerHandshakeError; connecting again" in lost
    assert "is about to be migrated" not in crawl.log_text
    assert "is being aborted" not in crawl.log_text
    assert crawl.reason == "finished"
    assert len(site.paths) == (await any_queue.info()).handled == len(PAGES) + 2


async def test_close_ends_all_tasks_and_does_not_wait_long() -> None:
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.Event().wait()

    async with Platform(answers_close=False) as platform:
        variables = {
            "ACTOR_EVENTS_WEBSOCKET_URL": platform.url,
            "ACTOR_TIMEOUT_AT": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }
        config = Config.from_settings(Settings(), variables, "spider")
        crawler = Crawler(Spider)
        crawler.crawling = True
        crawler.engine = SimpleNamespace(running=False)  # type: ignore[assignment] # it never runs
        events = actor.RunEvents(crawler, config, hold)
        before = asyncio.all_tasks()
        events.open()
        await platform.connected()
        await platform.send("migrating")
        await asyncio.wait_for(held.wait(), 10)
        await events.aborting()
        await asyncio.sleep(0.2)
        ours = {one for one in asyncio.all_tasks() - before if "RunEvents" in str(one.get_coro())}
        assert len(ours) == 5
        loop = asyncio.get_running_loop()
        began = loop.time()
        await events.close()
        assert loop.time() - began < 5
        assert all(task.done() for task in ours)


# The environment.


async def test_the_environment_of_a_run(
    site: Site, served: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's own queue, the internal address, the run's id as client key, and the link."""
    console = "https://console.apify.com/storage/request-queues/"

    def with_link(call: Any, data: Any) -> Any:
        has_link = data is not None and "consoleUrl" in data
        return {**data, "consoleUrl": console + data["id"]} if has_link else data

    served.api.after = with_link
    env = environ(served.api.url, TOKEN, "queue-of-the-run")
    env["APIFY_API_PUBLIC_BASE_URL"] = "http://127.0.0.1:9"
    env["ACTOR_EVENTS_WEBSOCKET_URL"] = f"ws://127.0.0.1:9?key={SECRET}"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    served.api.calls.clear()
    site.serve({"/": links(*PAGES), **dict.fromkeys(PAGES, "page")})
    unset = dict.fromkeys(served.settings)
    crawl = await crawls.run(Links, unset, queue=served, site=site.url)
    assert_quiet(crawl)
    assert len(lost_connections(crawl)) == 1
    assert crawl.stats["apify_rq/handled"] == len(PAGES) + 1
    link = console + env["ACTOR_DEFAULT_REQUEST_QUEUE_ID"]
    assert f"Request queue 'queue-of-the-run' in {link}: this run handled 21" in crawl.closing_line
    keys = {call.path: call.query.get("clientKey") for call in served.api.calls}
    assert keys["/requests/batch"] == keys["/head"] == "runOfTheTests"
