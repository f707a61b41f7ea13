"""A crawl inside an Actor run: its input, its status message, its costs, and how it must look."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from scrapy import Spider, signals
from scrapy.commands import ScrapyCommand
from scrapy.exceptions import DontCloseSpider, UsageError
from scrapy.settings import Settings

from scrapy_apify_rq import scrapy_private
from scrapy_apify_rq.actor import run_status
from scrapy_apify_rq.actor.spider_input import give
from scrapy_apify_rq.config import Config
from scrapy_apify_rq.errors import BackendError
from tests.support.api_calls import Call, error
from tests.support.apify_sdk import environ
from tests.support.crawling import Crawls
from tests.support.event_server import Platform, end_run_after
from tests.support.queues import TOKEN, ServedQueue, copied
from tests.support.raw_calls import called
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site, begun, let_go, links

PAGES = [f"/{number}" for number in range(20)]
RUN = "/v2/actor-runs/runOfTheTests"
PRICES = {"apify-default-dataset-item": {"eventPriceUsd": 0.1}, "start": {"eventPriceUsd": 0.5}}


@pytest.fixture(autouse=True)
def _haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_status, "_INTERVAL", 0.05)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has one for each time that the command would have been made to fail."""
    calls: list[str] = []
    monkeypatch.setattr(scrapy_private, "fail_command", lambda: calls.append("failed"))
    return calls


@pytest.fixture
def in_run(served: ServedQueue, monkeypatch: pytest.MonkeyPatch) -> ServedQueue:
    for name, value in environ(served.api.url, TOKEN).items():
        monkeypatch.setenv(name, value)
    return served


def answering(path: str, answer: Callable[[Call], Any]) -> Callable[[Call], Any]:
    return lambda call: answer(call) if call.path == path else None


def run(**fields: Any) -> web.Response:
    return web.json_response({"data": {"id": "runOfTheTests", **fields}})


def messages(queue: ServedQueue) -> list[tuple[str, bool]]:
    calls = (call.json for call in queue.api.of("PUT", RUN))
    return [(call["statusMessage"], call["isStatusMessageTerminal"]) for call in calls]


async def test_status_message(
    site: Site, in_run: ServedQueue, crawls: Crawls, failures: list[str]
) -> None:
    """It is the progress line, and the closing line in the end. A platform that does not take it
    is no reason to stop."""
    answers: list[Any] = [run(), error(404), error(502), run()]
    in_run.api.before = answering(RUN, lambda call: answers.pop(0) if answers else run())
    gate = Held("page")
    site.serve({"/": links("/gate"), "/gate": gate})
    crawl = await crawls.start(Links, {"LOGSTATS_INTERVAL": 0}, queue=in_run, site=site.url)
    await wait_until(lambda: not answers, "all answers")
    gate.go.set()
    await crawl.end()
    *others, last = messages(in_run)
    assert last == (crawl.closing_line[: run_status._LONGEST], True)
    assert all(text.startswith("Request queue: ") and not is_last for text, is_last in others)
    assert crawl.log_text.count("The status message of the Actor run could not be set: 404") == 1
    assert (crawl.reason, failures) == ("finished", [])
    assert TOKEN not in crawl.log_text


@pytest.mark.parametrize(("counts", "is_spent"), [((3, 5), True), ((3, 4), False), ((4, 0), True)])
async def test_limit_of_the_costs(
    site: Site,
    in_run: ServedQueue,
    crawls: Crawls,
    failures: list[str],
    monkeypatch: pytest.MonkeyPatch,
    counts: tuple[int, int],
    is_spent: bool,
) -> None:
    """What is in flight is finished, the rest stays pending, and the run fails."""
    monkeypatch.setenv("ACTOR_MAX_TOTAL_CHARGE_USD", "2.0")
    charged = dict(zip(("start", "apify-default-dataset-item"), counts, strict=True))
    pricing = {"pricingPerEvent": {"actorChargeEvents": PRICES}}
    in_run.api.before = answering(RUN, lambda call: run())
    held = {path: Held("page") for path in PAGES[:4]}
    site.serve({"/": links(*PAGES), **dict.fromkeys(PAGES, "page"), **held})
    settings = {"CONCURRENT_REQUESTS": 4}
    crawl = await crawls.start(Links, settings, queue=in_run, site=site.url)
    await begun(*held.values())
    costs = {"chargedEventCounts": charged, "pricingInfo": pricing}
    in_run.api.before = answering(RUN, lambda call: run(**costs))
    told = len(messages(in_run))
    await wait_until(lambda: len(messages(in_run)) > told + 1, "two messages")
    let_go(*held.values())
    await crawl.end()
    info = await in_run.info()
    if is_spent:
        assert (crawl.reason, failures) == ("apify_rq_charge_limit", ["failed"])
        assert (info.handled, info.pending) == (5, len(PAGES) - 4)
        assert "higher limit" in crawl.log_text
    else:
        assert (crawl.reason, failures, info.pending) == ("finished", [], 0)


