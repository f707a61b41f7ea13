"""The life of an entry: each row of the table in the README, read back from the queue.

Rows that need the same settings share one crawl, run by a fixture of the module.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.project import SPIDER, Crawl, Project
from tests.support.website import Answer, Hit, Page, Site, links

pytestmark = pytest.mark.usefixtures("backend")

Folders = pytest.TempPathFactory
ONE_BY_ONE = {
    "CONCURRENT_REQUESTS": 1,
    # No page is fetched before the callback of the one before it has ended.
    "SCRAPER_SLOT_MAX_ACTIVE_SIZE": 1,
}
# Takes longer than to save a link or a retry, also over the API and on a busy machine.
SLOW = Page("a page", delay=0.05)


@dataclass
class Life:
    """A crawl that is over, and all that it left to look at."""

    project: Project
    site: Site
    crawl: Crawl

    def entry(self, path: str) -> Entry:
        return self.project.entry(f"{self.site.url}{path}")

    def entries(self, path: str) -> list[Entry]:
        return [e for e in self.project.entries() if e.url == f"{self.site.url}{path}"]

    def hits(self, path: str) -> list[Hit]:
        return [hit for hit in self.site.hits if hit.path == path]

    @property
    def items(self) -> list[dict[str, Any]]:
        """What the spider scraped; the crawl needs the options ``-o -:jsonlines``."""
        return [json.loads(line) for line in self.crawl.output.splitlines()]


def live(
    folder: Path,
    spider: str,
    pages: Mapping[str, Answer],
    *options: str,
    foreign: Callable[[str], Sequence[Entry]] = lambda site: (),
    **settings: Any,
) -> Life:
    """Crawl these pages once; ``foreign`` makes the entries that others have put there before."""
    with Site(pages) as site:
        project = Project(folder, spider, site=site.url, settings=settings)
        if entries := foreign(site.url):
            project.add(*entries)
        return Life(project, site, project.crawl(*options))


def by_others(url: str, **fields: Any) -> Entry:
    """An entry as the Console or a client of the API makes it."""
    return Entry(id=request_id(url), unique_key=url, url=url, **fields)


# Crawled


def test_a_crawled_page_is_handled(tmp_path: Path) -> None:
    life = live(tmp_path, SPIDER, {"/": links("/a", "/b"), "/a": "a", "/b": "b"})
    assert life.crawl.stats["item_scraped_count"] == 2
    entry = life.entry("/a")
    assert entry.handled_at is not None
    assert entry.loaded_url == f"{life.site.url}/a"
    assert entry.error_messages == []
    assert entry.retry_count == 0
    assert entry.no_retry is False  # not absent: the Apify SDK would not read the entry
    assert entry.user_data["label"] == "parse_page"
    assert life.project.info().pending == 0
    assert life.crawl.stats["apify_rq/handled"] == 3
    assert "apify_rq/failed" not in life.crawl.stats


# Redirected

REDIRECTS = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            meta = {"redirect_ttl": 1} if href == "/far" else None
            yield response.follow(href, callback=self.parse_page, meta=meta)

    def parse_page(self, response):
        yield {"url": response.url}
"""


def to(path: str) -> Page:
    return Page(status=302, headers={"Location": path})


@pytest.fixture(scope="module")
def redirected(tmp_path_factory: Folders, backend: str) -> Life:
    pages = {
        "/": links("/seen", "/one", "/two", "/to-seen", "/to-itself", "/refresh", "/far"),
        "/seen": "seen",
        "/one": to("/one/end"),
        "/one/end": "end",
        "/two": to("/two/half"),
        "/two/half": to("/two/end"),
        "/two/end": "end",
        "/to-seen": to("/seen"),
        "/to-itself": to("/to-itself"),
        "/refresh": '<html><meta http-equiv="refresh" content="0; url=/refresh/end"></html>',
        "/refresh/end": "end",
        "/far": to("/far/half"),
        "/far/half": to("/far/end"),
        "/far/end": "end",
    }
    return live(tmp_path_factory.mktemp("redirected"), REDIRECTS, pages)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/one", "/one/end"),
        ("/two", "/two/half"),
        ("/two/half", "/two/end"),
        ("/to-seen", "/seen"),
        ("/to-itself", "/to-itself"),
        ("/refresh", "/refresh/end"),
    ],
)
def test_a_redirected_entry_is_handled_with_its_target(
    redirected: Life, path: str, target: str
) -> None:
    entry = redirected.entry(path)
    assert entry.handled_at is not None
    assert entry.loaded_url == f"{redirected.site.url}{target}"
    assert entry.error_messages == []


