"""Real crawls over an API that fails for good, for a while, or for one entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry
from tests.project import Crawl, Project
from tests.support.api_calls import Api, Call, error, serving_in_thread
from tests.support.website import Page, Site, links

TOKEN = "apify_api_verySecretToken"
PAGES = 30

# The real delay before "nothing pending" is believed would cost each crawl three seconds.
SPIDERS = """
    from scrapy.downloadermiddlewares.retry import get_retry_request
    from scrapy_apify_rq.backends.apify.queue import ApifyBackend

    ApifyBackend.consistency_delay = 0.2

    class Spider(scrapy.Spider):
        name = "spider"
        custom_settings = {"CONCURRENT_REQUESTS": 2, "CONCURRENT_REQUESTS_PER_DOMAIN": 2}
        start_urls = [SITE]

        def parse(self, response):
            for href in response.css("a::attr(href)").getall():
                yield response.follow(href)

    class Large(scrapy.Spider):
        name = "large"
        start_urls = [SITE + "/1", SITE + "/3"]

        def parse(self, response):
            if response.url == SITE + "/1":
                yield scrapy.Request(SITE + "/2", meta={"large": "x" * 9_500_000})
            elif response.url == SITE + "/3":
                # Taken, but too large with the reason why it is tried again.
                yield scrapy.Request(SITE + "/4", meta={"large": "x" * 9_435_860})
            elif response.url == SITE + "/4":
                why = {"reason": "why", "max_retry_times": 1}
                yield get_retry_request(response.request, spider=self, **why)
"""


@dataclass
class Setting:
    api: Api
    site: Site
    project: Project

    def crawl(self, *options: str, spider: str = "spider") -> Crawl:
        crawl = self.project.run("crawl", spider, *options)
        assert crawl.returncode == 0, crawl.log
        assert "Traceback" not in crawl.log, crawl.log
        assert "Warning: " not in crawl.log, crawl.log
        assert "Bug in scrapy-apify-rq" not in crawl.log, crawl.log
        assert TOKEN not in crawl.log + repr(crawl.stats)
        return crawl


@contextmanager
def setting(folder: Path, **settings: Any) -> Iterator[Setting]:
    with ExitStack() as stack:
        api = stack.enter_context(serving_in_thread(folder / "storage", TOKEN))
        pages = {f"/{n}": Page(links("/1"), delay=0.02) for n in range(1, PAGES)}
        first = links(*pages)
        site = stack.enter_context(Site({"/": first, **pages}))
        values = {"APIFY_TOKEN": TOKEN, "APIFY_API_BASE_URL": api.url, **settings}
        yield Setting(
            api, site, Project(folder / "project", SPIDERS, site=site.url, settings=values)
        )


def stored(made: Setting) -> list[Entry]:
    """The server's own folder, since the projects are not the ones of the fixture ``backend``."""
    made.project._queues = made.project.folder.parent / "storage"
    return made.project.entries()


def handled(made: Setting) -> int:
    return len([entry for entry in stored(made) if entry.handled_at])


# What fails at open


def refusing(status: int) -> Callable[[Api], None]:
    def prepare(api: Api) -> None:
        api.before = lambda call: error(status, "a-type", f"the message for {TOKEN}")

    return prepare


def lost(api: Api) -> None:
    api.before = lambda call: "drop"


AT_OPEN: dict[str, tuple[Callable[[Api], None], dict[str, Any], str, str]] = {
    "401": (lambda api: None, {"APIFY_TOKEN": "wrong"}, "apify_rq_unauthorized", "Set APIFY_TOKEN"),
    "403": (refusing(403), {}, "apify_rq_unauthorized", "The APIFY_TOKEN may not use this queue"),
    "404": (
        lambda api: None,
        {"APIFY_RQ_NAME": None, "APIFY_RQ_ID": "strange0000000000"},
        "apify_rq_gone",
        "check APIFY_RQ_ID",
    ),
    "outage": (
        lost,
        {"APIFY_RQ_UNAVAILABLE_TIMEOUT": 1},
        "apify_rq_unavailable",
        "APIFY_RQ_UNAVAILABLE_TIMEOUT is 1",
    ),
    "shared": (
        lambda api: None,
        {"APIFY_TOKEN": "wrong", "APIFY_RQ_ACCESS": "shared"},
        "apify_rq_unauthorized",
        "Set APIFY_TOKEN",
    ),
}


