"""Crawls over an API that fails for good, for a while, or for one entry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scrapy import Request
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from tests.support.api_calls import Call, error
from tests.support.crawling import Crawl, Crawls
from tests.support.queues import TOKEN, ServedQueue
from tests.support.spiders import Links, SiteSpider
from tests.support.website import Page, Site, links

PATHS = [f"/{number}" for number in range(1, 20)]
PAGES = 1 + len(PATHS)
Run = Callable[..., Awaitable[Crawl]]


@pytest.fixture
def run(site: Site, served: ServedQueue, crawls: Crawls) -> Run:
    """Crawls the site's twenty pages, or what another spider crawls."""
    site.serve({"/": links(*PATHS), **dict.fromkeys(PATHS, Page(links("/1"), delay=0.02))})

    async def run(spider: type[SiteSpider] = Links, **settings: Any) -> Crawl:
        settings["CONCURRENT_REQUESTS"] = 2
        crawl = await crawls.run(spider, settings, queue=served, site=site.url)
        assert [one for one in crawl.log if one.exc_info] == []
        assert "Bug in scrapy-apify-rq" not in crawl.log_text
        assert TOKEN not in crawl.log_text + repr(crawl.stats)
        return crawl

    return run


async def assert_complete(crawl: Crawl, served: ServedQueue, site: Site) -> None:
    assert crawl.reason == "finished"
    assert crawl.stats["apify_rq/handled"] == (await served.info()).handled == PAGES
    assert sorted(site.paths) == sorted(["/", *PATHS])