@pytest.mark.parametrize("path", ["/one/end", "/two/end", "/refresh/end"])
def test_the_target_of_a_redirect_is_an_entry_of_its_own(redirected: Life, path: str) -> None:
    entry = redirected.entry(path)
    assert entry.handled_at is not None
    assert entry.loaded_url == entry.url
    assert entry.user_data["label"] == "parse_page"


@pytest.mark.parametrize("path", ["/seen", "/to-itself"])
def test_a_redirect_to_a_page_seen_before_crawls_it_no_second_time(
    redirected: Life, path: str
) -> None:
    assert len(redirected.hits(path)) == 1
    assert redirected.entry(path).error_messages == []


def test_a_redirect_that_leads_too_far_is_failed(redirected: Life) -> None:
    entry = redirected.entry("/far/half")
    assert entry.failed
    assert entry.error_messages == ["302 Found, but a middleware kept it from the callback"]
    assert redirected.entries("/far/end") == []
    assert not redirected.entry("/far").failed


# Retried

RETRIES = """
from scrapy.downloadermiddlewares.retry import get_retry_request

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(
                href,
                # A GET on a connection that was dropped is sent once more by Twisted itself.
                method="POST" if href in ("/drop", "/cut") else "GET",
                callback=self.parse_page,
                errback=self.failed,
                meta={"dont_retry": True} if href == "/dont-retry" else None,
            )

    def parse_page(self, response):
        if not response.text:
            yield get_retry_request(response.request, spider=self, reason="empty")

    def failed(self, failure):
        if failure.request.url.endswith("/errback"):
            yield get_retry_request(failure.request, spider=self, reason="asked for")
"""
DROP = Page(drop=True)
DROP_ERRORS = {
    "twisted.web._newclient.ResponseNeverReceived",
    "scrapy.exceptions.DownloadFailedError",  # its name for it since Scrapy 2.15
}


@pytest.fixture(scope="module")
def retried(tmp_path_factory: Folders, backend: str) -> Life:
    pages = {
        "/": links("/status", "/drop", "/empty", "/errback", "/down", "/cut", "/dont-retry"),
        "/status": [503, 503, "a page"],
        "/drop": [DROP, DROP, "a page"],
        "/empty": ["", "a page"],
        "/errback": [404, "a page"],
        "/down": 500,
        "/cut": DROP,
        "/dont-retry": 503,
        "/no-retry": 503,
        "/retry": [503, "a page"],
    }

    def foreign(site: str) -> list[Entry]:
        return [
            by_others(f"{site}/no-retry", no_retry=True),
            by_others(f"{site}/retry", no_retry=False),
        ]

    return live(tmp_path_factory.mktemp("retried"), RETRIES, pages, foreign=foreign)


def test_a_page_that_fails_twice_is_one_entry(retried: Life) -> None:
    entry = retried.entry("/status")
    assert entry.retry_count == 2
    assert entry.error_messages == ["503 Service Unavailable"] * 2
    assert entry.handled_at is not None
    assert entry.loaded_url == entry.url
    assert not entry.failed
    assert len(retried.hits("/status")) == 3


def test_a_dropped_connection_is_retried_with_the_name_of_the_exception(retried: Life) -> None:
    entry = retried.entry("/drop")
    assert entry.retry_count == len(entry.error_messages) == 2
    for message in entry.error_messages:
        assert message.partition(": ")[0] in DROP_ERRORS
    assert entry.handled_at is not None
    assert not entry.failed
    assert len(retried.hits("/drop")) == 3


def test_a_callback_can_ask_for_a_retry(retried: Life) -> None:
    entry = retried.entry("/empty")
    assert entry.retry_count == 1
    assert entry.error_messages == ["200 OK, but the callback asked for a retry"]
    assert entry.handled_at is not None
    assert not entry.failed
    assert len(retried.hits("/empty")) == 2


def test_an_errback_can_ask_for_a_retry(retried: Life) -> None:
    entry = retried.entry("/errback")
    assert entry.retry_count == 1
    assert entry.error_messages == ["404 Not Found"]
    assert not entry.failed
    assert len(retried.hits("/errback")) == 2


def test_a_page_that_gives_up_has_one_error_more_than_retries(retried: Life) -> None:
    entry = retried.entry("/down")
    assert entry.retry_count == 2
    assert entry.error_messages == ["500 Internal Server Error"] * 3
    assert entry.failed
    cut = retried.entry("/cut")
    assert cut.retry_count == 2
    assert len(cut.error_messages) == 3
    assert cut.failed


