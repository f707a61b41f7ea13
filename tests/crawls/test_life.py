"""The life of an entry: crawled, redirected, retried, failed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Response

from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from tests.support.crawling import Crawls
from tests.support.queues import Queue, copied
from tests.support.spiders import Pages, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Answer, Held, Page, Site, links

# The state of an entry, how many retries it had, and its error messages.
Outcome = tuple[str, int, list[str]]
HANDLED: Outcome = ("handled", 0, [])
BAD, DOWN, MISSING = "ValueError: bad page", "503 Service Unavailable", "404 Not Found"
BROKEN, KEPT = "500 Internal Server Error", "302 Found, but a middleware kept it from the callback"
GONE = "not crawled, since it cannot be decoded: spider 'spider' has no method 'closed'"
IGNORED = "scrapy.exceptions.IgnoreRequest"


def failed(*errors: str, retries: int = 0) -> Outcome:
    return "failed", retries, list(errors)


def retried(*errors: str) -> Outcome:
    """Each error led to a retry, and the last try was good."""
    return "handled", len(errors), list(errors)


def outcome(entry: Entry) -> Outcome:
    # What follows these words is not ours to know.
    scrapys = "scrapy.exceptions.(DownloadFailed|CannotResolveHost|IgnoreRequest: Filtered).*"
    errors = [re.sub(scrapys, r"\1", error, flags=re.DOTALL) for error in entry.error_messages]
    return entry.state, entry.retry_count, errors


async def by_path(queue: Queue, site: Site) -> dict[str, Entry]:
    """The entries, one for each page."""
    entries = await queue.entries()
    found = {entry.url.removeprefix(site.url): entry for entry in entries}
    assert len(found) == len(entries)
    return found


def outcomes(entries: dict[str, Entry]) -> dict[str, Outcome]:
    return {path: outcome(entry) for path, entry in entries.items()}


def to(path: str) -> Page:
    return Page(status=302, headers={"Location": path})


DROP = Page(drop=True)
REFRESH = '<html><meta http-equiv="refresh" content="0; url=/refresh/end"></html>'
NOWHERE, OFFSITE = "http://nowhere.invalid/", "http://offsite.invalid/"
# path: what the site answers, the outcome, and the page loaded.
LIFE: dict[str, tuple[Answer, Outcome, str | None]] = {
    "/seen": ("page", HANDLED, "/seen"),
    "/two": (to("/two/half"), HANDLED, "/two/half"),
    "/two/half": (to("/two/end"), HANDLED, "/two/end"),
    "/two/end": ("page", HANDLED, "/two/end"),
    "/to-seen": (to("/seen"), HANDLED, "/seen"),
    "/to-itself": (to("/to-itself"), HANDLED, "/to-itself"),
    "/refresh": (REFRESH, HANDLED, "/refresh/end"),
    "/refresh/end": ("page", HANDLED, "/refresh/end"),
    "/far": (to("/far/half"), HANDLED, "/far/half"),
    "/far/half": (to("/far/end"), failed(KEPT), None),
    # Those that give up have one error more than retries.
    "/status": ([503, 503, "page"], retried(DOWN, DOWN), "/status"),
    "/drop": ([DROP, DROP, "page"], retried("DownloadFailed", "DownloadFailed"), "/drop"),
    "/empty": (["", "page"], retried("200 OK, but the callback asked for a retry"), "/empty"),
    "/errback": ([404, "page"], retried(MISSING), "/errback"),
    "/down": (500, failed(BROKEN, BROKEN, BROKEN, retries=2), None),
    "/cut": (DROP, failed(*["DownloadFailed"] * 3, retries=2), None),
    "/dont-retry": (503, failed(DOWN), None),
    "/plain": ("page", failed("ValueError: plain went wrong"), "/plain"),
    "/generator": ("page", failed("ValueError: generator went wrong"), "/generator"),
    "/coroutine": ("page", failed("ValueError: coroutine went wrong"), "/coroutine"),
    "/async": ("page", failed("ValueError: async went wrong"), "/async"),
    "/raises": (404, failed("ValueError: errback went wrong"), None),
    "/link/1": ("page", failed("KeyError"), "/link/1"),
    "/link/2": ("page", failed("KeyError"), "/link/2"),
    "/forbidden": ("page", failed(f"{IGNORED}: Forbidden by robots.txt"), None),
    "/missing": (404, failed(MISSING), None),
    "/expected": (404, HANDLED, "/expected"),
    NOWHERE: (200, failed("CannotResolveHost"), None),
    "/bare": ("page", HANDLED, "/bare"),
    "/post": ("page", HANDLED, "/post"),
    "/label": ("page", HANDLED, "/label"),
    "/no-retry": (503, failed(DOWN), None),
    "/retry": ([503, "page"], retried(DOWN), "/retry"),
    "/apify": (404, failed("ValueError: errback went wrong"), None),
    "/gone": (200, failed(GONE), None),
    OFFSITE: (200, failed("IgnoreRequest: Filtered"), None),
}
# Others have put these into the queue. What their programs write is the subject of
# test_foreign_queues.
BY_OTHERS: dict[str, dict[str, Any]] = {
    "/bare": {},
    "/post": {"method": "POST", "headers": {"X-Test": "yes"}, "payload": '{"ü": 1}'},
    "/label": {"user_data": {"shop": {"id": 7}, "label": "DETAIL"}},
    "/no-retry": {"no_retry": True},
    "/retry": {"no_retry": False},
    "/gone": {"user_data": {"scrapy": {"v": 1, "callback": "closed"}}},
    OFFSITE: {},
}
META: dict[str, dict[str, Any]] = {
    "/far": {"redirect_ttl": 1},
    "/dont-retry": {"dont_retry": True},
    "/expected": {"handle_httpstatus_list": [404]},
    NOWHERE: {"max_retry_times": 0, "dont_obey_robotstxt": True, "allow_offsite": True},
}


class Life(Pages):
    """Has callbacks and errbacks that are named after its pages."""

    allowed_domains = ["127.0.0.1"]  # noqa: RUF012 (Scrapy's way)

    def parse(self, response: Response) -> Iterator[Any]:
        for path in response.css("a::attr(href)").getall():
            yield response.follow(
                path,
                # A GET on a connection that was dropped is sent once more by Twisted itself.
                method="POST" if path in ("/drop", "/cut") else "GET",
                callback=getattr(self, f"parse_{path[1:]}", self.parse_page),
                errback=getattr(self, f"failed_{path[1:]}", None),
                meta=META.get(path),
            )

    def parse_empty(self, response: Response) -> Any:
        assert response.request is not None
        if not response.text:
            yield get_retry_request(response.request, spider=self, reason="empty")

    def failed_errback(self, failure: Any) -> Any:
        return get_retry_request(failure.request, spider=self, reason="asked for")

    def failed_raises(self, failure: Any) -> Any:
        raise ValueError("errback went wrong")

    def parse_plain(self, response: Response) -> None:
        raise ValueError("plain went wrong")

    def parse_generator(self, response: Response) -> Iterator[Any]:
        yield response.follow("/link/1", callback=self.parse_link)
        raise ValueError("generator went wrong")

    async def parse_coroutine(self, response: Response) -> None:
        raise ValueError("coroutine went wrong")

    async def parse_async(self, response: Response) -> AsyncIterator[Any]:
        yield response.follow("/link/2", callback=self.parse_link)
        raise ValueError("async went wrong")

    def parse_label(self, response: Response) -> Any:
        yield {"user_data": response.meta["userData"]}

    def parse_link(self, response: Response) -> None:
        raise KeyError


async def test_pages_of_one_crawl(site: Site, crawls: Crawls, any_queue: Queue) -> None:
    by_apify = json.dumps({"url": f"{site.url}/apify", "errback": "failed_raises"})
    by_others = {**BY_OTHERS, "/apify": {"user_data": {"scrapy_request": by_apify}}}
    linked = [path for path in LIFE if path.count("/") != 2 and path not in by_others]
    site.serve({path: answer for path, (answer, _, _) in LIFE.items()})
    site.serve({"/": links(*linked), "/robots.txt": "User-agent: *\nDisallow: /forbidden"})
    for path, fields in by_others.items():
        url = path if path == OFFSITE else f"{site.url}{path}"
        await any_queue.add(Entry(id=request_id(url), unique_key=url, url=url, **fields))
    settings = {"ROBOTSTXT_OBEY": True, "APIFY_RQ_CALLBACKS": {"DETAIL": "parse_label"}}
    crawl = await crawls.run(Life, settings, queue=any_queue, site=site.url)

    entries = await by_path(any_queue, site)
    del entries["/"]
    assert outcomes(entries) == {path: expected for path, (_, expected, _) in LIFE.items()}
    loaded = {path: entry.loaded_url for path, entry in entries.items()}
    assert loaded == {path: page and f"{site.url}{page}" for path, (_, _, page) in LIFE.items()}
    hits = {path: 1 + retries for path, (_, (_, retries, _), _) in LIFE.items()}
    never = dict.fromkeys(("/forbidden", "/gone", NOWHERE, OFFSITE), 0)
    assert Counter(site.paths) == Counter({"/": 1, **hits, **never})
    (post,) = [hit for hit in site.hits if hit.path == "/post"]
    assert post[:3] == ("POST", "/post", '{"ü": 1}'.encode())
    assert ("X-Test", "yes") in post.headers
    # Ours are not without a value, or the Apify SDK would not read them.
    no_retry = {path: entry.no_retry for path, entry in entries.items() if path not in by_others}
    assert no_retry == {path: path == "/dont-retry" for path in no_retry}
    assert entries["/no-retry"].no_retry is True
    assert entries["/label"].user_data == BY_OTHERS["/label"]["user_data"]
    good = ("/seen", "/two/end", "/refresh/end", "/status", "/drop", "/errback", "/expected")
    assert {entries[path].user_data["label"] for path in good} == {"parse_page"}
    items = [{"path": path} for path in good] + [BY_OTHERS["/label"]]
    assert sorted(crawl.items, key=repr) == sorted(items, key=repr)
    assert len(re.findall(r"ERROR: .*/gone\) .* no method 'closed'", crawl.log_text)) == 1
    stats = crawl.stats
    assert stats["apify_rq/undecodable"] == 1
    assert stats["apify_rq/retried"] == stats["retry/count"] == 11
    assert (stats["apify_rq/failed"], stats["apify_rq/handled"]) == (18, 1 + len(LIFE))
    assert (await any_queue.info()).pending == 0


class CopiesMeta(SiteSpider):
    """Gives the meta of a page that was retried to a link, and with it ``retry_times``."""

    def parse(self, response: Response) -> Iterator[Any]:
        yield response.follow("/slow", callback=self.note)
        yield response.follow("/bad", callback=self.parse_bad)

    def parse_bad(self, response: Response) -> Iterator[Any]:
        yield response.follow("/slow", callback=self.note, meta=response.meta)
        yield response.follow("/last", callback=self.note)


@pytest.mark.parametrize("is_redirect", [False, True])
async def test_copy_of_a_retrys_meta(
    site: Site, crawls: Crawls, any_queue: Queue, is_redirect: bool
) -> None:
    """As in stock Scrapy, the link is filtered; the redirect of a retry is not."""
    slow = Held("slow")
    site.serve({"/": "start", "/bad": [503, to("/slow") if is_redirect else "page"]})
    site.serve({"/slow": [slow, "slow"], "/last": "last"})
    crawl = await crawls.start(CopiesMeta, queue=any_queue, site=site.url)
    await wait_until(lambda: "/last" in site.paths)
    slow.go.set()
    await crawl.end()
    times = 2 if is_redirect else 1
    assert site.paths.count("/slow") == times
    stored = [outcome(one) for one in await any_queue.entries() if one.url.endswith("/slow")]
    assert stored == [HANDLED] * times
    assert crawl.stats["dupefilter/filtered"] == 1
    bad = await any_queue.entry("/bad")
    assert bad.loaded_url == f"{site.url}{'/slow' if is_redirect else '/bad'}"


class Raises(Pages):
    def parse_page(self, response: Response) -> None:
        if response.text == "bad":
            raise ValueError("bad page")


async def test_retries_of_callbacks(site: Site, crawls: Crawls, any_queue: Queue) -> None:
    again = Held("good")
    site.serve({"/": links("/once", "/always", "/down", "/crash"), "/once": ["bad", "good"]})
    # Failed downloads do not use up the retries of callbacks.
    site.serve({"/always": "bad", "/down": ["bad", 503, "bad"]})
    site.serve({"/crash": ["bad", again, 503, "bad"]})
    settings = {"APIFY_RQ_RETRY_SPIDER_ERRORS": 2}
    crawl = await crawls.start(Raises, settings, queue=any_queue, site=site.url)
    await wait_until(lambda: crawl.stats.get("apify_rq/retried") == 7, "the saving of all retries")
    await wait_until(again.begun.is_set)
    with copied(any_queue) as copy:
        again.go.set()
        await crawl.end()
        gave_up = failed(BAD, DOWN, BAD, BAD, retries=3)
        assert outcomes(await by_path(any_queue, site)) == {
            "/": HANDLED,
            "/once": retried(BAD),
            "/always": failed(BAD, BAD, BAD, retries=2),
            "/down": gave_up,
            "/crash": retried(BAD),
        }
        assert Counter(site.paths) == {"/": 1, "/once": 2, "/always": 3, "/down": 4, "/crash": 2}

        # They are counted across runs.
        assert outcome(await copy.entry("/crash")) == ("pending", 1, [BAD])
        await crawls.run(Raises, settings, queue=copy, site=site.url)
        assert outcome(await copy.entry("/crash")) == gave_up