def fail_at_open(folder: Path, case: str) -> tuple[Crawl, list[str]]:
    prepare, settings, _, _ = AT_OPEN[case]
    with setting(folder, **settings) as made:
        prepare(made.api)
        return made.crawl(), made.site.paths


# What fails in mid-crawl


class Failing:
    """Lets so many acks pass, and then every call fails in this way."""

    def __init__(self, acks: int, answer: Callable[[], Any]) -> None:
        self._left = acks
        self._answer = answer

    def __call__(self, call: Call) -> Any:
        if call.method == "PUT":
            self._left -= 1
        if self._left >= 0:
            return None
        return self._answer()


IN_MID_CRAWL: dict[str, tuple[Callable[[], Any], str, str]] = {
    "401": (lambda: error(401, "user-or-token-not-found"), "apify_rq_unauthorized", "APIFY_TOKEN"),
    "403": (lambda: error(403, "insufficient-permissions"), "apify_rq_unauthorized", "permission"),
    "404": (lambda: error(404, "record-not-found"), "apify_rq_gone", "APIFY_RQ_NAME"),
    "outage": (lambda: "drop", "apify_rq_unavailable", "APIFY_RQ_UNAVAILABLE_TIMEOUT is 1"),
}


def fail_in_mid_crawl(folder: Path, case: str) -> tuple[Crawl, int, Crawl, int, list[str]]:
    """Crawl until it fails, and again with all well."""
    with setting(folder, APIFY_RQ_UNAVAILABLE_TIMEOUT=1) as made:
        made.api.before = Failing(10, IN_MID_CRAWL[case][0])
        failed = made.crawl()
        done = handled(made)
        made.api.before = lambda call: None
        finished = made.crawl()
        return failed, done, finished, handled(made), made.site.paths


# What passes


def short_outage(folder: Path) -> tuple[Crawl, int, list[str]]:
    with setting(folder) as made:
        end = 0.0

        def answer() -> Any:
            nonlocal end
            end = end or time.monotonic() + 4
            return "drop" if time.monotonic() < end else None

        made.api.before = Failing(10, answer)
        return made.crawl(), handled(made), made.site.paths


def lost_answers(folder: Path) -> tuple[Crawl, int, list[str], list[Call]]:
    """Every answer to an add is lost once; the other calls see every other kind of fault."""
    with setting(folder) as made:
        seen: set[tuple[str, bytes]] = set()
        problems = iter(
            [lambda: "drop", lambda: error(500), lambda: error(429), lambda: error(408)]
        )

        def is_first(call: Call) -> bool:
            known = (call.path, call.body) in seen
            seen.add((call.path, call.body))
            return not known

        def before(call: Call) -> Any:
            return next(problems, lambda: None)() if call.method == "PUT" else None

        def after(call: Call, data: Any) -> Any:
            return "drop" if call.path == "/requests/batch" and is_first(call) else data

        made.api.before, made.api.after = before, after
        return made.crawl(), handled(made), made.site.paths, made.api.calls


def too_large(folder: Path) -> tuple[Crawl, list[Entry], list[str]]:
    with setting(folder) as made:
        return made.crawl(spider="large"), stored(made), made.site.paths