def test_dont_retry_is_no_retry_in_the_entry(retried: Life) -> None:
    entry = retried.entry("/dont-retry")
    assert entry.no_retry is True
    assert entry.retry_count == 0
    assert entry.error_messages == ["503 Service Unavailable"]
    assert entry.failed
    assert len(retried.hits("/dont-retry")) == 1


def test_no_retry_of_an_entry_made_by_others_is_obeyed(retried: Life) -> None:
    entry = retried.entry("/no-retry")
    assert entry.no_retry is True
    assert entry.failed
    assert len(retried.hits("/no-retry")) == 1
    assert retried.entry("/retry").retry_count == 1
    assert not retried.entry("/retry").failed


def test_retries_are_counted(retried: Life) -> None:
    stats = retried.crawl.stats
    assert stats["apify_rq/retried"] == 11
    assert stats["apify_rq/retried"] == stats["retry/count"]
    assert stats["apify_rq/failed"] == 4
    assert stats["apify_rq/handled"] == 10
    assert retried.project.info().pending == 0


OWN_RETRY = """
class OwnRetry:
    def process_response(self, request, response):
        if response.status == 418:
            return request.replace(dont_filter=True)
        return response

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]
    custom_settings = {"DOWNLOADER_MIDDLEWARES": {OwnRetry: 1}}

    def parse(self, response):
        yield from response.follow_all(css="a", callback=self.parse_page)

    def parse_page(self, response):
        yield {"url": response.url}
"""


def test_a_page_tried_again_by_a_middleware_of_the_project_is_not_failed(tmp_path: Path) -> None:
    with Site({"/": links("/a"), "/a": [418, "a"]}) as site:
        project = Project(tmp_path, OWN_RETRY, site=site.url)
        crawl = project.crawl()
    assert site.paths == ["/", "/a", "/a"]
    again = [entry for entry in project.entries() if entry.url.endswith("/a")]
    assert [entry.error_messages for entry in again] == [[], []]
    assert "apify_rq/failed" not in crawl.stats


@pytest.mark.parametrize("in_front", [True, False])
def test_a_retry_goes_in_front_or_to_the_end(tmp_path: Path, in_front: bool) -> None:
    others = [f"/{number}" for number in range(8)]
    pages = {"/": links("/bad", *others), "/bad": [503, "a page"]} | dict.fromkeys(others, SLOW)
    settings = {**ONE_BY_ONE, "APIFY_RQ_RETRY_FOREFRONT": in_front}
    life = live(tmp_path, SPIDER, pages, **settings)
    order = life.site.paths
    assert order.count("/bad") == 2
    again = len(order) - 1 - order[::-1].index("/bad")
    # While the retry is being saved, one page or two may be handed out.
    assert again <= 5 if in_front else again == len(order) - 1


# What looks like a retry and is none: copies of meta carry retry_times, too.

FALSE_RETRIES = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        yield response.follow("/slow", callback=self.parse_page)
        yield response.follow("/bad", callback=self.parse_bad)

    def parse_bad(self, response):
        yield response.follow("/slow", callback=self.parse_page, meta=response.meta)
        yield response.follow("/last", callback=self.parse_page)

    def parse_page(self, response):
        yield {"url": response.url}
