"""A crawl ends soon once all is done, and ends in any case, whatever the queue answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from scrapy.http import Response

from scrapy_apify_rq.backends.apify import http
from scrapy_apify_rq.backends.apify.queue import ApifyBackend
from scrapy_apify_rq.frontier import idle
from tests.support.api_calls import Call, error
from tests.support.crawling import Crawl, Crawls
from tests.support.faults import Faults
from tests.support.queues import ServedQueue
from tests.support.spiders import Links
from tests.support.waiting import wait_until
from tests.support.website import Held, Page, Site, let_go, links

PATHS = [f"/{number}" for number in range(30)]
SHARED = {"APIFY_RQ_ACCESS": "shared", "APIFY_RQ_CLIENT_KEY": "worker"}
# Seconds in which a crawl of a few pages must end, whatever happens to it.
SOON = 30.0
# So many times longer than they are, ours and the platform's times must not be waited for.
LONGER = 20


class Times(Links):
    """Keeps when its last callback ran, by the clock of the event loop."""

    last = 0.0

    def parse(self, response: Response) -> Any:
        self.last = asyncio.get_running_loop().time()
        yield from super().parse(response)


def serve(site: Site, count: int = len(PATHS)) -> None:
    site.serve({"/": links(*PATHS[:count]), **dict.fromkeys(PATHS[:count], "page")})


def seconds_after_the_last_page(crawl: Crawl) -> float:
    last: float = crawl.spider.last
    return crawl.finished_at - last


def questions_at_the_end(served: ServedQueue) -> int:
    """How many times the crawl asked for more after its last ack."""
    calls = served.api.calls
    acks = [place for place, call in enumerate(calls) if is_put(call) and call.is_about_queue]
    return sum(is_head(call) for call in calls[acks[-1] :])


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes all times of the platform and of ours so many times shorter. Between questions there
    is some time all the same, since each of them is a call.
    """

    def shrink(times: float) -> None:
        monkeypatch.setattr(ApifyBackend, "consistency_delay", 3 / times)
        monkeypatch.setattr(ApifyBackend, "lag", ApifyBackend.lag / times)
        monkeypatch.setattr(idle, "_FIRST_PAUSE", max(0.25 / times, 0.05))
        monkeypatch.setattr(idle, "_LONGEST_PAUSE", 10 / times)
        monkeypatch.setattr(http, "_FIRST_BACKOFF", 0.5 / times)

    return shrink


# Soon.


async def test_end_of_a_crawl_over_the_api(
    site: Site, served: ServedQueue, crawls: Crawls, shrink: Callable[[float], None]
) -> None:
    """The last acks, the question whether anything is left, and the counts: three round trips."""
    shrink(1 / LONGER)
    serve(site)
    served.faults(Faults(latency=0.05))
    crawl = await crawls.run(Times, queue=served, site=site.url)
    assert crawl.reason == "finished"
    assert Counter(crawl.paths) == Counter(["/", *PATHS])
    assert questions_at_the_end(served) == 1
    # 0.3 s on an idle machine; what others write may show after 3 s.
    assert seconds_after_the_last_page(crawl) < 0.25 * LONGER


@pytest.mark.parametrize("is_alone", [True, False])
async def test_end_of_a_resumed_crawl_over_the_api(
    site: Site, served: ServedQueue, crawls: Crawls, monkeypatch: pytest.MonkeyPatch, is_alone: bool
) -> None:
    """Under the client key of the run before it is alone on its queue, and has nothing to wait for
    once it has been open for longer than the queue may lag.
    """
    delay = 0.6
    monkeypatch.setattr(ApifyBackend, "consistency_delay", delay)
    keys = ("ours", "ours" if is_alone else "another")
    held = Held("page")
    site.serve({"/": links(*PATHS[:9], "/held"), **dict.fromkeys(PATHS[:9], "page")})
    site.serve({"/held": held})
    few = {"CLOSESPIDER_PAGECOUNT": 1, "CONCURRENT_REQUESTS": 1, "APIFY_RQ_CLIENT_KEY": keys[0]}
    stopped = await crawls.run(Times, few, queue=served, site=site.url)
    assert stopped.reason == "closespider_pagecount"
    served.faults(Faults(latency=0.05))
    key = {"APIFY_RQ_CLIENT_KEY": keys[1]}
    crawl = await crawls.start(Times, key, queue=served, site=site.url)
    await asyncio.sleep(delay)
    let_go(held)
    await crawl.end()
    assert crawl.reason == "finished"
    assert (await served.info()).pending == 0
    assert (questions_at_the_end(served) == 1) == is_alone
    assert is_alone or seconds_after_the_last_page(crawl) >= delay


