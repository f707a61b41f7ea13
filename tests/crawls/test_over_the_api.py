"""What survives over the API: items in a dataset, and feeds, state and cookies.

What a kill leaves: ``copied(queue)``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import Request as Call
from urllib.request import urlopen

import pytest

from scrapy_apify_rq.backends.apify import http
from tests.crawls.test_items import Kinds, contents, feeds, files_in, restore
from tests.support.command_line import rq_ok
from tests.support.crawling import Crawl, Crawls
from tests.support.faults import Faults
from tests.support.queues import NAME, TOKEN, Queue, ServedQueue, copied
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, let_go, links

SAVED = {"APIFY_RQ_ITEMS": True}


def stored(queue: Queue, dataset: str = f"~{NAME}", query: str = "") -> list[Any]:
    """The items of a dataset, as anybody can download them."""
    assert isinstance(queue, ServedQueue)
    url = f"{queue.api.url}/v2/datasets/{dataset}/items?{query}"
    with urlopen(Call(url, headers={"Authorization": f"Bearer {TOKEN}"})) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


async def exported(queue: Queue) -> Counter[str]:
    """The paths that ``scrapy rq items`` exports."""
    done = await rq_ok(queue, "items", settings={"APIFY_RQ_TRUSTED_MODULES": [Kinds.__module__]})
    return Counter(item["path"] for item in done.lines)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are made again at once."""
    monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.005)


@pytest.fixture
def killed() -> Iterator[Any]:
    """Gives what a kill leaves at that moment: the queue, and what is written in a folder."""
    with ExitStack() as stack:

        async def kill(queue: Queue, crawl: Crawl, folder: Path, *held: Held) -> Queue:
            left = stack.enter_context(copied(queue))
            written = files_in(folder)
            let_go(*held)
            await crawl.end()
            restore(folder, written)
            return left

        yield kill


@pytest.mark.usefixtures("hurried", "short_delay")
async def test_kills_and_faults(
    site: Site, served: Queue, crawls: Crawls, tmp_path: Path, killed: Any
) -> None:
    """One call in seven goes wrong in some way."""
    queue: Any = served
    pages = [f"/{number}" for number in range(40)]
    folder = tmp_path / "feeds"
    kinds = ("over.json", "add.jl", "add.csv")
    some = {path: feed for path, feed in feeds(folder).items() if path.endswith(kinds)}
    settings = {"FEEDS": some, "CONCURRENT_REQUESTS": 4}
    site.serve({"/": links(*pages), **dict.fromkeys(pages, "page")})
    for _ in range(3):
        queue.faults(Faults(dropped=0.03, limited=0.03, failed=0.03, lost=0.03, unprocessed=0.03))
        crawl = await crawls.start(Kinds, settings, queue=queue, site=site.url)
        await wait_until(lambda crawl=crawl: crawl.stats.get("apify_rq/handled", 0) >= 8)
        queue = await killed(queue, crawl, folder)
    crawl = await crawls.run(Kinds, settings, queue=queue, site=site.url)
    assert crawl.reason == "finished"
    every = Counter(["/", *pages])
    found = contents(folder)
    assert found == dict.fromkeys(found, every + every)
    assert await exported(queue) == every + every
    assert {item["path"] for item in stored(queue, query="clean=true")} == set(every)