"""


@pytest.fixture
def event() -> Iterator[threading.Event]:
    """Set at the end, so that no thread of the site is left waiting."""
    event = threading.Event()
    yield event
    event.set()


def test_a_link_with_the_meta_of_a_retried_page_is_no_retry(
    tmp_path: Path, event: threading.Event
) -> None:
    def slow(hit: Hit) -> Page:
        event.wait(20)
        return Page("slow")

    def last(hit: Hit) -> Page:
        event.set()
        return Page("last")

    pages = {"/": "start", "/bad": [503, "a page"], "/slow": slow, "/last": last}
    life = live(tmp_path, FALSE_RETRIES, pages)
    assert len(life.hits("/slow")) == 1
    assert life.entry("/slow").retry_count == 0
    assert life.crawl.stats["dupefilter/filtered"] == 1


def test_a_redirect_of_a_retried_page_is_no_retry_of_its_target(
    tmp_path: Path, event: threading.Event
) -> None:
    in_time: list[bool] = []

    def slow(hit: Hit) -> Page:
        if in_time:
            event.set()
            return Page("slow")
        in_time.append(False)
        in_time[0] = event.wait(20)
        return Page("slow")

    pages = {"/": "start", "/bad": [503, to("/slow")], "/slow": slow}
    life = live(tmp_path, FALSE_RETRIES, pages)
    # As in stock Scrapy: a retry is not filtered, and its redirect inherits that.
    assert in_time == [True]
    assert [entry.retry_count for entry in life.entries("/slow")] == [0, 0]
    assert life.entry("/bad").loaded_url == f"{life.site.url}/slow"


# Failed

FAILURES = """
class Spider(scrapy.Spider):
    name = "spider"
    allowed_domains = ["127.0.0.1"]
    start_urls = [SITE + "/"]

    def parse(self, response):
        for name in ("plain", "generator", "coroutine", "async_generator"):
            yield response.follow(f"/{name}", callback=getattr(self, name))
        yield response.follow("/errback", errback=self.errback)
        yield response.follow("/forbidden")
        yield response.follow("/missing")
        yield response.follow("/expected", meta={"handle_httpstatus_list": [404]})
        yield scrapy.Request("http://nowhere.invalid/", meta={"allow_offsite": True})

    def plain(self, response):
        raise ValueError("plain went wrong")

    def generator(self, response):
        yield response.follow("/link/1", callback=self.parse_link)
        raise ValueError("generator went wrong")

    async def coroutine(self, response):
        raise ValueError("coroutine went wrong")

    async def async_generator(self, response):
        yield response.follow("/link/2", callback=self.parse_link)
        raise ValueError("async_generator went wrong")

    def errback(self, failure):
        raise ValueError("errback went wrong")

    def parse_link(self, response):
        raise KeyError
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: Folders, backend: str) -> Life:
    raising = ("/plain", "/generator", "/coroutine", "/async_generator", "/link/1", "/link/2")
    return live(
        tmp_path_factory.mktemp("failed"),
        FAILURES,
        {
            "/": "start",
            "/robots.txt": Page("User-agent: *\nDisallow: /forbidden"),
            "/forbidden": "forbidden",
            "/errback": 404,
            **dict.fromkeys(raising, "a page"),
        },
        foreign=lambda site: [by_others("http://offsite.invalid/")],
        ROBOTSTXT_OBEY=True,
        RETRY_TIMES=0,
        DNS_TIMEOUT=5,
    )


@pytest.mark.parametrize("name", ["plain", "generator", "coroutine", "async_generator", "errback"])
def test_an_entry_whose_callback_raised_is_failed(failed: Life, name: str) -> None:
    entry = failed.entry(f"/{name}")
    assert entry.error_messages == [f"ValueError: {name} went wrong"]
    assert entry.retry_count == 0
    assert entry.failed


@pytest.mark.parametrize("path", ["/link/1", "/link/2"])
def test_links_yielded_before_the_callback_raised_are_crawled(failed: Life, path: str) -> None:
    entry = failed.entry(path)
    assert entry.error_messages == ["KeyError"]
    assert entry.failed


def test_a_page_that_robots_txt_forbids_is_failed(failed: Life) -> None:
    entry = failed.entry("/forbidden")
    assert entry.error_messages == ["scrapy.exceptions.IgnoreRequest: Forbidden by robots.txt"]
    assert entry.failed
    assert failed.hits("/forbidden") == []


def test_an_offsite_entry_is_failed(failed: Life) -> None:
    entry = failed.project.entry("http://offsite.invalid/")
    assert len(entry.error_messages) == 1
    assert entry.error_messages[0].startswith("scrapy.exceptions.IgnoreRequest")
    assert entry.failed


def test_an_entry_whose_host_does_not_exist_is_failed(failed: Life) -> None:
    entry = failed.project.entry("http://nowhere.invalid/")
    assert len(entry.error_messages) == 1
    assert entry.error_messages[0].partition(": ")[0] in {
        "twisted.internet.error.DNSLookupError",
        "scrapy.exceptions.CannotResolveHostError",  # its name for it since Scrapy 2.15
    }
    assert entry.loaded_url is None
    assert entry.failed


def test_a_missing_page_is_failed(failed: Life) -> None:
    entry = failed.entry("/missing")
    assert entry.error_messages == ["404 Not Found"]
    assert entry.retry_count == 0
    assert entry.failed


def test_a_status_that_the_spider_handles_is_no_failure(failed: Life) -> None:
    entry = failed.entry("/expected")
    assert entry.error_messages == []
    assert entry.handled_at is not None
    assert entry.loaded_url == entry.url


def test_failures_are_counted(failed: Life) -> None:
    assert failed.crawl.stats["apify_rq/failed"] == 11
    assert failed.crawl.stats["apify_rq/handled"] == 13
    assert failed.project.info().pending == 0


# Retried because the callback raised

SPIDER_ERRORS = """
import os
import signal

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    def parse_page(self, response):
        if response.text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if response.text == "bad":
            raise ValueError("bad page")
"""


