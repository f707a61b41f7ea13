"""Which download slot an entry shows without being decoded: the one that Scrapy would give it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scrapy import Request

from scrapy_apify_rq.entries.hosts import host_of
from scrapy_apify_rq.entries.models import Entry
from tests.support.conversion import encoded


def entry(url: str = "https://host/", **user_data: Any) -> Entry:
    return Entry(id="id", unique_key=url, url=url, user_data=user_data)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.com:8080/path?u=http://other/", "example.com"),
        ("https://user:secret@example.com?query", "example.com"),
        ("file:///etc/hosts", ""),
        ("data:,x://y/", ""),
        ("http://[::1", ""),
        ("", ""),
    ],
)
def test_host_of_the_url(url: str, host: str) -> None:
    assert host_of(entry(url)) == host


@pytest.mark.parametrize("more", [{}, {1: "a key that JSON lacks"}])
def test_slot_of_our_own_entries(more: dict[Any, Any]) -> None:
    request = Request("https://host/", meta={"download_slot": "slot", **more})
    assert host_of(encoded(request)) == "slot"


@pytest.mark.parametrize(
    ("meta", "slot"),
    [({"download_slot": "slot"}, "slot"), ({"download_slot": 5}, "host"), ([], "host")]
    + [({"$dict": wrong}, "host") for wrong in (5, [5], [["download_slot"]], [[], ["a", 1]])],
)
def test_slot_of_entries_of_others(meta: Any, slot: str) -> None:
    assert host_of(entry(scrapy={"meta": meta})) == slot
    assert host_of(entry(scrapy_request=json.dumps({"meta": meta, "x": "download_slot"}))) == slot


@pytest.mark.parametrize("stored", ["download_slot: a pickle", 5, None, {}])
def test_odd_entries_of_others(stored: Any) -> None:
    assert host_of(entry(scrapy_request=stored)) == "host"
    assert host_of(entry(scrapy=stored)) == "host"
