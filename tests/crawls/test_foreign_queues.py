"""Crawl queues over the API that other programs have filled."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Response

from tests.support.codec_classes import Exploit
from tests.support.crawling import Crawls
from tests.support.documents import commands
from tests.support.queues import NAME, TOKEN, ServedQueue, serving
from tests.support.spiders import Links, SiteSpider
from tests.support.waiting import wait_until
from tests.support.website import Held, Site, links

THEIRS = {"SCHEDULER": "apify.scrapy.ApifyScheduler", "ADDONS": {}}
LABELS = {"APIFY_RQ_CALLBACKS": {"DETAIL": "parse_detail"}}


@pytest.fixture(autouse=True)
def configuration(served: ServedQueue, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The SDK's, for our server, whose answers do not lag.

    The SDK takes a second to be imported, so only tests that run import it.
    """
    apify, apify_client = (pytest.importorskip(name) for name in ("apify", "apify_client"))
    url, queues = served.api.url, apify_client.ApifyClient(TOKEN, api_url=served.api.url)
    options = {"token": TOKEN, "api_base_url": url, "api_public_base_url": url, "is_at_home": True}
    id = queues.request_queues().get_or_create(name=NAME).id
    ours = apify.Configuration(**options, default_request_queue_id=id)
    monkeypatch.setattr(apify.Configuration, "get_global_configuration", lambda: ours)
    return ours


async def opened(configuration: Any) -> Any:
    """The SDK's queue, as a new process opens it."""
    import apify
    import crawlee

    crawlee.service_locator.storage_instance_manager.clear_cache()
    client = apify.storage_clients.ApifyStorageClient()
    open_queue = apify.storages.RequestQueue.open
    return await open_queue(storage_client=client, configuration=configuration)


class Begins(SiteSpider):
    """As ``start_urls`` has it, with these paths; by default with what is in the queue alone."""

    paths: tuple[str, ...] = ()

    async def start(self) -> AsyncIterator[Any]:
        for path in self.paths:
            yield Request(self.site + path, dont_filter=True)


class Labelled(Begins):
    """Shows which callback has had a page."""

    def parse(self, response: Response) -> Iterator[Any]:
        yield Request(f"{self.site}/from-parse", self.note)

    def parse_detail(self, response: Response) -> Iterator[Any]:
        path = response.url.removeprefix(f"{self.site}/")
        yield Request(f"{self.site}/from-detail?of={path}", self.note)


async def test_entries_of_the_official_client(
    site: Site, served: ServedQueue, crawls: Crawls, configuration: Any
) -> None:
    import apify_client

    pages = ["/labelled", "/from-detail?of=labelled", "/unknown", "/plain", "/from-parse"]
    site.serve(dict.fromkeys(pages, "page"))
    pickled = pickle.dumps({"url": "https://example.com/", "meta": Exploit()})
    texts = {
        # apify 3.x and older used codecs.encode(..., "base64"), which breaks lines.
        "/pickle": base64.encodebytes(pickled).decode(),
        "/pickle-in-one-line": base64.b64encode(pickled).decode(),
    }
    user_data: dict[str, Any] = {path: {"scrapy_request": text} for path, text in texts.items()}
    user_data |= {"/labelled": {"label": "DETAIL"}, "/unknown": {"label": "OTHER"}, "/plain": {}}
    client = apify_client.ApifyClient(TOKEN, api_url=served.api.url)
    client.request_queue(configuration.default_request_queue_id).batch_add_requests(
        [
            {"url": f"{site.url}{path}", "uniqueKey": path, "userData": data}
            for path, data in user_data.items()
        ]
    )
    crawl = await crawls.run(Labelled, LABELS, queue=served, site=site.url)
    assert Counter(site.paths) == Counter(pages)
    assert (crawl.reason, (await served.info()).pending) == ("finished", 0)
    stored = {path: await served.entry(path) for path in user_data}
    assert {path: entry.user_data for path, entry in stored.items()} == user_data
    assert all(entry.is_handled for entry in stored.values())
    assert stored["/labelled"].loaded_url == stored["/labelled"].url
    assert stored["/labelled"].error_messages == []
    assert crawl.stats["apify_rq/undecodable"] == 2
    for path in texts:
        (message,) = stored[path].error_messages
        assert "pickles" in message
        (report,) = (line for line in crawl.log_text.splitlines() if f"{path})" in line)
        assert report.startswith("ERROR")


