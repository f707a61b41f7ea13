"""A crawl inside an Actor run: its environment, the platform's events, and the end of its time."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.settings import Settings, default_settings

from scrapy_apify_rq.actor import events as actor
from scrapy_apify_rq.config import Config
from tests.project import QUEUE, Project
from tests.servers import TOKEN
from tests.support.api_calls import serving_in_thread
from tests.support.apify_sdk import environ
from tests.support.event_server import SECRET, Platform
from tests.support.waiting import run_async
from tests.support.website import Page, Site, links
from tests.test_resume import Gate, wait_until

SPIDER = """
import asyncio

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    async def parse_page(self, response):
        if response.url.endswith("/stuck"):
            await asyncio.sleep(60)
        yield {"url": response.url}
"""
IN_HASTE = """
from scrapy_apify_rq.actor import events as actor

actor._TIME_TO_STOP = {time_to_stop}
actor._FIRST_PAUSE = 0.05
"""
AT_ONCE = 4
SETTINGS = {"CONCURRENT_REQUESTS": AT_ONCE}
PAGES = [f"/{n}" for n in range(20)]
GARBAGE = ("", "{", "[]", "null", '"migrating"', '{"name": ["aborting"]}', "[" * 9999)
LOST = "The connection for the events"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def project_of_run(
    folder: Path, site: Site, *, time_to_stop: float = 3, **settings: Any
) -> Project:
    project = Project(folder, SPIDER, site=site.url, settings={**SETTINGS, **settings})
    with (folder / "project" / "__init__.py").open("a") as file:
        file.write(IN_HASTE.format(time_to_stop=time_to_stop))
    return project


@contextmanager
def running(
    project: Project, env: Mapping[str, str], script: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A crawl that is killed if the test fails on the way, or waits for it in vain."""
    words = () if script else ("crawl", "spider", "-o", "-:jsonlines")
    with project.start(*words, env=env, script=script) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The log up to the line with this text."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"{text!r} is not in the log:\n{''.join(lines)}")


def rest(process: subprocess.Popen[str]) -> str:
    """The log to its end. communicate() would miss what read_until() has read ahead."""
    assert process.stderr is not None
    log = process.stderr.read()
    process.wait()
    return log


def end(process: subprocess.Popen[str], *, quiet: bool = True) -> str:
    """The rest of the log of a crawl that ends by itself, in good order."""
    log = rest(process)
    assert process.returncode == 0, log
    if quiet:
        assert_quiet(log)
    return log


def assert_quiet(log: str) -> None:
    assert "Traceback" not in log, log
    assert "destroyed" not in log, log
    assert "Bug in scrapy-apify-rq" not in log, log
    assert SECRET not in log


def lost_connections(log: str) -> list[str]:
    """The warnings of it."""
    return [line for line in log.splitlines() if LOST in line and "WARNING" in line]


def handled(project: Project) -> int:
    return project.info().handled


# Events


def test_migrating_hands_out_nothing_more_and_waits_for_the_kill(
    tmp_path: Path, gate: Gate, backend: str
) -> None:
    with Platform() as platform, Site({"/": links(*PAGES)}) as site:
        site.serve({path: gate.before("a page") for path in PAGES})
        # Were the leases not given back, the next worker would wait 180 seconds for the rest.
        project = project_of_run(tmp_path, site, APIFY_RQ_ACCESS="shared")
        with running(project, {"ACTOR_EVENTS_WEBSOCKET_URL": platform.url}) as process:
            gate.wait(times=AT_ONCE)
            platform.wait_for_connection()
            # As many again are ready, so that no claim is under way, which would be made yet.
            wait_until(lambda: len(project.locked()) == 2 * AT_ONCE)
            platform.send("migrating", timeRemainingSecs=30)
            log = read_until(process, "about to be migrated")
            gate.open()
            wait_until(lambda: handled(project) == 1 + AT_ONCE and not project.locked())
            # Woken again and again, the engine would ask for more, or find itself idle.
            platform.send("systemInfo", cpuCurrentUsage=1)
            platform.send("migrating")
            log += read_until(process, "about to be migrated")
            assert process.poll() is None
            assert handled(project) == 1 + AT_ONCE
            process.kill()
            log += rest(process)
        assert process.returncode == -signal.SIGKILL
        assert_quiet(log)
        assert "Spider closed" not in log
        assert len(site.paths) == 1 + AT_ONCE
        again = project.crawl("-o", "-:jsonlines")
    assert sorted(site.paths) == sorted(["/", *PAGES])  # nothing lost, nothing twice
    assert again.stats["finish_reason"] == "finished"
    assert project.info().pending == 0
    assert len(again.output.splitlines()) == len(PAGES) - AT_ONCE


