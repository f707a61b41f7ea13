"""What the documents tell people to do, and what they say a crawl logs."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_calls import error
from tests.support.command_line import rq
from tests.support.crawling import Crawls
from tests.support.documents import blocks, snippet
from tests.support.queues import NAME, Queue, ServedQueue
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, begun, links

TROUBLE = "docs/troubleshooting.md"
ACCIDENTS = "docs/kills.md"


class News(Links):
    start_urls: list[str]

    async def start(self) -> Any:
        self.start_urls = [f"{self.site}/"]
        async for request in super(Links.__bases__[0], self).start():
            yield request


async def test_only_what_is_new(tmp_path: Path, site: Site, queue: Queue, crawls: Crawls) -> None:
    """Run by run; a feed of each."""
    recipe: dict[str, Any] = {}
    exec(snippet("docs/scheduling.md", "Only what is new, every night"), recipe)
    del recipe["__builtins__"]
    site.serve({"/": [links("/old"), links("/old", "/new")], "/old": "page", "/new": "page"})
    crawled = []
    for night in "ab":
        feed = tmp_path / night
        crawl = await crawls.run(
            News, {**recipe, "FEEDS": {str(feed): {"format": "jsonlines"}}}, site=site.url
        )
        items = [json.loads(line)["path"] for line in feed.read_text().splitlines()]
        crawled.append((sorted(crawl.paths), sorted(items)))
    assert crawled == [(["/", "/old"],) * 2, (["/", "/new"],) * 2]


async def test_commands_of_troubleshooting(
    tmp_path: Path, site: Site, queue: Queue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.serve({"/": links("/gone", "/page"), "/page": "page"})
    monkeypatch.chdir(tmp_path)
    await crawls.run(Links, {"FEEDS": {"feed.csv": {"format": "csv"}}}, site=site.url)
    shown = [line for block in blocks(TROUBLE) if block.language == "bash" for line in block.lines]
    assert len(shown) == 5
    for line in sorted(shown, key=lambda line: "purge" in line):
        _, _, *words = shlex.split(line)
        done = await rq(queue, *words)
        assert done.code == 0, line
        assert words != ["queues"] or NAME in done.out


def patterns(title: str) -> list[str]:
    """What the page says the log says, without its numbers and with anything for its dots."""
    texts = [block.text.strip() for block in blocks(ACCIDENTS, title) if block.language == "text"]
    escaped = (re.escape(text).replace(re.escape("https://..."), ".*") for text in texts)
    escaped = (text.replace(re.escape("..."), ".*") for text in escaped)
    return [re.sub(r"\d+", r"[\\d.]+", one) for one in escaped]


async def test_stopped_while_the_api_is_down(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """What Ctrl-C does then."""
    paths = [f"/{number}" for number in range(40)]
    held = Held(links(*paths, "/new"))
    site.serve({"/": links("/held"), "/held": held, **dict.fromkeys([*paths, "/new"], "page")})
    settings = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5}
    crawl = await crawls.start(Links, settings, queue=served, site=site.url)
    await begun(held)
    await wait_until(lambda: served.handled == 1, "the end of the first page")
    served.api.before = lambda call: error(503, "down")
    stopping = asyncio.ensure_future(crawl.crawler.stop_async())
    held.go.set()
    await stopping
    await crawl.end()
    for pattern in patterns("Ctrl-C while the API is down"):
        assert re.search(pattern, crawl.log_text), pattern
    assert crawl.reason == "shutdown"

    served.api.before = lambda call: None
    again = await crawls.run(Links, queue=served, site=site.url)
    assert again.reason == "finished"
    assert set(again.paths) == {"/held", *paths, "/new"}
