"""What survives over the API: items in a dataset, and feeds, state and cookies.

What a kill leaves: ``copied(queue)``.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as Call
from urllib.request import urlopen

import pytest
from scrapy import Request, signals
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.crawl import state
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.crawls.test_items import (
    Kinds,
    Loose,
    Many,
    SecondExporter,
    contents,
    feeds,
    files_in,
    restore,
)
from tests.crawls.test_state import KEYS, WORKER, LogsIn, login, records, sent_cookies
from tests.support.api_calls import error
from tests.support.command_line import rq_ok
from tests.support.crawling import Crawl, Crawls
from tests.support.faults import Faults
from tests.support.queues import NAME, TOKEN, Queue, ServedQueue, copied
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site, begun, let_go, links


def stored(queue: Queue, dataset: str = f"~{NAME}", query: str = "") -> list[Any]:
    """The items of a dataset, as anybody can download them."""
    assert isinstance(queue, ServedQueue)
    url = f"{queue.api.url}/v2/datasets/{dataset}/items?{query}"
    try:
        with urlopen(Call(url, headers={"Authorization": f"Bearer {TOKEN}"})) as answer:
            return json.load(answer)  # type: ignore[no-any-return]
    except HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        return []  # it is made with the first item


async def exported(queue: Queue) -> Counter[str]:
    """The paths that ``scrapy rq items`` exports."""
    done = await rq_ok(queue, "items", settings={"APIFY_RQ_TRUSTED_MODULES": [Kinds.__module__]})
    return Counter(item["path"] for item in done.lines)


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
    site.serve({"/": links(*pages), **dict.fromkeys(pages, Page(delay=0.02))})
    for _ in range(3):
        queue.faults(Faults(dropped=0.03, limited=0.03, failed=0.03, lost=0.03, unprocessed=0.03))
        crawl = await crawls.start(Kinds, settings, queue=queue, site=site.url)
        await wait_until(lambda crawl=crawl: crawl.stats.get("apify_rq/handled", 0) >= 6)
        queue = await killed(queue, crawl, folder)
    crawl = await crawls.run(Kinds, settings, queue=queue, site=site.url)
    assert crawl.reason == "finished"
    every = Counter(["/", *pages])
    found = contents(folder)
    assert found == dict.fromkeys(found, every + every)
    assert await exported(queue) == every + every
    assert {item["path"] for item in stored(queue, query="clean=true")} == set(every)


async def test_no_feed_is_written_that_nobody_could_cut_back(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    """Since what is noted about its file cannot be stored."""
    site.serve({"/": links("/a"), "/a": "page"})
    file = tmp_path / "items.jl"
    settings = {"FEEDS": {str(file): {"format": "jsonlines"}}}
    served.api.before = lambda call: error(403) if "scrapy-rq.feeds" in call.path else None
    crawl = await crawls.run(Links, settings, queue=served, site=site.url)
    assert crawl.reason != "finished"
    assert not file.exists() or not file.read_text()
    served.api.before = lambda call: None
    await crawls.run(Links, settings, queue=served, site=site.url)
    paths = [json.loads(line)["path"] for line in file.read_text().splitlines()]
    assert sorted(paths) == ["/", "/a"]


async def test_no_batch_is_replayed_that_nobody_could_cut_back(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    """A feed that is new to the crawl, and whose second batch cannot be noted."""
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
    first = {"APIFY_RQ_ITEMS": True, "CLOSESPIDER_PAGECOUNT": 2, "CONCURRENT_REQUESTS": 1}
    await crawls.run(Links, first, queue=served, site=site.url)
    feed = {str(tmp_path / "%(batch_id)d-.jl"): {"format": "jsonlines", "batch_item_count": 1}}
    served.api.before = lambda call: (
        error(403) if "scrapy-rq.feeds" in call.path and b"2-.jl" in call.body else None
    )
    crawl = await crawls.run(Links, {"FEEDS": feed}, queue=served, site=site.url)
    assert crawl.reason == "apify_rq_unauthorized"
    served.api.before = lambda call: None
    await crawls.run(Links, {"FEEDS": feed}, queue=served, site=site.url)
    found = [text.decode() for _, text in sorted(files_in(tmp_path).items())]
    assert found == [f'{{"path": "{path}"}}\n' for path in ("/", "/a", "/b")]


async def test_a_batch_that_cannot_be_noted_while_there_are_two_exporters(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    """The first one begins it, and the second one has to wait for the note."""
    site.serve({"/": "page"})
    feed = {str(tmp_path / "%(batch_id)d-.jl"): {"format": "jsonlines", "batch_item_count": 1}}
    served.api.before = lambda call: (
        error(403) if "scrapy-rq.feeds" in call.path and b"2-.jl" in call.body else None
    )
    settings = {"FEEDS": feed, "EXTENSIONS": {SecondExporter: 0}}
    crawl = await crawls.run(Links, settings, queue=served, site=site.url)
    assert crawl.reason == "apify_rq_unauthorized"


async def test_a_crawl_is_over_though_the_counts_lag(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    """The feeds of the next crawl begin with nothing of this one."""
    site.serve({"/": links("/a"), "/a": (held := Held("page"))})
    settings = {"FEEDS": {str(tmp_path / "items.jl"): {"format": "jsonlines"}}}
    first = await crawls.start(Links, settings, queue=served, site=site.url)
    await wait_until(lambda: first.stats.get("apify_rq/handled") == 1)
    served.faults(Faults(counter_lag=600))
    let_go(held)
    await first.end()
    assert "1 handled, 1 pending" in first.closing_line
    served.faults(Faults())
    second = await crawls.run(Links, settings, queue=served, site=site.url)
    assert "The feeds have got" not in second.log_text
    assert site.paths == ["/", "/a"]


async def test_a_crawl_is_not_over_though_the_counts_lag(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    """They do not know of its links yet when it is stopped."""
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
    feed = {str(tmp_path / "items.jl"): {"format": "jsonlines", "overwrite": True}}
    served.faults(Faults(counter_lag=600))
    first = {"FEEDS": feed, "CLOSESPIDER_PAGECOUNT": 1}
    crawl = await crawls.run(Links, first, queue=served, site=site.url)
    assert "0 pending" in crawl.closing_line
    served.faults(Faults())
    await crawls.run(Links, {"FEEDS": feed}, queue=served, site=site.url)
    assert contents(tmp_path)["items.jl"] == Counter(["/", "/a", "/b"])


# Items that are in the dataset and do not count.


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        pytest.param(links("/a"), ["/", "/a"], id="crawled"),
        pytest.param([503, links("/a")], ["/", "/a"], id="retried"),
        pytest.param(404, ["/a"], id="failed"),
    ],
)
async def test_a_page_whose_ack_never_came(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path, then: Any, expected: list[str]
) -> None:
    """Its items are pushed before the ack, so those of what ``then`` comes take their place."""
    site.serve({"/": links("/a"), "/a": "page"})
    folder = tmp_path / "feeds"
    settings = {"FEEDS": {str(folder / "items.jl"): {"format": "jsonlines"}}}
    is_acked = False

    def refuse(call: Any) -> Any:
        is_ack = call.method == "PUT" and call.path.startswith("/requests/")
        return error(500) if is_ack and not is_acked else None

    served.api.before = refuse
    crawl = await crawls.start(Links, settings, queue=served, site=site.url)
    await wait_until(lambda: pushes(served))
    await wait_until(lambda: stored(served), "an item in the dataset")
    with copied(served) as left:
        is_acked = True
        written = files_in(folder)
        await crawl.end()
        restore(folder, written)
        assert [item["path"] for item in stored(left)] == ["/"]
        assert await exported(left) == Counter()
        site.serve({"/": then, "/a": "page"})
        await crawls.run(Links, settings, queue=left, site=site.url)
        assert contents(folder)["items.jl"] == Counter(expected)
        assert sorted(item["path"] for item in stored(left)) == ["/", *expected]
        assert await exported(left) == Counter(expected)


class Thrice(Links):
    """Scrapes the user data at each of three tries."""

    def parse(self, response: Response) -> Iterator[Any]:
        yield {"path": json.dumps(response.meta["userData"])}
        yield get_retry_request(response.request, spider=self, reason="why") or {"path": "end"}


async def test_the_items_of_all_tries_count(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """Of an entry whose user data another program has written, which stay as they were."""
    site.serve({"/": "page"})
    data, url = {"x": 1, "label": "L"}, f"{site.url}/"
    await served.add(Entry(id=request_id(url), unique_key=url, url=url, user_data=data))
    settings: dict[str, Any] = {"APIFY_RQ_ITEMS": True}
    first = {**settings, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Thrice, first, queue=served, site=site.url)
    await crawls.run(Thrice, settings, queue=served, site=site.url)
    assert await exported(served) == Counter([*[json.dumps(data)] * 3, "end"])


def pushes(queue: ServedQueue) -> list[Any]:
    return [one for one in queue.api.calls if one.method == "POST" and one.path.endswith("/items")]


async def test_many_items_of_one_callback_are_sent_ahead(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """They count with the ack, and not before."""
    site.serve({"/": "page"})
    go = asyncio.Event()
    settings = {"APIFY_RQ_ITEMS": True, "LOG_LEVEL": "INFO"}
    crawl = await crawls.start(Many, settings, queue=served, site=site.url, go=go)
    await wait_until(lambda: crawl.stats.get("apify_rq/items") == Many.count)
    await wait_until(lambda: len(stored(served)) > 500)
    with copied(served) as left:
        go.set()
        await crawl.end()
        assert await exported(served) == Counter(range(Many.count))
        assert await exported(left) == Counter()
        Many.count, count = 10, Many.count
        try:
            await crawls.run(Many, settings, queue=left, site=site.url, go=go)
        finally:
            Many.count = count
        assert await exported(left) == Counter(range(10))


async def test_items_of_no_request_come_once(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    held = Held()
    site.serve({"/": held})
    folder = tmp_path / "feeds"
    settings = {"FEEDS": {str(folder / "items.jl"): {"format": "jsonlines", "overwrite": True}}}
    crawl = await crawls.start(Loose, settings, queue=served, site=site.url)
    await begun(held)
    await wait_until(lambda: len(stored(served)) == 4)
    with copied(served) as left:
        let_go(held)
        await crawl.end()
        for runs in (1, 2):
            crawl = await crawls.run(Loose, settings, queue=left, site=site.url)
            starts = [f"start {n}" for n in (1, 2, 2, 3)]
            expected = Counter([*starts, "/", "idle 0", "idle 0", "idle 1"])
            assert await exported(left) == expected
            if runs == 1:
                assert contents(folder)["items.jl"] == expected
                assert crawl.stats["apify_rq/items_known"] == 4


class ScrapesEarly(Links):
    """Scrapes an item while its feeds get those of earlier runs."""

    run = ""

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> ScrapesEarly:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.opened, signals.spider_opened)
        return spider

    async def opened(self) -> None:
        await wait_until(lambda: scrapy_private.scheduler(self.crawler).feeds._is_open)
        item = {"path": f"opened {self.run}"}
        await self.crawler.engine.scraper.start_itemproc_async(item, response=None)


async def test_an_item_that_is_scraped_before_the_feeds_have_the_old_ones(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    site.serve({"/": links("/a"), "/a": "page"})
    settings = {"FEEDS": {str(tmp_path / "items.jl"): {"format": "jsonlines", "overwrite": True}}}
    first = {**settings, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(ScrapesEarly, first, queue=served, site=site.url, run="1")
    await crawls.run(ScrapesEarly, settings, queue=served, site=site.url, run="2")
    assert contents(tmp_path)["items.jl"] == Counter(["opened 1", "opened 2", "/", "/a"])


async def test_an_item_that_the_dataset_does_not_take(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
    served.api.before = lambda call: error(400) if b'"/a"' in call.body and pushes(served) else None
    crawl = await crawls.run(Links, {"APIFY_RQ_ITEMS": True}, queue=served, site=site.url)
    assert crawl.reason == "finished"
    assert await exported(served) == Counter(["/", "/b"])
    assert crawl.stats["apify_rq/items_unsaved"] == 1
    assert crawl.log_text.count("WARNING: The dataset does not take an item") == 1
    assert "If the dataset has a schema, that must allow the field #scrapy" in crawl.log_text


async def test_items_that_cannot_be_counted_at_the_end(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """The crawl is over all the same, and the next one is another."""
    site.serve({"/": links("/a"), "/a": "page"})
    settings = {"APIFY_RQ_ITEMS": True}
    first = {**settings, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Links, first, queue=served, site=site.url)

    class ScrapesNothing(Links):
        def parse(self, response: Response) -> None:
            served.api.before = lambda call: error(403) if "/datasets/" in call.path else None

    crawl = await crawls.run(ScrapesNothing, settings, queue=served, site=site.url)
    assert "this run handled 1 (0 of them failed)" in crawl.closing_line
    assert "its counts are unknown: datasets/" in crawl.closing_line
    assert '"ended":null' not in str(records(served, "feeds"))


# Which dataset, and which store.


async def test_the_run_has_both(
    site: Site,
    served: ServedQueue,
    crawls: Crawls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then items are saved without a feed, and whoever has the queue's id finds them."""
    site.serve({"/": Page("page", headers={"Set-Cookie": "a=b"})})
    run = of_api(served, "actor-runs/run-1")
    monkeypatch.setenv("ACTOR_DEFAULT_REQUEST_QUEUE_ID", run["defaultRequestQueueId"])
    monkeypatch.setenv("ACTOR_DEFAULT_DATASET_ID", run["defaultDatasetId"])
    monkeypatch.setenv("ACTOR_DEFAULT_KEY_VALUE_STORE_ID", run["defaultKeyValueStoreId"])
    settings = {"APIFY_RQ_NAME": None}
    await crawls.run(Links, settings, queue=served, site=site.url)
    assert [item["path"] for item in stored(served, run["defaultDatasetId"])] == ["/"]
    keys = of_api(served, f"key-value-stores/{run['defaultKeyValueStoreId']}/keys")["items"]
    kinds = {item["key"].partition("!")[0] for item in keys}
    assert kinds == {f"scrapy-rq.{kind}" for kind in ("cookies", "dataset", "feeds", "totals")} | {
        "scrapy-rq.spider.state"
    }
    # A pipeline of Apify's SDK has pushed them already.
    pipeline = {"ITEM_PIPELINES": {f"{__name__}.ActorDatasetPushPipeline": 1}}
    site.serve({"/": "page"})
    settings |= {"APIFY_RQ_PURGE_ON_START": True, **pipeline}
    crawl = await crawls.run(Links, settings, queue=served, site=site.url)
    assert "ActorDatasetPushPipeline pushes them to a dataset" in crawl.log_text
    assert len(stored(served, run["defaultDatasetId"])) == 1


