"""What ends the process of an Actor run, and Apify's SDK beside us, which is one per process."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from scrapy.settings import default_settings

from tests.support import apify_sdk
from tests.support.event_server import SECRET, Platform
from tests.support.process_spiders import Run
from tests.support.queues import NAME, TOKEN, Queue, ServedQueue
from tests.support.scrapy_project import Process, Project
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, begun, let_go, links

AT_ONCE = 4
SETTINGS: dict[str, Any] = {"CONCURRENT_REQUESTS": AT_ONCE}
SDK_SCRIPT = Path(apify_sdk.__file__).parent / "official" / "our_actor.py"


async def logged(process: Process, text: str) -> None:
    await wait_until(lambda: text in process.log, text)


def assert_quiet(log: str) -> None:
    for fault in ("Traceback", "destroyed", "Bug in scrapy-apify-rq", SECRET):
        assert fault not in log, log


@pytest.mark.parametrize(
    ("any_queue", "reactor"), [("sqlite", True), ("apify", False)], indirect=["any_queue"]
)
async def test_aborting_ends_the_process(
    tmp_path: Path, site: Site, any_queue: Queue, reactor: bool
) -> None:
    """Though a download and a callback take longer."""
    if not (reactor or hasattr(default_settings, "TWISTED_REACTOR_ENABLED")):
        pytest.skip("new in Scrapy 2.15")
    pages = {f"/{number}": Held("page") for number in range(24)}
    site.serve({"/": links("/stuck"), "/stuck": links(*pages), **pages})
    settings = SETTINGS if reactor else {**SETTINGS, "TWISTED_REACTOR_ENABLED": False}
    project = Project(tmp_path / "project", any_queue, Run, settings)
    async with Platform() as platform:
        env = {"ACTOR_EVENTS_WEBSOCKET_URL": platform.url}
        async with project.begin(site=site.url, env=env) as process:
            await wait_until(lambda: len(site.paths) == 2 + AT_ONCE, "pages under way")
            slow, *others = site.paths[2:]  # batches of links may be stored in any order
            await platform.connected()
            platform.drop()
            await platform.connected(2)
            await platform.send("aborting")
            await platform.send("aborting")
            await logged(process, "is being aborted: stopping within 3 s")
            await logged(process, "Closing spider (shutdown)")
            began = time.monotonic()
            let_go(*(pages[path] for path in others))
            aborted = await process.end()
            assert time.monotonic() - began < 10
    let_go(pages[slow])
    assert aborted.status == 0, aborted.log
    # Without a reactor, Scrapy cancels what is left, and complains of it at the very end.
    if reactor:
        assert_quiet(aborted.log)
    assert "Still under way and abandoned: 2 requests" in aborted.log
    assert "Spider closed (shutdown)" in aborted.log
    assert aborted.log.count("stopping within") == 1
    assert site.paths == ["/", "/stuck", slow, *others]
    assert "the queue holds 4 handled, 22 pending" in aborted.log
    entries = await any_queue.entries()
    pending = {entry.url.removeprefix(site.url) for entry in entries if not entry.is_handled}
    assert pending == {"/stuck", *pages} - {*others}


@pytest.mark.skipif(find_spec("apify") is None, reason="apify is not installed")
async def test_an_initialised_actor_of_the_sdk_brings_the_events(
    tmp_path: Path, site: Site, served: ServedQueue
) -> None:
    held = {f"/{number}": Held("page") for number in range(AT_ONCE)}
    site.serve({"/": links(*held), **held})
    project = Project(tmp_path / "project", served, Run, SETTINGS)
    env = apify_sdk.environ(served.api.url, TOKEN, NAME)
    async with Platform() as platform:
        env |= {"ACTOR_EVENTS_WEBSOCKET_URL": platform.url, "SITE": site.url}
        async with project.start(env=env, script=SDK_SCRIPT) as process:
            await begun(*held.values())
            await platform.connected()
            await platform.send("migrating")
            await logged(process, "about to be migrated")
            let_go(*held.values())
            await wait_until(lambda: served.handled == len(held) + 1)
            await asyncio.sleep(1)  # the crawl is done, and would be found finished by now
            assert not process.has_ended
            await platform.send("aborting")
            # The SDK's extension stops the crawl at the same time.
            ended = await process.end()
        assert platform.connections == 1
    assert ended.status == 0, ended.log
    assert_quiet(ended.log)
    assert "is being aborted: stopping" in ended.log
    assert "Spider closed (shutdown)" in ended.log
    assert ended.log.count("Closing spider") == 1
    assert "this run handled 5" in ended.log
    assert sorted(site.paths) == sorted(["/", *held])