def after(acks: int, answer: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """What to answer to the calls that follow so many acks."""

    def before(call: Call) -> Any:
        nonlocal acks
        acks -= call.method == "PUT" and call.is_about_queue
        return answer(call) if acks < 0 else None

    return before


WRONG = {"APIFY_TOKEN": "wrong"}
UNKNOWN = {"APIFY_RQ_NAME": None, "APIFY_RQ_ID": "strange0000000000"}
LATE = {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 0.5}
# What the API answers before anything or after ten acks, the settings, the reason and the cure.
AT_OPEN = [
    (None, WRONG, "unauthorized", "Set APIFY_TOKEN"),
    (None, {**WRONG, "APIFY_RQ_ACCESS": "shared"}, "unauthorized", "Set APIFY_TOKEN"),
    ((403, "a-type"), {}, "unauthorized", "The APIFY_TOKEN may not use this queue"),
    (None, UNKNOWN, "gone", "check APIFY_RQ_ID"),
    ("drop", LATE, "unavailable", "APIFY_RQ_UNAVAILABLE_TIMEOUT is 0.5"),
]
IN_MID_CRAWL = [
    ((401, "user-or-token-not-found"), LATE, "unauthorized", "APIFY_TOKEN"),
    ((403, "insufficient-permissions"), LATE, "unauthorized", "permission"),
    ((404, "record-not-found"), LATE, "gone", "APIFY_RQ_NAME"),
    ("drop", LATE, "unavailable", "APIFY_RQ_UNAVAILABLE_TIMEOUT is 0.5"),
]


async def fail(served: ServedQueue, run: Run, acks: int, case: Any) -> Crawl:
    answer, settings, reason, cure = case

    def refuse(_: Call) -> Any:
        return error(*answer, f"the message for {TOKEN}") if type(answer) is tuple else answer

    served.api.before = after(acks, refuse)
    crawl = await run(**settings)
    served.api.before = lambda call: None
    assert crawl.reason == f"apify_rq_{reason}"
    (report,) = [one.getMessage() for one in crawl.log if one.levelname == "ERROR"]
    assert cure in report
    assert f"The spider is closed (apify_rq_{reason})." in report
    return crawl


@pytest.mark.parametrize("case", AT_OPEN, ids=lambda case: case[2])
async def test_failure_at_open(site: Site, served: ServedQueue, run: Run, case: Any) -> None:
    crawl = await fail(served, run, -1, case)
    assert site.paths == []
    assert "could not be opened, so nothing was crawled" in crawl.closing_line


@pytest.mark.parametrize("case", IN_MID_CRAWL, ids=lambda case: case[2])
async def test_failure_in_mid_crawl(site: Site, served: ServedQueue, run: Run, case: Any) -> None:
    failed = await fail(served, run, 10, case)
    done = (await served.info()).handled
    assert 10 <= done < PAGES
    assert failed.stats["apify_rq/handled"] <= done
    is_gone = failed.reason == "apify_rq_gone"  # nobody can go on with a queue that was deleted
    assert ("still pending" in failed.closing_line) == (not is_gone)
    assert f"again to {'start' if is_gone else 'go on'}" in failed.closing_line

    finished = await run()
    assert finished.reason == "finished"
    assert (await served.info()).handled == PAGES
    assert set(site.paths) == {"/", *PATHS}
    # Only what was in flight, or could not be saved, is crawled again.
    assert len(site.paths) <= PAGES + (PAGES - done)


async def test_short_outage_is_waited_out(site: Site, served: ServedQueue, run: Run) -> None:
    tries: Counter[str] = Counter()

    def answer(call: Call) -> Any:
        # Until some ack is tried for the fourth time.
        tries[call.path] += call.method == "PUT"
        return "drop" if max(tries.values()) < 4 else None

    served.api.before = after(10, answer)
    crawl = await run()
    await assert_complete(crawl, served, site)
    assert crawl.stats["apify_rq/api/retries"] > 0
    assert "The Apify API fails" in crawl.log_text
    assert "The Apify API works again" in crawl.log_text


async def test_lost_answers_make_no_duplicates(site: Site, served: ServedQueue, run: Run) -> None:
    """Every answer to an add is lost once; the other calls see every other kind of fault."""
    seen: set[bytes] = set()
    problems = iter(["drop", error(500), error(429), error(408)])

    def lose(call: Call, data: Any) -> Any:
        if call.path != "/requests/batch" or call.body in seen:
            return data
        seen.add(call.body)
        return "drop"

    served.api.before = lambda call: next(problems, None) if call.method == "PUT" else None
    served.api.after = lose
    crawl = await run()
    await assert_complete(crawl, served, site)
    assert crawl.stats["apify_rq/enqueued"] == PAGES
    # The links back to one page, and none of ours that we took for those of others.
    assert crawl.stats["dupefilter/filtered"] == PAGES - 1
    calls = served.api.calls
    assert not [call.url for call in calls if TOKEN in call.url]
    assert len({call.query["clientKey"] for call in calls if "clientKey" in call.query}) == 1


@pytest.mark.parametrize("access", ["single", "shared"])
async def test_who_cannot_ack_a_page_has_not_finished(
    site: Site, served: ServedQueue, run: Run, access: str
) -> None:
    def refuse(call: Call) -> Any:
        is_ack = call.method == "PUT" and call.is_about_queue
        return error(400) if is_ack and call.json["url"].endswith("/7") else None

    served.api.before = refuse
    crawl = await run(APIFY_RQ_ACCESS=access)
    assert crawl.reason == "apify_rq_refused"
    assert crawl.stats["apify_rq/refused"] == 1
    assert "; 1 request left pending, whose end the queue refused" in crawl.closing_line
    served.api.before = lambda call: None
    assert (await run(APIFY_RQ_ACCESS=access)).reason == "finished"
    assert sorted(site.paths) == sorted(["/", *PATHS, "/7"])


class Large(SiteSpider):
    """Has a request that is too large, and one that is with the reason why it is tried again."""

    def parse(self, response: Response) -> Any:
        assert response.request is not None
        if response.url.endswith("/4"):
            request = response.request
            yield get_retry_request(request, spider=self, reason="why", max_retry_times=1)
        elif not response.url.endswith("/2"):
            yield Request(f"{self.site}/2", meta={"large": "x" * 9_500_000})
            yield Request(f"{self.site}/4", meta={"large": "x" * 9_435_860})


async def test_large_entries(site: Site, served: ServedQueue, run: Run) -> None:
    crawl = await run(Large)
    assert crawl.reason == "apify_rq_refused"
    assert sorted(site.paths) == ["/", "/2", "/4", "/4"]
    assert crawl.stats["scheduler/unserializable"] == 1
    log = crawl.log_text
    assert "bytes are more than the API takes. It is crawled from memory" in log
    # The one that goes back, and its ack.
    assert crawl.stats["apify_rq/api/refused"] == 2
    assert log.count("The API refuses the update of entry") == 2
    assert crawl.stats["apify_rq/handled"] == 1
    assert "this run handled 1 (0 of them failed) and retried 1" in crawl.closing_line
    assert "the queue holds 1 handled, 1 pending" in crawl.closing_line
    assert not (await served.entry("/4")).is_handled
