"""Entries of other programs are read as they meant them, and no pickle is."""

from __future__ import annotations

import base64
import json
import math
import pickle
from typing import Any

import pytest
from scrapy import Request
from scrapy.http import Headers, JsonRequest

from scrapy_apify_rq.commands.show import request_as_json
from scrapy_apify_rq.entries.foreign import apify_start_key
from scrapy_apify_rq.entries.models import TURNS, Entry
from tests.support.codec_classes import SPIDER, Exploit, Ran
from tests.support.conversion import URL, apify, apify_text, converter, foreign, refusal
from tests.support.exact_values import describe


def test_an_entry_with_nothing_but_a_url() -> None:
    assert describe(converter().decode(foreign())) == describe(Request(URL))
    for url in ("", "no scheme", "/path"):
        refusal(foreign(url=url))


def test_an_entry_of_another_program() -> None:
    user_data = {"label": "LIST", "page": 2}
    fields = {"method": "POST", "payload": "text é", "headers": {"accept": "*/*", "X-É": "é"}}
    ours = {TURNS: {"0": "run:1"}}
    request = converter().decode(foreign(**fields, user_data=user_data | ours, no_retry=True))
    assert (request.method, request.body, request.callback) == ("POST", "text é".encode(), None)
    assert request.headers == Headers({"Accept": "*/*", "X-É": "é"})
    assert request.meta == {"userData": user_data, "dont_retry": True}


BUFFERS: list[tuple[Any, bytes]] = [({"type": "Buffer", "data": [0, 255, 10]}, b"\0\xff\n")]
BUFFERS += [({"type": "Buffer", "data": []}, b"")]
BUFFERS += [
    (other, json.dumps(other).encode())
    for other in (
        {"type": "Buffer", "data": [256]},
        {"type": "Buffer", "data": "AA"},
        {"type": "Buffer", "data": [1], "more": 1},
        {"type": "Order", "data": [1]},
        {"type": "Buffer", "data": 5},
    )
]


@pytest.mark.parametrize(("payload", "body"), BUFFERS)
def test_a_buffer_of_node(payload: Any, body: bytes) -> None:
    assert converter().decode(foreign(method="POST", payload=payload)).body == body


def test_a_number_beyond_pythons() -> None:
    """It stays JSON in a body, and comes back the same when the request is written again."""
    text = '{"id":"i","uniqueKey":"k","url":"https://site/","userData":{"n":1e400},"payload":{"n":-1e400}}'
    entry = Entry.from_json("i", text)
    request = converter().decode(entry)
    assert (request.meta, request.body) == ({"userData": {"n": math.inf}}, b'{"n": -1e999}')
    again = converter().encode(request, "k")
    assert describe(converter().decode(Entry.from_json("i", again.to_json()))) == describe(request)
    assert "Infinity" not in again.to_json()
    assert request_as_json(request)["meta"] == {"userData": {"n": "inf"}}


CRAWLEE: list[tuple[Any, dict[str, Any]]] = [
    ({"maxRetries": 7, "crawlDepth": 3, "state": 4}, {"max_retry_times": 7, "depth": 3}),
    ({"maxRetries": 0, "crawlDepth": 0}, {"max_retry_times": 0, "depth": 0}),
    ({"maxRetries": -1, "crawlDepth": True}, {}),
    ({"maxRetries": "7"}, {}),
    ("text", {}),
]


@pytest.mark.parametrize(("data", "meta"), CRAWLEE)
def test_what_crawlee_keeps_in_user_data(data: Any, meta: dict[str, Any]) -> None:
    user_data = {"__crawlee": data, "page": 1}
    request = converter().decode(foreign(user_data=user_data))
    assert request.meta == {**meta, "userData": user_data}


def test_labels_name_callbacks() -> None:
    known = [{"label": "DETAIL"}, {"scrapy": {"no": "version"}, "label": "DETAIL"}]
    unknown = [{"label": "detail"}, {"label": 5}, {"label": ["DETAIL"]}, {"scrapy": "text"}]
    for user_data in known + unknown:
        request = converter(callbacks={"DETAIL": "parse_page"}).decode(foreign(user_data=user_data))
        assert request.callback == (SPIDER.parse_page if user_data in known else None)
        assert request.meta == {"userData": user_data}


def test_an_entry_of_apify_scrapy() -> None:
    values: Any = {"headers": {"Accept": "*/*", "X-Two": ["1", "2"]}, "cookies": {"a": "b"}}
    values |= {"meta": {"depth": 2, "userData": {"page": 3}}, "cb_kwargs": {"k": [1]}}
    expected = Request(URL, SPIDER.parse_page, method="POST", body=b"a=1", priority=5, **values)
    assert describe(converter().decode(apify())) == describe(expected)

    path = f"{JsonRequest.__module__}.JsonRequest"
    request = converter().decode(apify(_class=path, dumps_kwargs={"indent": 1}))
    assert isinstance(request, JsonRequest)
    assert request.dumps_kwargs == {"indent": 1, "sort_keys": True}


@pytest.mark.parametrize(
    ("no_retry", "meta"), [(False, {}), (False, {"dont_retry": True}), (True, {})]
)
def test_no_retry_of_apify_scrapy(no_retry: bool, meta: dict[str, Any]) -> None:
    """It writes false whatever the meta says; true was set by somebody else."""
    entry = apify(meta=meta).model_copy(update={"no_retry": no_retry})
    request = converter().decode(entry)
    assert bool(request.meta.get("dont_retry")) is (no_retry or bool(meta))


def test_an_entry_of_apify_scrapy_that_is_wrong() -> None:
    wrong: list[dict[str, Any]] = [{"headers": 5}, {"headers": {"A": 5}}, {"body": 5}]
    for changes in (*wrong, {"meta": None}, {"_class": "dict"}, {"_class": 5}):
        refusal(apify(**changes))
    for text in ("{", "{}", "[]", "null", "", None, 5, {}):
        refusal(apify_text(text))


def test_a_pickle_is_refused_and_not_read() -> None:
    data = pickle.dumps(Exploit())
    with pytest.raises(Ran):
        pickle.loads(data)
    # apify.scrapy before version 4 broke the lines of its base64.
    for encode in (base64.encodebytes, base64.b64encode):
        assert "pickles" in refusal(apify_text(encode(data).decode()))


START = {"is_start_request": True}
START_KEYS: list[tuple[Any, str | None]] = [({"meta": START, "dont_filter": True}, "key|rest")]
START_KEYS += [({"meta": {**START, "retry_times": 1}, "dont_filter": True}, None)]
START_KEYS += [({"meta": {**START, "redirect_times": 1}, "dont_filter": True}, None)]
START_KEYS += [({"meta": START}, None), ({"dont_filter": True}, None), ({"meta": 5}, None)]


@pytest.mark.parametrize(("stored", "key"), [*START_KEYS, ([], None)])
def test_key_of_a_start_request_of_apify_scrapy(stored: Any, key: str | None) -> None:
    user_data = {"scrapy_request": json.dumps(stored)}
    assert apify_start_key(foreign(unique_key="random|key|rest", user_data=user_data)) == key
    for other in (apify_text("gASVpickle"), apify_text('{"a":' * 100_000), foreign()):
        assert apify_start_key(other) is None