async def test_requests_of_crawlee(
    site: Site, served: ServedQueue, crawls: Crawls, configuration: Any
) -> None:
    """They are sent as they were written, their own data is not changed, and it reads ours."""
    import crawlee

    site.serve(dict.fromkeys(["/form", "/plain", "/from-parse", "/from-detail?of=form"], "page"))
    headers = {"X-Own": "value", "Content-Type": "application/x-www-form-urlencoded"}
    sent: Any = {"method": "POST", "payload": "name=Škoda", "headers": headers, "label": "DETAIL"}
    sent |= {"max_retries": 7, "enqueue_strategy": "same-domain", "session_id": "session1"}
    sent |= {"user_data": {"deep": {"list": [1, None, "ž"]}}, "use_extended_unique_key": True}
    form = crawlee.Request.from_url(f"{site.url}/form", **sent)
    form.crawl_depth = 3
    plain = crawlee.Request.from_url(f"{site.url}/plain")
    await (await opened(configuration)).add_requests([form, plain])
    before = (await served.entry("/form")).user_data
    assert before["__crawlee"].keys() >= {"maxRetries", "enqueueStrategy", "crawlDepth"}
    assert before["deep"] == {"list": [1, None, "ž"]}

    await crawls.run(Labelled, LABELS, queue=served, site=site.url)
    assert sorted(site.paths) == ["/form", "/from-detail?of=form", "/from-parse", "/plain"]
    assert (await served.info()).pending == 0
    assert (await served.entry("/form")).user_data == before
    (hit,) = (hit for hit in site.hits if hit.path == "/form")
    assert (hit.method, hit.body.decode()) == ("POST", "name=Škoda")
    arrived = {name.lower(): value for name, value in hit.headers}
    assert arrived.items() >= {name.lower(): value for name, value in headers.items()}.items()

    queue = await opened(configuration)
    # Adding reads all that is in the queue first, with what we have added.
    assert (await queue.add_request(form)).was_already_handled
    found = [await queue.get_request(request.unique_key) for request in (form, plain)]
    read = [json.loads(request.model_dump_json(by_alias=True)) for request in found]
    assert all(one["handledAt"] for one in read)
    expected = {"method": "POST", "payload": "name=Škoda", "loadedUrl": form.url, "retryCount": 0}
    assert read[0].items() >= expected.items()
    assert await queue.is_finished()


FORMS = [f"/form/{n}" for n in range(20)]
DETAILS = [f"/detail/{n}" for n in range(20)]
FAILED = [f"/failed/{n}" for n in range(10)]
CONCURRENCY = {"CONCURRENT_REQUESTS": 4, "CONCURRENT_REQUESTS_PER_DOMAIN": 4}


class Forms(Begins):
    """Sends forms that carry much, follows each with a page that fails, and that by its errback."""

    paths = ("/",)

    def parse(self, response: Response) -> Iterator[Any]:
        for n in range(20):
            meta = {"number": n, "deep": {"list": [1, None]}, "userData": {"label": "F"}}
            more: Any = {"method": "POST", "body": f"name=Škoda {n}", "meta": meta}
            more |= {"headers": {"X-Own": f"value {n}", "Content-Type": "text/plain"}}
            more |= {"cb_kwargs": {"name": f"form {n}"}, "cookies": {"c": n}, "flags": ["flag"]}
            yield Request(f"{self.site}/form/{n}", self.parse_form, **more)

    def parse_form(self, response: Response, name: str) -> Iterator[Any]:
        n = response.meta["number"]
        assert (name, response.meta["deep"]) == (f"form {n}", {"list": [1, None]})
        assert response.request is not None
        assert response.request.flags == ["flag"]
        yield Request(f"{self.site}/detail/{n}", self.note, errback=self.failed)

    def failed(self, failure: Any) -> Iterator[Any]:
        yield Request(f"{self.site}/failed/{failure.request.url[-1]}", self.note)