@pytest.fixture(scope="module")
def raised(tmp_path_factory: Folders, backend: str) -> Life:
    pages = {
        "/": links("/once", "/always", "/also-down"),
        "/once": ["bad", "good"],
        "/always": "bad",
        "/also-down": ["bad", 503, "bad"],
    }
    return live(
        tmp_path_factory.mktemp("raised"), SPIDER_ERRORS, pages, APIFY_RQ_RETRY_SPIDER_ERRORS=2
    )


def test_a_page_whose_callback_raised_once_is_crawled_again(raised: Life) -> None:
    entry = raised.entry("/once")
    assert entry.retry_count == 1
    assert entry.error_messages == ["ValueError: bad page"]
    assert entry.handled_at is not None
    assert not entry.failed
    assert len(raised.hits("/once")) == 2


def test_a_page_whose_callback_always_raises_gives_up(raised: Life) -> None:
    entry = raised.entry("/always")
    assert entry.retry_count == 2
    assert entry.error_messages == ["ValueError: bad page"] * 3
    assert entry.failed
    assert len(raised.hits("/always")) == 3


def test_failed_downloads_do_not_use_up_the_retries_of_callbacks(raised: Life) -> None:
    entry = raised.entry("/also-down")
    assert entry.retry_count == 3
    bad = "ValueError: bad page"
    assert entry.error_messages == [bad, "503 Service Unavailable", bad, bad]
    assert entry.failed


def test_the_retries_of_callbacks_are_counted_across_runs(tmp_path: Path) -> None:
    pages = {"/": links("/page"), "/page": ["bad", "kill", 503, "bad"]}
    with Site(pages) as site:
        settings = {"APIFY_RQ_RETRY_SPIDER_ERRORS": 2}
        project = Project(tmp_path, SPIDER_ERRORS, site=site.url, settings=settings)
        assert project.run("crawl", "spider").returncode == -signal.SIGKILL
        assert project.entry("/page").retry_count == 1
        project.crawl()
    entry = project.entry("/page")
    assert entry.retry_count == 3
    bad = "ValueError: bad page"
    assert entry.error_messages == [bad, "503 Service Unavailable", bad, bad]
    assert entry.failed


# Added in spite of the filter, or without being written

UNFILTERED = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        yield response.follow("/page", callback=self.parse_page)
        for _ in range(2):
            yield response.follow("/page", callback=self.parse_page, dont_filter=True)
        for path in ("/memory/1", "/memory/2", "/memory/2"):
            yield response.follow(path, callback=lambda response: {"url": response.url})

    def parse_page(self, response):
        pass
"""


@pytest.fixture(scope="module")
def unfiltered(tmp_path_factory: Folders, backend: str) -> Life:
    pages = dict.fromkeys(("/", "/page", "/memory/1", "/memory/2"), "a page")
    folder = tmp_path_factory.mktemp("unfiltered")
    return live(folder, UNFILTERED, pages, "-o", "-:jsonlines")


def test_a_request_that_is_not_to_be_filtered_is_always_added(unfiltered: Life) -> None:
    entries = unfiltered.entries("/page")
    assert len(unfiltered.hits("/page")) == len(entries) == 3
    assert len({entry.unique_key for entry in entries}) == 3
    assert all(entry.handled_at is not None for entry in entries)


def test_a_request_that_cannot_be_written_is_crawled_from_memory(unfiltered: Life) -> None:
    assert len(unfiltered.items) == 2
    for path in ("/memory/1", "/memory/2"):
        assert {"url": f"{unfiltered.site.url}{path}"} in unfiltered.items
        assert unfiltered.entries(path) == []
    assert unfiltered.crawl.stats["scheduler/unserializable"] == 2
    assert unfiltered.crawl.log.count("Unable to serialize request") == 1
    assert unfiltered.crawl.stats["dupefilter/filtered"] == 1


FAULTY = """
class Moody(scrapy.Request):
    attributes = (*scrapy.Request.attributes, "mood")

    def __init__(self, *args, mood=None, **options):
        super().__init__(*args, **options)
        self._mood = mood

    @property
    def mood(self):
        if self._mood == "bad" or "retry_times" in self.meta:
            raise RuntimeError("in no mood")
        return self._mood

class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        yield Moody(SITE + "/again", callback=self.parse_page)
        yield Moody(SITE + "/bad", callback=self.parse_page, mood="bad")

    def parse_page(self, response):
        pass
