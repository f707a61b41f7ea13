"""Unique keys and ids: the executed vectors of Crawlee for Python, and a few kept here.

The file of vectors lies beside the repository and is not part of it.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.utils.request import RequestFingerprinter

from scrapy_apify_rq.entries.crawlee_keys import (
    extended_key,
    normalize_url,
    normalize_web_url,
    url_key,
    url_key_of_javascript,
)
from scrapy_apify_rq.entries.unique_keys import Keys, request_id
from scrapy_apify_rq.setting_readers import KeyKind

VECTORS_FILE = Path(__file__).parents[3] / "shared" / "api" / "uniquekey-vectors.json"


def parts(vector: dict[str, Any]) -> tuple[str, str, bytes, list[tuple[str, str]]]:
    payload = vector["payload"] or ""
    body = base64.b64decode(payload["base64"]) if isinstance(payload, dict) else payload.encode()
    return vector["url"], vector["method"], body, list((vector["headers"] or {}).items())


def url_part(vector: dict[str, Any]) -> str:
    key: str = vector["unique_key"]
    if not vector["use_extended_unique_key"]:
        return key
    return key.split("|", 4 if vector["session_id"] else 3)[-1]


@pytest.mark.skipif(not VECTORS_FILE.is_file(), reason=f"{VECTORS_FILE} is not there")
def test_vectors() -> None:
    content = json.loads(VECTORS_FILE.read_text(encoding="utf-8"))
    vectors = content["vectors"]
    assert len(vectors) == content["count"]
    ids = {one["unique_key"]: one["request_id"] for one in vectors}
    assert {key: request_id(key) for key in ids} == ids
    # Fragments are dropped, which is Crawlee's default; a Scrapy request is bound to no session.
    plain = [one for one in vectors if not one["keep_url_fragment"]]
    assert [normalize_url(one["url"]) for one in plain] == [url_part(one) for one in plain]
    failed = [one["url"] for one in plain if one["normalisation_failed"]]
    assert [normalize_url(url) for url in failed] == failed
    extended = [one for one in plain if one["use_extended_unique_key"] and not one["session_id"]]
    assert 0 < len(extended) < len(plain)
    assert [extended_key(*parts(one)) for one in extended] == [
        one["unique_key"] for one in extended
    ]
    ours = [one for one in plain if one["method"] == "GET" and not one["payload"]]
    default = [one for one in ours if not one["use_extended_unique_key"]]
    assert [url_key(*parts(one)) for one in default] == [one["unique_key"] for one in default]
    expected = {one["url"]: one["crawlee_js"]["unique_key_v3"] for one in default}
    assert {url: normalize_web_url(url) for url in expected} == expected
    posts = [one for one in extended if one not in ours]
    expected = [one["crawlee_js"]["unique_key_v3"] for one in posts]
    assert [url_key_of_javascript(*parts(one)) for one in posts] == expected


# From here on what is tested without the file; outcomes of crawlee 1.11.0 and yarl 1.25.1.

IDS = {
    "http://example.com": "8OamqXBCpPHxyH9",
    "http://example.com/a/b": "ZJAoqlRijenMQIn",
    "https://example.com": "EAaArVRs5qV39C9",
    "http://[bad/A?b=1&a=2": "4F6Iv8fWndSfZQz",  # its base64 begins with 4F6Iv8fWndSfZQ/
}
URLS = {
    "  HTTPS://EXAMPLE.com/A/?b=1&a=2&utm_x=3#f ": "https://example.com/a?a=2&b=1",
    "https://example.com/a?UTM_source=x": "https://example.com/a?utm_source=x",
    "https://example.com/a?a=2&a=1&b": "https://example.com/a?a=1&a=2&b=",
    "https://example.com/a%2Fb//": "https://example.com/a/b/",
    "http://example.com/a%252F": "http://example.com/a%252f",
    "https://example.com/?q=a%20b": "https://example.com/?q=a+b",
    "https://example.com/": "https://example.com",
    "": "",
}
WEB_URLS = {
    " HTTPS://User:Pass@EXAMPLE.com:443/A/?b=1&a=2&utm_x=3&B#f ": "https://example.com/A?B=&a=2&b=1",
    "http://example.com:8080/a?UTM_source=x&a=2&a=1": "http://example.com:8080/a?UTM_source=x&a=2&a=1",
    "https://example.com/a%2fb/./c/../%7Eu//": "https://example.com/a%2fb/%7Eu/",
    "https://example.com?q=a%20b~'*": "https://example.com?q=a+b%7E%27*",
    "https://Č.com\\a\tb": "https://xn--bea.com/ab",
    "https://example.com/": "https://example.com",
    "http://[bad/A?b=1": "http://[bad/A?b=1",
    "ftp://example.com/": "ftp://example.com/",
}
UNPARSABLE = ["  HTTP://[bad/A?b=1&a=2 ", "https://example.com:99999/A"]
HEADERS: list[tuple[list[tuple[str, str]], str]] = [
    ([], "e3b0c442"),
    ([("X-Other", "1"), ("User-Agent", "ua")], "e3b0c442"),
    ([("Content-Type", "application/json")], "60d83e70"),
    ([("X-Other", "1"), ("Content-Type", "text/plain"), ("Accept", "*/*")], "8e22e290"),
    ([("accept", " x ")], "7cea721c"),
    ([("accept", "b"), ("Accept", "a")], "b4ef51b4"),
    ([("Accept", "a"), ("accept", "b")], "e1d737e0"),
]


def test_ids_and_keys() -> None:
    assert {key: request_id(key) for key in IDS} == IDS
    urls = {**URLS, **{url: url for url in UNPARSABLE}}
    assert {url: normalize_url(url) for url in urls} == urls
    assert {url: normalize_web_url(url) for url in WEB_URLS} == WEB_URLS
    # The body of a plain GET would be lost in Crawlee's default key, so it counts here.
    for method, body in (("GET", b"x"), ("post", b"x"), ("HEAD", b"")):
        request = ("https://example.com/a", method, body, [])
        assert url_key(*request) == extended_key(*request)
        hash_ = "LXEWQrcm" if body else ""
        assert url_key_of_javascript(*request) == f"{method.upper()}({hash_}):{request[0]}"
    keys = [extended_key(url, "GET", b"", []) for url in UNPARSABLE]
    assert keys == [f"GET|e3b0c442|e3b0c442|{url}" for url in UNPARSABLE]
    url = "https://example.com/a"
    keys = [extended_key(url, "get", b"x", iter(headers)) for headers, _ in HEADERS]
    assert keys == [f"GET|{hash_}|2d711642|{url}" for _, hash_ in HEADERS]


def test_headers_enter_a_key_as_the_entry_shows_them() -> None:
    request = Request("http://x/a", headers={"Accept": ["a", "b"], "Authorization": "é"})
    headers = [("accept", "a, b"), ("authorization", "é")]
    assert keys("extended").plain(request) == extended_key(request.url, "GET", b"", headers)


def keys(kind: KeyKind = "fingerprint", **settings: Any) -> Keys:
    crawler = Crawler(Spider, settings)
    crawler.request_fingerprinter = RequestFingerprinter(crawler)
    return Keys(crawler, kind)


def test_a_request_that_is_not_filtered_has_a_key_of_its_own() -> None:
    crawl = keys()
    link, again = Request("http://x/"), Request("http://x/", dont_filter=True)
    assert crawl.plain(link) == crawl.plain(again)
    assert [crawl.is_repeatable(request) for request in (link, again)] == [False, True]
    one, other = (crawl.of_none(crawl.plain(again)) for _ in "ab")
    assert len({one, other, crawl.plain(link)}) == 3


@pytest.mark.parametrize("filtered", [True, False])
def test_start_requests_have_the_same_keys_in_each_run(filtered: bool) -> None:
    settings = {} if filtered else {"DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter"}
    start = Request("http://x/", dont_filter=filtered)
    one, other = keys(**settings), keys(**settings)
    assert one.is_repeatable(start)
    plain = one.plain(start)
    made = [one.of_start(plain, content) for content in ("", "a", "", "a", "")]
    assert made == [
        f"{plain}:{end}" for end in ("start1", "start1:a", "start2", "start2:a", "start3")
    ]
    assert sorted(made) == sorted(
        other.of_start(plain, content) for content in ("a", "a", *[""] * 3)
    )
    runs = [(one, "a"), (other, "a"), (one, "a"), (one, "b"), (one, "")]
    each_run = [keys.of_start(plain, content, each_run=True) for keys, content in runs]
    assert len({*made, *each_run}) == 10


class Parent:
    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.made = Counter[str]()


def test_a_child_has_the_same_key_if_its_parent_is_repeated() -> None:
    crawl = keys()
    first, repeated, retried = (Parent(identity) for identity in ("id:0", "id:0", "id:1"))
    made = {crawl.of_child("plain", content, first) for content in ("a", "b", "a")}
    assert made == {crawl.of_child("plain", content, repeated) for content in ("b", "a", "a")}
    assert len({*made, *(crawl.of_child("plain", "a", retried) for _ in "12")}) == 5