async def test_end_of_an_embedded_crawl(
    site: Site, crawls: Crawls, shrink: Callable[[float], None]
) -> None:
    shrink(1 / LONGER)
    serve(site)
    crawl = await crawls.run(Times, site=site.url)
    assert seconds_after_the_last_page(crawl) < 0.25 * LONGER


# Not too soon.


async def test_workers_stay_while_another_has_work(
    site: Site, served: ServedQueue, crawls: Crawls, shrink: Callable[[float], None]
) -> None:
    """The head lags."""
    shrink(10)
    served.faults(Faults(head_lag=0.3))
    slow = {path: Page("page", delay=0.05) for path in PATHS[:12]}
    chain = [f"/chain/{number}" for number in range(3)]
    following = dict(zip(chain, [*(links(path) for path in chain[1:]), links(*slow)], strict=True))
    site.serve({"/": links(chain[0]), **slow})
    site.serve({path: Page(text, delay=0.1) for path, text in following.items()})
    settings = {"APIFY_RQ_ACCESS": "shared", "CONCURRENT_REQUESTS": 1}
    workers = [
        await crawls.start(
            Times, {**settings, "APIFY_RQ_CLIENT_KEY": name}, queue=served, site=site.url
        )
        for name in ("one", "two", "three")
    ]
    await asyncio.gather(*(worker.end() for worker in workers))
    pages = Counter(path for worker in workers for path in worker.paths)
    assert pages == Counter(["/", *chain, *slow])
    last = max(worker.spider.last for worker in workers)
    ends = [worker.finished_at - last for worker in workers]
    assert min(ends) > -0.05, f"a worker left {-min(ends)} s before the last page was done"
    assert max(ends) < SOON


# In any case.


def is_put(call: Call) -> bool:
    return call.method == "PUT"


def is_head(call: Call) -> bool:
    return call.path.startswith("/head")


def is_batch(call: Call) -> bool:
    return call.is_("POST", "/requests/batch")


def is_of_workers(call: Call) -> bool:
    """What crawls in single access do not ask: claims, unlocks, entries by their ids, counts."""
    return call.is_about_queue and call.method != "PUT" and not is_batch(call)


EACH: dict[str, Callable[[Call], bool]] = {"single": lambda call: True, "shared": is_of_workers}


def assert_ended_well(crawl: Crawl) -> None:
    """Either nothing was lost by the refused call, or the crawl says that it has failed."""
    reason = crawl.reason
    assert reason == "finished" or (reason or "").startswith("apify_rq"), reason
    assert crawl.tasks_left == []
    assert "Bug in scrapy-apify-rq" not in crawl.log_text
    assert crawl.closing_line


@pytest.mark.parametrize(("nth", "status"), [(1, 403), (15, 409), (61, 404)])
async def test_one_put_of_many_is_refused(
    site: Site, served: ServedQueue, crawls: Crawls, status: int, nth: int
) -> None:
    """While the crawl has enough to do, so that adds wait for company when the call fails."""
    many = [f"/{number}" for number in range(30)]
    site.serve({"/": links(*many), **{path: links(f"{path}/child") for path in many}})
    site.serve({f"{path}/child": "page" for path in many})
    served.refuse(error(status), nth=nth, when=is_put)
    crawl = await crawls.run(Times, queue=served, site=site.url, patience=SOON)
    assert served.refused
    assert_ended_well(crawl)
    if crawl.reason == "finished":
        pending = (await served.info()).pending
        assert pending <= 1, "only the refused entry may be left"