"""


def test_a_request_that_raises_when_it_is_written_is_crawled_from_memory(tmp_path: Path) -> None:
    pages = {"/": "a page", "/again": [503, "a page"], "/bad": "a page"}
    life = live(tmp_path, FAULTY, pages)
    assert sorted(life.site.paths) == ["/", "/again", "/again", "/bad"]
    assert life.entry("/again").handled_at is not None
    assert life.entries("/bad") == []
    assert life.crawl.stats["scheduler/unserializable"] == 2
    assert "reason: RuntimeError: in no mood." in life.crawl.log


# Started again

RESTARTED = """
class Spider(scrapy.Spider):
    name = "spider"
    path = "/"

    @classmethod
    def from_crawler(cls, crawler, *args, **kwargs):
        spider = super().from_crawler(crawler, *args, **kwargs)
        spider.start_urls = [SITE + spider.path] * 2
        crawler.signals.connect(spider.dropped, scrapy.signals.request_dropped)
        return spider

    def dropped(self, request, spider):
        self.crawler.stats.inc_value("dropped" + request.url.removeprefix(SITE))

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            yield response.follow(href, callback=self.parse_page)

    def parse_page(self, response):
        pass
"""


@dataclass
class Runs:
    project: Project
    site: Site
    crawls: list[Crawl]
    pending: list[int]
    """After each crawl."""


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: Folders, backend: str) -> Runs:
    """A crawl that is stopped half-way, resumed, and run again from another page."""
    pages = {
        "/": links("/a", "/b", "/b"),
        "/other": links("/a", "/b", "/c"),
        **dict.fromkeys(("/a", "/b", "/c"), "a page"),
    }
    with Site(pages) as site:
        folder = tmp_path_factory.mktemp("restarted")
        project = Project(folder, RESTARTED, site=site.url, settings=ONE_BY_ONE)
        runs = Runs(project, site, [], [])
        for options in (["-s", "CLOSESPIDER_PAGECOUNT=2"], [], ["-a", "path=/other"]):
            runs.crawls.append(project.crawl(*options))
            runs.pending.append(project.info().pending)
    return runs


def test_start_requests_are_crawled_as_often_as_given_and_never_again(restarted: Runs) -> None:
    assert restarted.pending[0] > 0
    assert restarted.site.paths.count("/") == 2
    assert restarted.crawls[1].stats["dropped/"] == 2
    found = [e for e in restarted.project.entries() if e.url == f"{restarted.site.url}/"]
    suffixes = {entry.unique_key.partition(":")[2] for entry in found}
    assert suffixes == {"start1", "start2"}
    assert len(found) == 2


def test_what_was_pending_is_crawled_once_in_the_next_run(restarted: Runs) -> None:
    assert restarted.pending[1:] == [0, 0]
    for path in ("/a", "/b", "/c"):
        assert restarted.site.paths.count(path) == 1
        assert restarted.project.entry(path).handled_at is not None


def test_duplicates_within_a_run_are_dropped(restarted: Runs) -> None:
    stats = restarted.crawls[0].stats
    # Two start requests yield the same three links, two of which differ.
    assert stats["dropped/a"] == 1
    assert stats["dropped/b"] == 3
    assert stats["dupefilter/filtered"] == 4


def test_what_the_queue_had_from_an_earlier_run_is_dropped(restarted: Runs) -> None:
    stats = restarted.crawls[2].stats
    assert stats["dropped/a"] == stats["dropped/b"] == 2
    assert stats["dropped/c"] == 1
    assert stats["dupefilter/filtered"] == 5
    assert stats["scheduler/enqueued"] == 3


OWN_FILTER = (
    SPIDER
    + """

from scrapy.dupefilters import RFPDupeFilter

class NoLetters(RFPDupeFilter):
    def request_seen(self, request):
        return request.url.endswith("/a") or super().request_seen(request)
"""
)


def test_a_dupefilter_of_the_project_is_asked_first(tmp_path: Path) -> None:
    pages = {"/": links("/a", "/1", "/1"), "/1": "a page"}
    settings = {"DUPEFILTER_CLASS": "project.spiders.NoLetters"}
    life = live(tmp_path, OWN_FILTER, pages, **settings)
    assert life.site.paths == ["/", "/1"]
    assert life.entries("/a") == []
    assert life.crawl.stats["dupefilter/filtered"] == 2


def test_without_a_dupefilter_every_request_is_added(tmp_path: Path) -> None:
    settings = {"DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter"}
    life = live(tmp_path, SPIDER, {"/": links("/a", "/a"), "/a": "a page"}, **settings)
    assert life.site.paths == ["/", "/a", "/a"]
    assert len(life.entries("/a")) == 2
    assert "dupefilter/filtered" not in life.crawl.stats


# Made by others

FOREIGN = """
class Spider(scrapy.Spider):
    name = "spider"

    def parse(self, response):
        return self.tell("parse", response)

    def parse_detail(self, response, page=None):
        return self.tell("parse_detail", response, page)

    def failed(self, failure):
        return self.tell("failed", failure, url=failure.request.url)

    def tell(self, method, response, page=None, url=None):
        meta = {} if url else response.meta
        return {
            "url": url or response.url,
            "method": method,
            "page": page,
            "userData": meta.get("userData"),
            "depth": meta.get("depth"),
        }
