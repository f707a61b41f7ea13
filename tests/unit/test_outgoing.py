"""What a request is stored as once downloader middlewares have had it."""

from __future__ import annotations

from scrapy import Request
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.spiders import Spider
from scrapy.utils.test import get_crawler

from scrapy_apify_rq.crawl.outgoing import Outgoing

URL = "http://site.example/page"
SECRET = "Basic dXNlcjpzZWNyZXQ="


def sent(request: Request) -> Outgoing:
    """Hand the request out, and do to it what Scrapy's middlewares and downloader do."""
    outgoing = Outgoing(request)
    request.headers.setdefault("User-Agent", "rotating/7")
    request.headers["Cookie"] = "session=1"
    request.headers["Proxy-Authorization"] = SECRET
    request.meta["proxy"] = "http://proxy.example:80"
    request.meta["_auth_proxy"] = "http://proxy.example:80"
    request.meta.setdefault("download_timeout", 180.0)
    outgoing.note_sent()
    request.meta.setdefault("download_slot", "site.example")
    request.meta["download_latency"] = 0.3
    return outgoing


def retried(request: Request) -> Request:
    crawler = get_crawler(Spider)
    retry = get_retry_request(request, spider=crawler._create_spider("a"), reason="503")
    assert retry is not None
    return retry


def test_a_retry_is_stored_as_the_entry_was() -> None:
    request = Request(URL, headers={"X-Own": "value"}, meta={"own": 1}, cookies={"a": "b"})
    outgoing = sent(request)
    stored = outgoing.stored_successor(retried(request))
    assert dict(stored.headers) == {b"X-Own": [b"value"]}
    assert stored.meta == {"own": 1, "retry_times": 1}
    assert stored.cookies == {"a": "b"}


def test_what_the_spider_set_itself_is_stored() -> None:
    own = {"User-Agent": "mine", "Cookie": "mine=1"}
    meta = {"proxy": "http://user:pw@proxy.example:80", "download_slot": "mine"}
    request = Request(URL, headers=own, meta=meta)
    stored = sent(request).stored_successor(retried(request))
    assert dict(stored.headers) == {b"User-Agent": [b"mine"], b"Cookie": [b"mine=1"]}
    assert stored.meta == {**meta, "retry_times": 1}


def test_what_a_callback_adds_before_it_downloads_its_request_again_is_stored() -> None:
    request = Request(URL)
    outgoing = sent(request)
    request.meta["attempt"] = 2
    outgoing.note_sent()
    stored = outgoing.stored_link(Request(f"{URL}/next", meta=request.meta))
    assert stored is not None
    assert stored.meta == {"attempt": 2}


def test_what_a_callback_changes_in_its_own_request_is_stored_when_it_yields_that_one() -> None:
    request = Request(URL)
    outgoing = sent(request)
    outgoing.note_answered()
    request.headers["Referer"] = URL
    request.meta["download_timeout"] = 5.0
    stored = outgoing.stored_link(request)
    assert stored is not None
    assert dict(stored.headers) == {b"Referer": [URL.encode()]}
    assert stored.meta == {"download_timeout": 5.0}


def test_cookies_that_a_middleware_has_chosen_are_not_stored() -> None:
    request = Request(URL)
    outgoing = Outgoing(request)
    request.cookies = {"session": "1"}
    outgoing.note_sent()
    for stored in (
        outgoing.stored_link(request.replace(url=f"{URL}/next")),
        outgoing.stored_successor(retried(request)),
    ):
        assert stored is not None
        assert stored.cookies == {}
    request.cookies["mine"] = "2"
    assert outgoing.stored_successor(request).cookies == {"session": "1", "mine": "2"}


def test_what_the_retry_changes_on_purpose_is_stored() -> None:
    request = Request(URL, meta={"proxy": "http://one.example"})
    outgoing = sent(request)
    retry = retried(request)
    retry.headers["User-Agent"] = "another"
    retry.headers["X-Try"] = "2"
    retry.meta["proxy"] = "http://two.example"
    del retry.headers["Cookie"]
    stored = outgoing.stored_successor(retry)
    assert dict(stored.headers) == {b"User-Agent": [b"another"], b"X-Try": [b"2"]}
    assert stored.meta == {"proxy": "http://two.example", "retry_times": 1}


def test_what_a_callback_changes_in_meta_is_stored() -> None:
    request = Request(URL, meta={"tries": 0, "seen": []})
    outgoing = sent(request)
    request.meta["tries"] += 1
    request.meta["seen"].append("a")
    request.meta["found"] = True
    stored = outgoing.stored_successor(retried(request))
    assert stored.meta == {"tries": 1, "seen": ["a"], "found": True, "retry_times": 1}


def test_a_link_that_inherits_nothing_is_stored_as_it_is() -> None:
    request = Request(URL)
    outgoing = sent(request)
    assert outgoing.stored_link(Request(URL + "/2", headers={"Referer": URL})) is None
    assert outgoing.stored_link(Request(URL + "/2", meta={"depth": 1})) is None


def test_a_link_with_the_meta_of_its_page_is_stored_without_what_it_inherits() -> None:
    request = Request(URL, meta={"own": 1})
    outgoing = sent(request)
    stored = outgoing.stored_link(Request(URL + "/2", meta={**request.meta, "depth": 1}))
    assert stored is not None
    assert stored.meta == {"own": 1, "depth": 1}


def test_a_link_made_of_its_page_is_stored_without_what_it_inherits() -> None:
    request = Request(URL)
    outgoing = sent(request)
    link = request.replace(url=URL + "/2")
    stored = outgoing.stored_link(link)
    assert stored is not None
    assert dict(stored.headers) == {}
    assert stored.meta == {}
    assert link.headers["Proxy-Authorization"] == SECRET.encode(), "the live request keeps it"


def test_a_header_that_must_not_be_sent_is_not_inherited_from_a_page_that_lacks_it() -> None:
    page = Request(URL)
    outgoing = sent(page)
    links = [Request(URL + "/2", headers={"Authorization": None})]
    links.append(page.replace(headers={**page.headers, "Authorization": None}))
    for link in links:
        stored = outgoing.stored_link(link)
        headers = link.headers if stored is None else stored.headers
        assert dict(headers) == {b"Authorization": []}


def test_a_list_of_values_that_a_middleware_appends_to() -> None:
    request = Request(URL, headers={"X-Many": ["1"]})
    outgoing = Outgoing(request)
    request.headers.appendlist("X-Many", "2")
    outgoing.note_sent()
    stored = outgoing.stored_successor(retried(request))
    assert stored.headers.getlist("X-Many") == [b"1"]