async def test_nobody_pays_for_more_items(
    site: Site, in_run: ServedQueue, crawls: Crawls, failures: list[str]
) -> None:
    site.serve({"/": links(*PAGES), **dict.fromkeys(PAGES, "page")})
    in_run.api.before = lambda call: error(402) if call.path.endswith("/items") else None
    crawl = await crawls.run(Links, queue=in_run, site=site.url)
    assert (crawl.reason, failures) == ("apify_rq_charge_limit", ["failed"])
    assert "raise the limit, and run the crawl again" in crawl.log_text
    assert (await in_run.info()).handled == 0


async def test_a_migration_in_mid_run(
    site: Site, in_run: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's dataset, as Apify's own client reads it, has each item once."""
    client = pytest.importorskip("apify_client")
    held = {path: Held("page") for path in PAGES[:4]}
    site.serve({"/": links(*PAGES), **dict.fromkeys(PAGES, "page"), **held})
    settings = {"CONCURRENT_REQUESTS": 4}

    def items(queue: ServedQueue) -> list[Any]:
        dataset = client.ApifyClient(TOKEN, api_url=queue.api.url).dataset(
            os.environ["ACTOR_DEFAULT_DATASET_ID"]
        )
        return list(dataset.iterate_items(clean=True))

    async with Platform() as platform:
        monkeypatch.setenv("ACTOR_EVENTS_WEBSOCKET_URL", platform.url)
        crawl = await crawls.start(Links, settings, queue=in_run, site=site.url)
        await platform.connected()
        await begun(*held.values())
        await platform.send("migrating", timeRemainingSecs=30)
        await wait_until(lambda: "about to be migrated" in crawl.log_text)
        let_go(*held.values())
        # Batches of links may be stored in any order, so that others came before these.
        await wait_until(lambda: in_run.handled == len(site.paths))
        monkeypatch.delenv("ACTOR_EVENTS_WEBSOCKET_URL")
        with copied(in_run) as after_the_kill:
            assert isinstance(after_the_kill, ServedQueue)
            monkeypatch.setenv("APIFY_API_BASE_URL", after_the_kill.api.url)
            again = await crawls.run(Links, settings, queue=after_the_kill, site=site.url)
            found = await asyncio.to_thread(items, after_the_kill)
        await crawl.crawler.stop_async()
        await crawl.end()
    assert again.reason == "finished"
    assert sorted(item["path"] for item in found) == sorted(["/", *PAGES])
    assert set(found[0]) == {"path"}
    assert "21 handled, 0 pending and 21 items" in again.closing_line


def stay() -> None:
    raise DontCloseSpider


@pytest.mark.parametrize("has_work_left", [True, False])
async def test_end_of_the_time(
    site: Site,
    in_run: ServedQueue,
    crawls: Crawls,
    failures: list[str],
    monkeypatch: pytest.MonkeyPatch,
    has_work_left: bool,
) -> None:
    """A run that has not finished its work must not look like a success."""
    in_run.api.before = answering(RUN, lambda call: run())
    pages = Page("page", delay=0.4)
    site.serve({"/": links(*PAGES) if has_work_left else "page", **dict.fromkeys(PAGES, pages)})
    if not has_work_left:
        await crawls.run(Links, queue=in_run, site=site.url)
    end_run_after(3, monkeypatch)  # it stops halfway
    crawl = crawls.begin(Links, {"CONCURRENT_REQUESTS": 1}, queue=in_run, site=site.url)
    crawl.crawler.signals.connect(stay, signals.spider_idle)
    await crawl.end()
    assert crawl.reason == "shutdown"
    assert failures == (["failed"] if has_work_left else [])
    assert messages(in_run)[-1][1]


class Shop(SiteSpider):
    def parse(self, response: Any) -> Any:
        self.note(response)
        yield {"depth": self.depth, "data": response.meta.get("userData")}  # type: ignore[attr-defined]


async def test_input_from_the_store_of_the_run(
    site: Site, in_run: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once, with the token; a busy API is asked again. Arguments of the crawl win."""

    class Own(Shop):
        start = Spider.start

    posted = {"url": f"{site.url}/a", "method": "POST", "payload": "q", "userData": {"n": 1}}
    value = {"depth": 3, "site": "other", "startUrls": [posted], "maxRequestRetries": 0}
    with called(in_run) as api:
        store = api.http.post("/v2/key-value-stores").json()["data"]["id"]
        put = api.http.put(f"/v2/key-value-stores/{store}/records/MY-INPUT", json=value)
    assert put.status_code == 201
    monkeypatch.setenv("ACTOR_DEFAULT_KEY_VALUE_STORE_ID", store)
    monkeypatch.setenv("ACTOR_INPUT_KEY", "MY-INPUT")
    in_run.api.calls.clear()
    in_run.refuse(error(503), nth=1, when=lambda call: store in call.path)
    give(Own, Config.from_settings(Settings(dict(in_run.settings)), os.environ, None))
    assert len(in_run.api.calls) == 2
    assert in_run.refused
    monkeypatch.delenv("ACTOR_RUN_ID")
    site.serve({"/a": 500})
    settings = {"RETRY_TIMES": 5, "HTTPERROR_ALLOW_ALL": True}
    crawl = await crawls.run(Own, settings, queue=in_run, site=site.url)
    assert crawl.items == [{"depth": 3, "data": {"n": 1}}]
    assert [(hit.method, hit.body) for hit in site.hits] == [("POST", b"q")]
    assert crawl.spider.site == site.url
    assert not [call for call in in_run.api.calls[2:] if store in call.path]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("[1]", r"The input \(record 'INPUT'\) is not a JSON object"),
        ('{"a": ', "is not JSON: "),
        ('{"maxConcurrency": "x"}', "maxConcurrency: write a whole number of at least 1"),
    ],
)
async def test_input_that_is_not_valid(
    in_run: ServedQueue, monkeypatch: pytest.MonkeyPatch, answer: str, problem: str
) -> None:
    """``scrapy crawl`` ends with 2 for this kind of error. The platform shows why."""
    monkeypatch.setenv("ACTOR_DEFAULT_KEY_VALUE_STORE_ID", "s" * 17)
    in_run.api.before = lambda call: run() if call.path == RUN else web.Response(text=answer)
    config = Config.from_settings(Settings(dict(in_run.settings)), os.environ, None)
    with pytest.raises(UsageError, match=f"The input of this Actor run is not valid: .*{problem}"):
        give(Shop, config)
    ((text, is_last),) = messages(in_run)
    assert is_last
    assert text.startswith("The input of this Actor run is not valid: ")