"""


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


def written_by_apify(site: str, path: str, **fields: Any) -> dict[str, Any]:
    """``userData`` of apify.scrapy 4.x; see section 13 of the API facts in its source."""
    request = {
        "url": f"{site}{path}",
        "callback": None,
        "errback": None,
        "headers": {"X-Test": [base64.b64encode(b"from apify").decode()]},
        "method": "GET",
        "body": "",
        "cookies": {},
        "meta": {},
        "encoding": "utf-8",
        "priority": 0,
        "dont_filter": False,
        "flags": [],
        "cb_kwargs": {},
        **fields,
    }
    return {"kept": 1, "scrapy_request": json.dumps(request)}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: Folders, backend: str) -> Life:
    folder = tmp_path_factory.mktemp("foreign")

    def entries(site: str) -> list[Entry]:
        def entry(path: str, **fields: Any) -> Entry:
            return by_others(f"{site}{path}", **fields)

        post = base64.b64encode(b"a=1").decode()
        trap = base64.encodebytes(pickle.dumps(Trap(folder / "sprung"))).decode()
        return [
            entry("/bare"),
            entry("/post", method="POST", headers={"X-Test": "yes"}, payload='{"ü": 1}'),
            entry("/data", user_data={"shop": {"id": 7}, "label": "UNKNOWN"}),
            entry("/label", user_data={"label": "DETAIL"}),
            entry(
                "/apify",
                method="POST",
                payload="a=1",
                user_data=written_by_apify(
                    site,
                    "/apify",
                    callback="parse_detail",
                    method="POST",
                    body=post,
                    meta={"depth": 3},
                    cb_kwargs={"page": 5},
                ),
            ),
            entry("/apify-404", user_data=written_by_apify(site, "/apify-404", errback="failed")),
            entry("/pickle", user_data={"scrapy_request": trap}),
            entry("/apify-gone", user_data=written_by_apify(site, "/", callback="parse_gone")),
            entry("/gone", user_data={"scrapy": {"v": 1, "callback": "parse_gone"}}),
        ]

    pages = dict.fromkeys(("/bare", "/post", "/data", "/label", "/apify"), "a page")
    callbacks = {"DETAIL": "parse_detail"}
    return live(
        folder, FOREIGN, pages, "-o", "-:jsonlines", foreign=entries, APIFY_RQ_CALLBACKS=callbacks
    )


def told(life: Life, path: str) -> dict[str, Any]:
    """What the spider said about this page."""
    (item,) = [item for item in life.items if item.pop("url") == f"{life.site.url}{path}"]
    return item


def test_a_url_is_enough_for_an_entry(foreign: Life) -> None:
    assert told(foreign, "/bare") == {
        "method": "parse",
        "page": None,
        "userData": None,
        "depth": None,
    }
    entry = foreign.entry("/bare")
    assert entry.handled_at is not None
    assert entry.loaded_url == entry.url


def test_method_headers_and_payload_of_an_entry_are_sent(foreign: Life) -> None:
    (hit,) = foreign.hits("/post")
    assert hit.method == "POST"
    assert hit.body == '{"ü": 1}'.encode()
    assert ("X-Test", "yes") in hit.headers


def test_user_data_of_an_entry_is_in_the_meta(foreign: Life) -> None:
    item = told(foreign, "/data")
    assert item["userData"] == {"shop": {"id": 7}, "label": "UNKNOWN"}
    assert item["method"] == "parse"
    assert foreign.entry("/data").user_data == item["userData"]


def test_the_label_of_an_entry_chooses_the_callback(foreign: Life) -> None:
    assert told(foreign, "/label")["method"] == "parse_detail"


def test_an_entry_of_apify_scrapy_is_read(foreign: Life) -> None:
    item = told(foreign, "/apify")
    assert item == {"method": "parse_detail", "page": 5, "userData": {"kept": 1}, "depth": 3}
    (hit,) = foreign.hits("/apify")
    assert hit.method == "POST"
    assert hit.body == b"a=1"
    assert ("X-Test", "from apify") in hit.headers
    assert told(foreign, "/apify-404")["method"] == "failed"


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/pickle", "pickles"), ("/apify-gone", "'parse_gone'"), ("/gone", "'parse_gone'")],
)
def test_an_entry_that_is_no_request_is_failed_and_reported(
    foreign: Life, path: str, reason: str
) -> None:
    entry = foreign.entry(path)
    assert entry.failed
    (message,) = entry.error_messages
    assert reason in message
    assert foreign.hits(path) == []
    reports = [line for line in foreign.crawl.log.splitlines() if f"{path})" in line]
    assert len(reports) == 1
    assert "ERROR" in reports[0]
    assert reason in reports[0]


def test_entries_that_are_no_requests_are_counted_and_harm_nothing(foreign: Life) -> None:
    assert not (foreign.project.folder / "sprung").exists()
    assert foreign.crawl.stats["apify_rq/undecodable"] == 3
    assert foreign.crawl.stats["finish_reason"] == "finished"
    assert foreign.project.info().pending == 0


# In order

TREE = """
class Spider(scrapy.Spider):
    name = "spider"
    start_urls = [SITE + "/"]

    def parse(self, response):
        for href in response.css("a::attr(href)").getall():
            priority = int(href.rpartition("p=")[2] or 0) if "p=" in href else 0
            yield response.follow(href, priority=priority)
