"""Begin a crawl on one backend and finish it on the other, by the commands of the documents."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scrapy.http import Response

from tests.support.command_line import rq_ok
from tests.support.crawling import Crawls
from tests.support.documents import commands
from tests.support.queues import Queue, ServedQueue, copied
from tests.support.spiders import SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Hit, Page, Site, begun, let_go, links

PATHS = [f"/{number}" for number in range(60)]
HELD = PATHS[30:34]
SETTINGS: dict[str, Any] = {"SPIDER_MODULES": [__name__], "CONCURRENT_REQUESTS": len(HELD)}


class Family(SiteSpider):
    def parse(self, response: Response, parent: Any = None) -> Any:
        for link in response.css("a::attr(href)"):
            yield response.follow(link, cb_kwargs={"parent": (response.url, 1)})


def page(hit: Hit) -> Page:
    number = int(hit.path[1:])
    return Page(links(PATHS[(number + 7) % 60], f"/more/{number % 9}"))


def words(command: list[str], *, is_cloud: bool, file: Path) -> list[str]:
    """The arguments of a command in the documents. The token is left out; the settings have it."""
    assert command[0].startswith("APIFY_TOKEN=") == is_cloud
    return [str(file) if word == "crawl.jsonl" else word for word in command[1 + is_cloud :]]


@pytest.mark.parametrize("to_the_api", [True, False])
async def test_moving(
    tmp_path: Path,
    site: Site,
    queue: Queue,
    served: ServedQueue,
    crawls: Crawls,
    to_the_api: bool,
) -> None:
    source, target = (queue, served) if to_the_api else (served, queue)
    held = {path: Held(page) for path in HELD}
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, page), PATHS[3]: 404, **held})
    site.serve({f"/more/{number}": "page" for number in range(9)})
    first = await crawls.start(Family, SETTINGS, queue=source, site=site.url)
    await begun(*held.values())
    await wait_until(lambda: source.handled == len(site.hits) - len(HELD))
    file, lines = (
        tmp_path / "crawl.jsonl",
        commands("docs/migrating.md", "Between here and the cloud"),
    )
    exporting, importing, crawling = lines[:3] if to_the_api else lines[3:]
    with copied(source) as left:  # by kill -9
        _, *export = words(exporting, is_cloud=not to_the_api, file=file)
        await rq_ok(left, *export, settings=SETTINGS)
        before = await left.entries()
    stopping = asyncio.ensure_future(first.crawler.stop_async())
    await wait_until(lambda: "Closing spider" in first.log_text)
    let_go(*held.values())
    await stopping
    await first.end()
    _, *import_ = words(importing, is_cloud=to_the_api, file=file)
    await rq_ok(target, *import_, settings=SETTINGS)
    after = await target.entries()
    assert {one.id: one.to_json() for one in after} == {one.id: one.to_json() for one in before}
    states = Counter(entry.state for entry in after)
    assert states["failed"] == 1
    assert states["handled"] >= 10
    assert states["pending"] >= 10

    assert words(crawling, is_cloud=to_the_api, file=file) == ["crawl", Family.name]
    second = await crawls.run(Family, SETTINGS, queue=target, site=site.url)
    assert second.reason == "finished"
    assert (await target.info()).pending == 0
    # Only what was in flight is crawled again.
    everything = ["/", *PATHS, *(f"/more/{number}" for number in range(9))]
    assert Counter(first.paths + second.paths) == Counter(everything + HELD)