class ActorDatasetPushPipeline:
    def process_item(self, item: Any) -> Any:
        return item


def of_api(queue: ServedQueue, path: str, method: str = "GET") -> Any:
    call = Call(f"{queue.api.url}/v2/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
    call.method = method
    with urlopen(call) as answer:
        return json.load(answer)["data"]


async def test_a_dataset_of_the_account_is_never_deleted(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """What it holds is no longer the queue's when the queue is purged."""
    site.serve({"/": "page"})
    settings = {"APIFY_RQ_DATASET": "my-items"}
    for runs in (1, 2):
        crawl = await crawls.run(Links, settings, queue=served, site=site.url)
        assert "and 1 item" in crawl.closing_line
        assert await exported(served) == Counter(["/"])
        assert "1 item saved" in (await rq_ok(served, "status")).out
        done = await rq_ok(served, "purge", "--yes")
        assert "1 deleted, and 1 saved item" in done.out + done.err
        assert await exported(served) == Counter()
        assert len(stored(served, "~my-items")) == runs
    await crawls.run(Links, {"APIFY_RQ_ITEMS": True}, queue=served, site=site.url)
    assert len(stored(served)) == 1
    await rq_ok(served, "purge", "--yes")
    assert {one["name"] for one in of_api(served, "datasets")["items"]} == {"my-items"}


async def test_a_purge_that_is_interrupted(site: Site, served: ServedQueue, crawls: Crawls) -> None:
    """The items of a dataset of others do not come back as those of the next crawl."""
    site.serve({"/": "page", "/b": "page"})
    queue_id = (await served.info()).id
    settings = {"APIFY_RQ_NAME": None, "APIFY_RQ_ID": queue_id, "APIFY_RQ_DATASET": "my-items"}
    await crawls.run(Links, settings, queue=served, site=site.url)

    def stop(call: Any) -> Any:
        return error(400) if call.method == "PUT" and "scrapy-rq.dataset" in call.path else None

    class Other(Links):
        async def start(self) -> AsyncIterator[Any]:
            yield Request(f"{self.site}/b")

    again = {**settings, "APIFY_RQ_PURGE_ON_START": True}
    served.api.before = stop
    stopped = await crawls.run(Other, again, queue=served, site=site.url)
    assert stopped.paths == []
    served.api.before = lambda call: None
    crawl = await crawls.run(Other, again, queue=served, site=site.url)
    assert crawl.paths == ["/b"]
    assert "and 1 item" in crawl.closing_line


async def test_items_move_with_their_queue(
    site: Site, served: ServedQueue, queue: Queue, crawls: Crawls, tmp_path: Path
) -> None:
    """From the embedded file to the API, and back."""
    site.serve({"/": links("/a"), "/a": "page"})
    settings = {"APIFY_RQ_ITEMS": True, "CLOSESPIDER_PAGECOUNT": 1}
    await crawls.run(Links, settings, queue=queue, site=site.url)
    file = str(tmp_path / "export")
    await rq_ok(queue, "export", file)
    for _ in range(2):
        await rq_ok(served, "import", file)
    feed = {str(tmp_path / "items.jl"): {"format": "jsonlines", "overwrite": True}}
    crawl = await crawls.run(Links, {"FEEDS": feed}, queue=served, site=site.url)
    assert crawl.paths == ["/a"]
    lines = (tmp_path / "items.jl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["/", "/a"]
    other = Queue(tmp_path / "other")
    await rq_ok(served, "export", file)
    await rq_ok(other, "import", file)
    assert await exported(other) == Counter(["/", "/a"])


# State and cookies.


class LogsInAndCounts(LogsIn):
    """Keeps the number of its logins in its state."""

    at_start: Any = None

    async def start(self) -> AsyncIterator[Any]:
        self.at_start = dict(self.state)
        async for request in super().start():
            yield request

    def parse(self, response: Response) -> Any:
        self.state["logins", 1] = {self.state.get(("logins", 1), {0}).pop() + 1}
        return super().parse(response)


@pytest.mark.parametrize("access", [{}, WORKER], ids=["single", "worker"])
async def test_state_and_cookies_survive_a_kill(
    site: Site,
    served: ServedQueue,
    crawls: Crawls,
    monkeypatch: pytest.MonkeyPatch,
    access: dict[str, Any],
) -> None:
    monkeypatch.setattr(state, "_SHORT_PAUSE", 0.02)
    monkeypatch.setattr(state, "_LONG_PAUSE", 0.02)
    held = {f"/page?{number}": Held("page") for number in range(len(KEYS))}
    site.serve({f"/login?{number}": login for number in range(len(KEYS))})
    site.serve({path: [page, "page"] for path, page in held.items()})
    crawl = await crawls.start(LogsInAndCounts, access, queue=served, site=site.url)
    await begun(*held.values())
    await wait_until(lambda: str(records(served, "cookies")).count('"session"') == len(KEYS))
    await wait_until(lambda: '{"$set":[7]}' in str(records(served, "spider.state")))
    await wait_until(lambda: served.handled == len(KEYS), "the acks of all logins")
    with copied(served) as left:
        let_go(*held.values())
        await crawl.end()
        before = sent_cookies(site)
        site.forget()
        again = await crawls.run(LogsInAndCounts, access, queue=left, site=site.url)
    assert sorted(again.paths) == sorted(held)  # nobody logs in again
    assert sent_cookies(site) == before
    assert again.spider.at_start == {("logins", 1): {len(KEYS)}}
    assert "all 2 runs handled" in again.closing_line


async def test_a_token_for_nothing_but_the_queue(
    site: Site, served: ServedQueue, crawls: Crawls, tmp_path: Path
) -> None:
    """The crawl goes on without what it may not have."""
    site.serve({"/": "page"})
    served.api.before = lambda call: error(403) if "/key-value-stores/" in call.path else None
    settings = {"FEEDS": {str(tmp_path / "feeds" / "items.jl"): {"format": "jsonlines"}}}
    crawl = await crawls.run(Links, settings, queue=served, site=site.url)
    assert crawl.reason == "finished"
    assert contents(tmp_path / "feeds")["items.jl"] == Counter(["/"])
    assert crawl.log_text.count("Neither items nor the state of the crawl can be saved") == 1
    assert "The items of this crawl are not saved" in crawl.log_text


async def test_a_state_that_is_longer_than_the_api_takes(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    """It is reported, and costs nothing but itself."""

    class Grows(Links):
        def parse(self, response: Response) -> Iterator[Any]:
            self.state["large"] = "x" * 10_000_000
            yield from super().parse(response)

    site.serve({"/": Page("page", headers={"Set-Cookie": "a=b"})})
    crawl = await crawls.run(Grows, queue=served, site=site.url)
    assert crawl.reason == "finished"
    assert crawl.log_text.count("WARNING: Not saved: spider.state, which is longer") == 1
    assert crawl.stats["apify_rq/not_kept"] == 1
    assert {name.partition("/")[0] for name in records(served)} == {"cookies", "totals"}