@pytest.mark.parametrize(
    ("access", "when", "nth", "status"),
    [
        ("single", is_batch, 2, 404),
        ("single", is_head, 3, 409),
        ("shared", is_batch, 3, 409),
        ("shared", is_head, 2, 404),
    ],
)
async def test_one_question_or_batch_is_refused(
    site: Site,
    served: ServedQueue,
    crawls: Crawls,
    access: str,
    when: Callable[[Call], bool],
    nth: int,
    status: int,
) -> None:
    serve(site)
    served.refuse(error(status), nth=nth, when=when)
    settings = SHARED if access == "shared" else {}
    crawl = await crawls.run(Times, settings, queue=served, site=site.url, patience=SOON)
    assert_ended_well(crawl)


@pytest.mark.parametrize(
    ("access", "answer"), [("single", 403), ("shared", 403), ("single", "drop")]
)
async def test_each_call_is_refused_once(
    site: Site,
    served: ServedQueue,
    crawls: Crawls,
    access: str,
    answer: int | str,
    shrink: Callable[[float], None],
) -> None:
    """Each in turn, from the opening of the queue to the last call of the crawl.

    What is dropped is called again, wherever it comes from: test_lost_answers_keep_no_leases drops
    calls of workers.
    """
    shrink(50)
    serve(site, 1)
    settings = {**(SHARED if access == "shared" else {}), "APIFY_RQ_PURGE_ON_START": False}
    nth, refused = 0, True
    while refused:
        nth += 1
        served.refuse(
            answer if isinstance(answer, str) else error(answer), nth=nth, when=EACH[access]
        )
        named = {**settings, "APIFY_RQ_NAME": f"queue-{nth}"}
        crawl = await crawls.start(Times, named, queue=served, site=site.url)
        try:
            await crawl.end(SOON)
        except AssertionError as error_:
            raise AssertionError(f"call {nth} refused") from error_
        except Exception:  # a queue that cannot be opened raises
            assert crawl.reason != "finished"
        assert crawl.tasks_left == [], f"call {nth} refused"
        refused = served.refused
    assert crawl.reason == "finished"
    assert nth > 6


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_stop_at_each_call(
    site: Site, served: ServedQueue, crawls: Crawls, access: str, shrink: Callable[[float], None]
) -> None:
    """What one Ctrl-C does, at each moment from the opening of the queue to the end."""
    shrink(50)
    serve(site, 1)
    loop = asyncio.get_running_loop()
    settings = SHARED if access == "shared" else {}
    nth, stopped = 0, True
    while stopped:
        nth += 1
        calls, stopped = 0, False
        current: list[Crawl] = []
        stops: list[asyncio.Task[None]] = []

        def stop(current: list[Crawl] = current, stops: list[Any] = stops) -> None:
            stops.append(loop.create_task(current[0].crawler.stop_async()))

        def before(call: Call, nth: int = nth, stop: Callable[[], None] = stop) -> None:
            nonlocal calls, stopped
            calls += EACH[access](call)
            if calls == nth and not stopped:
                stopped = True
                loop.call_soon_threadsafe(stop)

        served.api.before = before
        named = {**settings, "APIFY_RQ_NAME": f"queue-{nth}"}
        current.append(crawls.begin(Times, named, queue=served, site=site.url))
        try:
            await current[0].end(SOON)
        except AssertionError as hang:
            raise AssertionError(f"stopped at call {nth}") from hang
        await asyncio.gather(*stops)
        # Stopped while the spider is being closed, Scrapy does not wait until it is.
        if current[0].tasks_left:
            await asyncio.wait(current[0].tasks_left, timeout=SOON)
        current[0].tasks_left = [task for task in current[0].tasks_left if not task.done()]
        assert current[0].tasks_left == [], f"stopped at call {nth}"
        await wait_until(lambda current=current: current[0].reason)
        assert current[0].reason in ("finished", "shutdown"), f"stopped at call {nth}"
    assert nth > 6