@pytest.mark.parametrize(
    "reactor",
    [
        True,
        pytest.param(
            False,
            marks=pytest.mark.skipif(
                not hasattr(default_settings, "TWISTED_REACTOR_ENABLED"),
                reason="new in Scrapy 2.15",
            ),
        ),
    ],
)
def test_aborting_ends_the_run_though_pages_take_longer(
    tmp_path: Path, gate: Gate, reactor: bool, servers: object
) -> None:
    slow = Gate()
    pages = ["/stuck", "/slow", "/1", "/2", *(f"/later/{n}" for n in range(20))]
    with Platform() as platform, Site({"/": links(*pages), "/stuck": "x"}, default="x") as site:
        site.serve({path: gate.before("a page") for path in pages if path != "/stuck"})
        site.serve({"/slow": slow.before("a page")})
        settings = {} if reactor else {"TWISTED_REACTOR_ENABLED": False}
        project = project_of_run(tmp_path, site, **settings)
        with running(project, {"ACTOR_EVENTS_WEBSOCKET_URL": platform.url}) as process:
            gate.wait(times=AT_ONCE - 1)  # "/stuck" has left the downloader
            slow.wait()
            platform.wait_for_connection()
            platform.drop()
            platform.wait_for_connection(2)
            platform.send("aborting")
            platform.send("aborting")
            log = read_until(process, "is being aborted: stopping within 3 seconds")
            began = time.monotonic()
            gate.open()
            # Without a reactor, Scrapy cancels what is left, and complains of it at the very end.
            log += end(process, quiet=reactor)
            assert time.monotonic() - began < 10
        slow.open()
        assert "2 requests are still under way and abandoned" in log
        assert "Spider closed (shutdown)" in log
        assert handled(project) == AT_ONCE
        assert len(site.paths) == AT_ONCE + 2
        assert project.info().pending == 21
        lately = [entry.url.removeprefix(site.url) for entry in project.pending()]
    assert {"/stuck", "/slow"} < set(lately)
    assert "the queue holds 4 handled, 21 pending" in log
    assert log.count("stopping within") == 1


def test_a_crawl_that_is_closing_already_is_not_cut_off(tmp_path: Path, gate: Gate) -> None:
    last = Gate()
    with Platform() as platform, Site({"/": links("/last", *PAGES)}) as site:
        site.serve({path: gate.before("a page") for path in PAGES})
        site.serve({"/last": last.before("a page")})
        project = project_of_run(tmp_path, site, time_to_stop=30, CLOSESPIDER_PAGECOUNT=2)
        with running(project, {"ACTOR_EVENTS_WEBSOCKET_URL": platform.url}) as process:
            platform.wait_for_connection()
            gate.wait(times=AT_ONCE - 1)
            last.open()
            read_until(process, "Closing spider (closespider_pagecount)")
            platform.send("aborting")
            read_until(process, "is being aborted")
            gate.open()
            log = end(process)
    assert "Spider closed (closespider_pagecount)" in log
    # The root, what was under way, and perhaps one that the engine took before it was closing.
    assert len(site.paths) in (1 + AT_ONCE, 2 + AT_ONCE)
    assert f"this run handled {len(site.paths)}" in log
    assert handled(project) == len(site.paths)