async def test_a_crawl_that_apify_scrapy_began_and_that_was_killed(
    site: Site, served: ServedQueue, crawls: Crawls
) -> None:
    held = [Held("page") for _ in range(4)]
    site.serve(dict.fromkeys(["/", *FORMS, *FAILED], "page"))
    site.serve({path: [page, "page"] for path, page in zip(FORMS[10:14], held, strict=True)})
    theirs = await crawls.start(Forms, {**THEIRS, **CONCURRENCY}, queue=served, site=site.url)
    await wait_until(lambda: all(page.begun.is_set() for page in held), "the middle of the crawl")
    done, pending = list(site.paths), (await served.info()).pending
    copy = served.copy()
    stopped = asyncio.ensure_future(theirs.crawler.stop_async())
    for page in held:
        page.go.set()
    await stopped
    await theirs.end()
    started = len(site.paths)
    settings = {**CONCURRENCY, "APIFY_RQ_UNIQUE_KEY": "extended"}
    with serving(copy.folder) as resumed:
        crawl = await crawls.run(Forms, settings, queue=resumed, site=site.url)
        assert (await resumed.info()).pending == 0
        entries = {entry.url.removeprefix(site.url): entry for entry in await resumed.entries()}
    ours = site.paths[started:]
    assert {*done, *ours} == {"/", *FORMS, *DETAILS, *FAILED}
    assert crawl.reason == "finished"
    assert "apify_rq/undecodable" not in crawl.stats
    assert not [name for name in crawl.stats if "spider_exceptions" in name]
    # Each of them has crawled a part.
    assert 10 <= len(done) < 20
    assert 10 < pending <= len(ours)
    # Only what was in flight is crawled again: their scheduler acks a finished page when it next
    # asks for a request.
    again = Counter([*done, *ours]) - Counter({*done, *ours})
    assert again.total() <= 8
    assert again.keys() <= set(FORMS)
    for hit in site.hits:
        if hit.path in FORMS:
            n = hit.path.removeprefix("/form/")
            assert (hit.method, hit.body.decode()) == ("POST", f"name=Škoda {n}")
            expected = {"X-Own": f"value {n}", "Content-Type": "text/plain", "Cookie": f"c={n}"}
            assert dict(hit.headers).items() >= expected.items()
    for path in FORMS:
        assert entries[path].user_data["label"] == "F"
        assert "scrapy_request" in entries[path].user_data


class Crossing(Begins):
    paths = ("/", "/second")

    def parse(self, response: Response) -> Iterator[Any]:
        for link in response.css("a::attr(href)"):
            yield response.follow(link, headers={"Accept-Language": "cs", "X-Own": "1"})
        yield Request(f"{self.site}/post", method="POST", body="a")
        # Their scheduler retries this as a new entry, which has the meta of the first one.
        yield Request(f"{self.site}/once#part")


async def test_each_page_is_crawled_by_only_one_of_them(
    site: Site, served: ServedQueue, crawls: Crawls, configuration: Any
) -> None:
    """Theirs is stopped cleanly; every page of the site links to all others."""
    cross_linked = [f"/Page/{n}?b=2&a={n}" for n in range(30)]
    pages = ["/", "/second", *cross_linked]
    site.serve(dict.fromkeys(pages, links(*cross_linked, "/")))
    site.serve({"/post": links("/"), "/once": [503, links("/")]})
    settings = {**THEIRS, "CLOSESPIDER_PAGECOUNT": 12, "CONCURRENT_REQUESTS": 4}
    await crawls.run(Crossing, settings, queue=served, site=site.url)
    done, pending = len(site.paths), (await served.info()).pending
    assert 10 <= done < 25
    assert pending > 10
    ((*command, dash, which, another_dash, key),) = commands(
        "docs/migrating.md", "From `apify.scrapy`"
    )
    assert (*command, dash, another_dash) == ("scrapy", "crawl", "spider", "-s", "-s")
    ours = dict(word.split("=") for word in (which, key))
    assert ours["APIFY_RQ_ID"] == "WkzbQMuFYuamGv3YF"
    ours |= {"APIFY_RQ_ID": configuration.default_request_queue_id, "APIFY_RQ_NAME": None}
    crawl = await crawls.run(Crossing, ours, queue=served, site=site.url)
    # The start page is crawled once more, as in stock Scrapy: a start request is not filtered, so a
    # link to its page counts as new.
    assert Counter(site.paths) == Counter([*pages, "/", "/post", "/once", "/once"])
    assert (crawl.reason, (await served.info()).pending) == ("finished", 0)


class StartsAgain(Begins, Links):
    paths = ("/",)


async def test_a_queue_that_crawlee_has_half_finished(
    site: Site, served: ServedQueue, crawls: Crawls, configuration: Any
) -> None:
    """Each page links to all others, and Crawlee has found them all."""
    import crawlee

    pages = ["/", *(f"/page/{n}/?b={n}&a=2" for n in range(24))]
    site.serve(dict.fromkeys(pages, links(*pages)))
    queue = await opened(configuration)
    await queue.add_requests([crawlee.Request.from_url(site.url + path) for path in pages])
    done = [await queue.fetch_next_request() for _ in range(12)]
    for request in done:
        await queue.mark_request_as_handled(request)
    settings = {"APIFY_RQ_UNIQUE_KEY": "url"}
    crawl = await crawls.run(StartsAgain, settings, queue=served, site=site.url)
    crawled = [request.url.removeprefix(site.url) for request in done] + site.paths
    assert Counter(crawled) == Counter(pages)
    info = await served.info()
    assert (crawl.reason, info.total, info.pending) == ("finished", len(pages), 0)