class Crawl(ScrapyCommand):
    def short_desc(self) -> str:
        return ""

    def run(self, args: list[str], opts: Any) -> None:
        give(Shop, opts)


@pytest.mark.parametrize("is_local", [True, False])
async def test_input_that_cannot_be_read(
    in_run: ServedQueue,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    is_local: bool,
) -> None:
    """One line instead of Scrapy's traceback; a script decides for itself."""
    in_run.api.before = lambda call: run() if call.path == RUN else error(403)
    if is_local:
        monkeypatch.delenv("APIFY_IS_AT_HOME")
        monkeypatch.delenv("ACTOR_DEFAULT_KEY_VALUE_STORE_ID")
        monkeypatch.setenv("APIFY_LOCAL_STORAGE_DIR", str(tmp_path))
        (tmp_path / "key_value_stores" / "default" / "INPUT.json").mkdir(parents=True)
        problem, cure = "INPUT.json cannot be read: ", "Make it a file that this user may read"
    else:
        monkeypatch.setenv("ACTOR_DEFAULT_KEY_VALUE_STORE_ID", "s" * 17)
        problem, cure = "The run's input (record 'INPUT') cannot be read: ", "See that APIFY_TOKEN"
    config = Config.from_settings(Settings(dict(in_run.settings)), os.environ, None)
    with pytest.raises(BackendError):
        give(Shop, config)
    with pytest.raises(SystemExit) as ended:
        Crawl().run([], config)
    assert ended.value.code == 1
    (line,) = (one.getMessage() for one in caplog.records if one.levelname == "ERROR")
    assert problem in line
    assert cure in line
    assert messages(in_run) == [(line, True)] * 2
