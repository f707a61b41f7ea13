"""Unique keys and ids: the executed vectors of Crawlee for Python, and a few kept here.

The file of vectors lies beside the repository and is not part of it; without it only the vectors
kept here are tested.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.utils.request import RequestFingerprinter

from scrapy_apify_rq.entries.unique_keys import Keys, crawlee_key, normalize_url, request_id
from scrapy_apify_rq.errors import ConfigError

VECTORS_FILE = Path(__file__).parents[2] / "shared" / "api" / "uniquekey-vectors.json"

Vector = dict[str, Any]


def load_vectors() -> list[Vector]:
    if not VECTORS_FILE.is_file():
        return []
    vectors: list[Vector] = json.loads(VECTORS_FILE.read_text(encoding="utf-8"))["vectors"]
    return vectors


def parameters(vectors: list[Vector]) -> list[Any]:
    if not vectors:
        reason = f"{VECTORS_FILE} is not there"
        return [pytest.param({}, id="no-vectors", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(vector, id=vector["note"].replace(" ", "-")) for vector in vectors]


VECTORS = load_vectors()
EXTENDED = [vector for vector in VECTORS if vector["use_extended_unique_key"]]


def body_of(vector: Vector) -> bytes:
    payload = vector["payload"]
    if isinstance(payload, dict):
        return base64.b64decode(payload["base64"])
    return (payload or "").encode()


def normalized_in(vector: Vector) -> str:
    """The URL part of a vector's key."""
    key: str = vector["unique_key"]
    if not vector["use_extended_unique_key"]:
        return key
    return key.split("|", 4 if vector["session_id"] else 3)[-1]


def test_number_of_vectors() -> None:
    if not VECTORS:
        pytest.skip(f"{VECTORS_FILE} is not there")
    assert len(VECTORS) == json.loads(VECTORS_FILE.read_text(encoding="utf-8"))["count"]
    assert EXTENDED
    assert len(EXTENDED) < len(VECTORS)


@pytest.mark.parametrize("vector", parameters(VECTORS))
def test_vector_id(vector: Vector) -> None:
    assert request_id(vector["unique_key"]) == vector["request_id"]


@pytest.mark.parametrize("vector", parameters(VECTORS))
def test_vector_normalized(vector: Vector) -> None:
    if vector["keep_url_fragment"]:
        pytest.skip("keep_url_fragment: fragments are dropped, which is Crawlee's default")
    normalized = normalize_url(vector["url"])
    assert normalized == normalized_in(vector)
    if vector["normalisation_failed"]:
        assert normalized == vector["url"]


@pytest.mark.parametrize("vector", parameters(EXTENDED))
def test_vector_extended(vector: Vector) -> None:
    if vector["session_id"]:
        pytest.skip("session_id: a Scrapy request is bound to no session")
    if vector["keep_url_fragment"]:
        pytest.skip("keep_url_fragment: fragments are dropped, which is Crawlee's default")
    headers = (vector["headers"] or {}).items()
    key = crawlee_key(vector["url"], vector["method"], body_of(vector), headers)
    assert key == vector["unique_key"]


# From here on what is tested without the file; outcomes of crawlee 1.11.0 and yarl 1.25.1.


@pytest.mark.parametrize(
    ("unique_key", "expected"),
    [
        ("http://example.com", "8OamqXBCpPHxyH9"),
        ("http://example.com/a/b", "ZJAoqlRijenMQIn"),
        ("https://example.com", "EAaArVRs5qV39C9"),
        # Its base64 begins with 4F6Iv8fWndSfZQ/.
        ("http://[bad/A?b=1&a=2", "4F6Iv8fWndSfZQz"),
    ],
)
def test_id(unique_key: str, expected: str) -> None:
    assert request_id(unique_key) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("  HTTPS://EXAMPLE.com/A/?b=1&a=2&utm_x=3#f ", "https://example.com/a?a=2&b=1"),
        ("https://example.com/a?UTM_source=x", "https://example.com/a?utm_source=x"),
        ("https://example.com/a?a=2&a=1&b", "https://example.com/a?a=1&a=2&b="),
        ("https://example.com/a%2Fb//", "https://example.com/a/b/"),
        ("http://example.com/a%252F", "http://example.com/a%252f"),
        ("https://example.com/?q=a%20b", "https://example.com/?q=a+b"),
        ("https://example.com/", "https://example.com"),
        ("", ""),
    ],
)
def test_normalized(url: str, expected: str) -> None:
    assert normalize_url(url) == expected


@pytest.mark.parametrize("url", ["  HTTP://[bad/A?b=1&a=2 ", "https://example.com:99999/A"])
def test_unparsable_url_is_kept_as_it_is(url: str) -> None:
    assert normalize_url(url) == url
    assert crawlee_key(url, "GET", b"", []) == f"GET|e3b0c442|e3b0c442|{url}"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "e3b0c442"),
        ([("X-Other", "1"), ("User-Agent", "ua")], "e3b0c442"),
        ([("Content-Type", "application/json")], "60d83e70"),
        ([("X-Other", "1"), ("Content-Type", "text/plain"), ("Accept", "*/*")], "8e22e290"),
        ([("accept", " x ")], "7cea721c"),
        ([("accept", "b"), ("Accept", "a")], "b4ef51b4"),
        ([("Accept", "a"), ("accept", "b")], "e1d737e0"),
    ],
)
def test_headers_in_the_key(headers: list[tuple[str, str]], expected: str) -> None:
    key = crawlee_key("https://example.com/a", "get", b"x", iter(headers))
    assert key == f"GET|{expected}|2d711642|https://example.com/a"


def keys(**settings: Any) -> Keys:
    crawler = Crawler(Spider, settings)
    crawler.request_fingerprinter = RequestFingerprinter(crawler)
    return Keys(crawler, "fingerprint")


def test_a_request_that_is_not_filtered_has_a_key_of_its_own() -> None:
    crawl = keys()
    link, again = Request("http://x/"), Request("http://x/", dont_filter=True)
    assert crawl.plain(link) == crawl.plain(again)
    assert [crawl.is_repeatable(request) for request in (link, again)] == [False, True]
    one, other = (crawl.own(crawl.plain(again), is_start=False) for _ in "ab")
    assert len({one, other, crawl.plain(link)}) == 3


@pytest.mark.parametrize("filtered", [True, False])
def test_start_requests_have_the_same_keys_in_each_run(filtered: bool) -> None:
    settings = {} if filtered else {"DUPEFILTER_CLASS": "scrapy.dupefilters.BaseDupeFilter"}
    start = Request("http://x/", dont_filter=filtered)
    one, other = keys(**settings), keys(**settings)
    assert one.is_repeatable(start)
    made = [one.own(one.plain(start), is_start=True) for _ in range(3)]
    assert made == [other.own(other.plain(start), is_start=True) for _ in range(3)]
    assert made == [f"{one.plain(start)}:start{number}" for number in (1, 2, 3)]


def test_without_yarl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yarl", None)
    with pytest.raises(ConfigError, match="needs the package yarl"):
        crawlee_key("https://example.com/a", "GET", b"", [])