@pytest.fixture(scope="module")
def crawls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """All crawls of this module at one time, since most of them mostly wait."""
    jobs: list[tuple[Any, ...]] = [
        *((fail_in_mid_crawl, case) for case in IN_MID_CRAWL),
        *((fail_at_open, case) for case in AT_OPEN),
        (short_outage,),
        (lost_answers,),
        (too_large,),
    ]
    with ThreadPoolExecutor(4) as pool:
        results = {
            job: pool.submit(job[0], tmp_path_factory.mktemp(job[0].__name__), *job[1:])
            for job in jobs
        }
        yield lambda *job: results[job].result(120)


@pytest.mark.parametrize("case", AT_OPEN)
def test_a_failure_at_open_closes_the_spider_with_its_reason(
    crawls: Callable[..., Any], case: str
) -> None:
    crawl, paths = crawls(fail_at_open, case)
    _, _, reason, cure = AT_OPEN[case]
    assert crawl.stats["finish_reason"] == reason
    assert paths == []
    (line,) = [line for line in crawl.log.splitlines() if " ERROR: " in line]
    assert cure in line
    assert f"The spider is closed ({reason})." in line
    assert "could not be opened, so nothing was crawled" in crawl.log


@pytest.mark.parametrize("case", IN_MID_CRAWL)
def test_a_failure_in_mid_crawl_leaves_the_rest_pending(
    crawls: Callable[..., Any], case: str
) -> None:
    failed, done, finished, total, paths = crawls(fail_in_mid_crawl, case)
    _, reason, cure = IN_MID_CRAWL[case]
    assert failed.stats["finish_reason"] == reason
    (line,) = [line for line in failed.log.splitlines() if " ERROR: " in line]
    assert cure in line
    assert 10 <= done < PAGES
    assert failed.stats["apify_rq/handled"] <= done
    assert "Run the spider again to go on" in failed.log
    assert finished.stats["finish_reason"] == "finished"
    assert total == PAGES
    assert set(paths) == {"/", *(f"/{n}" for n in range(1, PAGES))}
    # Only what was in flight, or could not be saved, is crawled again.
    assert len(paths) <= PAGES + (PAGES - done)


def test_a_short_outage_is_waited_out(crawls: Callable[..., Any]) -> None:
    crawl, total, paths = crawls(short_outage)
    assert crawl.stats["finish_reason"] == "finished"
    assert crawl.stats["apify_rq/handled"] == total == len(paths) == PAGES
    assert crawl.stats["apify_rq/api/retries"] > 0
    assert "The Apify API fails" in crawl.log
    assert "The Apify API works again" in crawl.log


def test_lost_answers_make_no_duplicates(crawls: Callable[..., Any]) -> None:
    crawl, total, paths, calls = crawls(lost_answers)
    assert crawl.stats["finish_reason"] == "finished"
    assert crawl.stats["apify_rq/handled"] == total == len(paths) == PAGES
    assert crawl.stats["apify_rq/enqueued"] == PAGES
    # The links back to one page, and none of ours that we took for those of others.
    assert crawl.stats["dupefilter/filtered"] == PAGES - 1
    assert not [call.url for call in calls if TOKEN in call.url]
    assert len({call.query["clientKey"] for call in calls if "clientKey" in call.query}) == 1


def test_entries_too_large_are_crawled_from_memory(crawls: Callable[..., Any]) -> None:
    crawl, entries, paths = crawls(too_large)
    assert crawl.stats["finish_reason"] == "finished"
    assert sorted(paths) == ["/1", "/2", "/3", "/4", "/4"]
    assert crawl.stats["scheduler/unserializable"] == 1
    assert "bytes are more than the API takes. It is crawled from memory" in crawl.log
    # The one that goes back, and its ack.
    assert crawl.stats["apify_rq/api/refused"] == 2
    assert crawl.log.count("The API refuses the update of entry") == 2
    assert crawl.stats["apify_rq/handled"] == 2
    assert "this run handled 2 (0 of them failed) and retried 1" in crawl.log
    assert "the queue holds 2 handled, 1 pending" in crawl.log
    pending = {entry.url[-2:]: entry.handled_at is None for entry in entries}
    assert pending == {"/1": False, "/3": False, "/4": True}