"""


@dataclass
class Ordered:
    pending: list[str]
    """The paths waiting in the queue after the first page."""
    crawled: list[str]
    """All paths, in the order of their crawl."""


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: Folders, backend: str) -> Ordered:
    first, deep = "/first?p=9", ["/1/deep", "/2/deep"]
    pages = {
        "/": links("/1", "/2", "/late?p=-1", "/mid?p=5", "/3", "/4", first, "/mid/2?p=5"),
        first: links("/first/soon?p=7"),
        "/1": links(deep[0]),
        "/2": links(deep[1]),
    }
    with Site(pages, default=SLOW) as site:
        folder = tmp_path_factory.mktemp("ordered")
        project = Project(folder, TREE, site=site.url, settings=ONE_BY_ONE)
        project.crawl("-s", "CLOSESPIDER_PAGECOUNT=1")
        pending = [entry.url.removeprefix(site.url) for entry in project.pending()]
        project.crawl()
    return Ordered(pending, site.paths)


def test_urgent_requests_are_added_in_front(ordered: Ordered) -> None:
    in_front, rest = ordered.pending[:3], ordered.pending[3:]
    assert set(in_front) == {"/first?p=9", "/mid?p=5", "/mid/2?p=5"}
    assert rest == ["/1", "/2", "/late?p=-1", "/3", "/4"]


def test_the_highest_priority_is_crawled_first(ordered: Ordered) -> None:
    assert ordered.crawled[:2] == ["/", "/first?p=9"]
    assert set(ordered.crawled[2:5]) == {"/mid?p=5", "/mid/2?p=5", "/first/soon?p=7"}
    assert ordered.crawled[-1] == "/late?p=-1"


def test_of_one_priority_first_in_is_first_out(ordered: Ordered) -> None:
    assert ordered.crawled[5:-1] == ["/1", "/2", "/3", "/4", "/1/deep", "/2/deep"]


def test_lifo_goes_depth_first(tmp_path: Path) -> None:
    wide = [f"/{number}" for number in range(6)]
    deep = [f"{path}/deep" for path in wide]
    pages = {path: Page(links(f"{path}/deep"), delay=SLOW.delay) for path in wide}
    life = live(
        tmp_path,
        TREE,
        {"/": links(*wide), **pages, **dict.fromkeys(deep, SLOW)},
        **ONE_BY_ONE,
        APIFY_RQ_ORDER="lifo",
    )
    order = life.site.paths
    assert sorted(order) == sorted(["/", *wide, *deep])
    assert order[1] == "/5"
    # While a link is being saved, one page of the upper level or two may be handed out.
    assert order.index("/5/deep") < order.index("/2")
    assert order.index("/3/deep") < order.index("/0")


def test_first_in_is_first_out_where_the_queue_exceeds_the_window(tmp_path: Path) -> None:
    wide = [f"/{number}" for number in range(10)]
    deep = [f"{path}/deep" for path in wide]
    pages = {path: links(f"{path}/deep") for path in wide} | dict.fromkeys(deep, "a page")
    life = live(tmp_path, TREE, {"/": links(*wide), **pages}, **ONE_BY_ONE, APIFY_RQ_WINDOW=4)
    assert life.site.paths == ["/", *wide, *deep]