def test_the_run_is_stopped_before_its_time_is_up(tmp_path: Path) -> None:
    page = Page(links(*PAGES), delay=0.05)
    many = {f"/{n}": Page(links(f"/{n + 1}"), delay=0.05) for n in range(1000)}
    spider = SPIDER.replace("callback=self.parse_page", "callback=self.parse")
    with Site({"/": page, **many}) as site:
        project = Project(tmp_path, spider, site=site.url, settings=SETTINGS)
        timeout_at = datetime.now(UTC) + timedelta(seconds=7)
        env = {
            "ACTOR_TIMEOUT_AT": timeout_at.isoformat().replace("+00:00", "Z"),
            "ACTOR_EVENTS_WEBSOCKET_URL": f"no address {SECRET}",
        }
        with running(project, env) as process:
            log = read_until(process, "has nearly used up its time")
            log += end(process)
        assert datetime.now(UTC) < timeout_at
    assert len(lost_connections(log)) == 1
    assert "abandoned" not in log
    assert "Spider closed (shutdown)" in log
    assert len(set(site.paths)) == len(site.paths) == handled(project)
    assert project.info().pending > 0


def test_the_times_fit_the_platform() -> None:
    """It kills an aborted run after 30 seconds: the half is left for saving what is done."""
    assert actor._TIME_TO_STOP <= 30


# A websocket that does not work


def test_a_bad_connection_does_not_disturb_the_crawl(tmp_path: Path, gate: Gate) -> None:
    pages = {path: Page("a page", delay=0.1) for path in PAGES}
    with Platform(refuse=2) as platform, Site({"/": links("/gate", *PAGES), **pages}) as site:
        site.serve({"/gate": gate.before(links())})
        project = project_of_run(tmp_path, site, CONCURRENT_REQUESTS=2)
        with running(project, {"APIFY_ACTOR_EVENTS_WS_URL": platform.url}) as process:
            platform.wait_for_connection()
            for text in GARBAGE:
                platform.send_text(text)
            platform.send_bytes(b"\xff\x00")
            platform.send("persistState", isMigrating=False)
            platform.drop()
            platform.wait_for_connection(2)
            platform.close(1001)
            platform.wait_for_connection(3)
            platform.send_text("\x00")
            platform.close(1008)
            log = read_until(process, "closed with code 1008; not connecting again")
            gate.open()
            log += end(process)
        assert (platform.refused, platform.connections) == (2, 3)
    [lost] = lost_connections(log)
    assert "WSServerHandshakeError; connecting again" in lost
    assert "is about to be migrated" not in log
    assert "is being aborted" not in log
    assert "Spider closed (finished)" in log
    assert len(site.paths) == handled(project) == len(PAGES) + 2


async def accept_and_ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a websocket server that sends "migrating" and never answers, not even to a close."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    (key,) = [line.split()[1] for line in head.splitlines() if "sec-websocket-key" in line.lower()]
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + b64encode(digest) + b"\r\n\r\n"
    )
    message = b'{"name": "migrating"}'
    writer.write(bytes([0x81, len(message)]) + message)
    with suppress(ConnectionError):
        await reader.read()
    writer.close()


def test_no_task_outlives_close_and_close_does_not_wait_long() -> None:
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.sleep(60)

    async def work() -> None:
        server = await asyncio.start_server(accept_and_ignore, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        environ = {
            "ACTOR_EVENTS_WEBSOCKET_URL": f"ws://127.0.0.1:{port}",
            "ACTOR_TIMEOUT_AT": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }
        config = Config.from_settings(Settings(), environ, "spider")
        crawler = Crawler(Spider)
        crawler.crawling = True
        crawler.engine = SimpleNamespace(running=False)  # and it never runs
        events = actor.RunEvents(crawler, config, hold)
        before = asyncio.all_tasks()
        events.open()
        await asyncio.wait_for(held.wait(), 10)
        await events.aborting()
        await asyncio.sleep(0.2)
        ours = {t for t in asyncio.all_tasks() - before if "RunEvents" in str(t.get_coro())}
        assert len(ours) == 5
        began = time.monotonic()
        await events.close()
        assert time.monotonic() - began < 5
        assert all(task.done() for task in ours)
        await asyncio.sleep(0.1)  # the server sees the end of the connection
        server.close()

    run_async(work())


# The Apify SDK in the same process

WITH_ACTOR = """
import os

os.environ["SCRAPY_SETTINGS_MODULE"] = "project.settings"

from apify.scrapy import run_scrapy_actor


async def main():
    from apify import Actor
    from apify.scrapy import apply_apify_settings
    from scrapy.crawler import AsyncCrawlerRunner
    from scrapy.utils.log import configure_logging

    async with Actor:
        settings = apply_apify_settings()
        settings["SCHEDULER"] = "scrapy_apify_rq.Scheduler"
        settings["DOWNLOADER_MIDDLEWARES"]["scrapy_apify_rq.DownloaderMiddleware"] = 10000
        settings["SPIDER_MIDDLEWARES"]["scrapy_apify_rq.SpiderMiddleware"] = 10000
        settings["ITEM_PIPELINES"] = {}  # our server has no data sets
        configure_logging(settings)
        await AsyncCrawlerRunner(settings).crawl("spider")


run_scrapy_actor(main())
"""


@pytest.mark.skipif(find_spec("apify") is None, reason="apify is not installed")
def test_an_initialised_actor_of_the_sdk_brings_the_events(
    tmp_path: Path, gate: Gate, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.project.servers", servers)
    pages = PAGES[:AT_ONCE]
    with Platform() as platform, Site({"/": links(*pages)}) as site:
        site.serve({path: gate.before("a page") for path in pages})
        project = project_of_run(tmp_path, site)
        assert project.server is not None
        env = environ(project.server.url, TOKEN, QUEUE)
        env["ACTOR_EVENTS_WEBSOCKET_URL"] = platform.url
        with running(project, env, script=WITH_ACTOR) as process:
            gate.wait(times=AT_ONCE)
            platform.wait_for_connection()
            platform.send("migrating")
            read_until(process, "about to be migrated")
            gate.open()
            wait_until(lambda: handled(project) == len(pages) + 1)
            time.sleep(1)  # the crawl is done, and would be found finished by now
            platform.send("aborting")
            # The SDK's extension stops the crawl at the same time.
            log = read_until(process, "is being aborted: stopping")
            log += end(process)
        assert platform.connections == 1
    assert "Spider closed (shutdown)" in log
    assert log.count("Closing spider") == 1
    assert "this run handled 5" in log
    assert sorted(site.paths) == sorted(["/", *pages])


# The environment


def test_the_environment_of_a_run(tmp_path: Path) -> None:
    """The run's own queue, the internal address, the run's id as client key, and the link."""
    run_id = "runOfTheTests"
    console = "https://console.apify.com/storage/request-queues/"

    def with_link(call: Any, data: Any) -> Any:
        return {**data, "consoleUrl": console + data["id"]} if "consoleUrl" in data else data

    site, server = Site({"/": links(*PAGES)}, default="a page"), tmp_path / "server"
    with site, serving_in_thread(server, TOKEN) as api:
        api.after = with_link
        env = environ(api.url, TOKEN, "queue-of-the-run")
        nowhere = "127.0.0.1:9"
        env["APIFY_API_PUBLIC_BASE_URL"] = f"http://{nowhere}"
        env["ACTOR_EVENTS_WEBSOCKET_URL"] = f"ws://{nowhere}?key={SECRET}"
        api.calls.clear()
        project = Project(tmp_path / "project", SPIDER, site=site.url)
        settings = project.folder / "project" / "settings.py"
        settings.write_text(settings.read_text() + "del APIFY_RQ_NAME\n")
        crawl = project.run("crawl", "spider", env=env)
    assert crawl.returncode == 0, crawl.log
    assert_quiet(crawl.log)
    assert len(lost_connections(crawl.log)) == 1
    assert crawl.stats["apify_rq/handled"] == len(PAGES) + 1
    link = console + env["ACTOR_DEFAULT_REQUEST_QUEUE_ID"]
    last = crawl.log.splitlines()[-1]
    assert f"Request queue 'queue-of-the-run' in {link}: this run handled 21" in last
    keys = {call.path: call.query.get("clientKey") for call in api.calls}
    assert keys["/requests/batch"] == keys["/head"] == run_id
