"""A request comes back from its entry as it was, or is not written; strangers do no harm."""

from __future__ import annotations

import copy
import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from scrapy import FormRequest, Request
from scrapy.http import Headers, JsonRequest, XmlRpcRequest

from scrapy_apify_rq.entries.converter import reset, store_spider_errors, stored_priority
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.errors import CodecError
from tests.support.codec_classes import SPIDER, ApiRequest
from tests.support.conversion import (
    URL,
    apify,
    apify_text,
    converter,
    encoded,
    foreign,
    own,
    refusal,
)
from tests.support.exact_values import JSON_DATA, ODD, VALUES, describe, nested, seeded

VERBATIM = {"verbatim_url": True}
NOW = dt.datetime.now(dt.UTC)

# There and back

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
ANY_TEXT = st.text(max_size=8) | st.sampled_from([ODD, "Éa", "x\0", "GET", "get", "utf-16"])
HOSTS = ["example.com", "EXAMPLE.com:8080", "müller.example", "[::1]:80", "u:p%40s@example.com"]
PATHS = ["a%20b/%zz", "ä/é?", "a|b^c`{d}", "%E9", "../x//y", " x ", "?q='é'#", "?q", "page"]
NAMES = ["Accept", "content-type", "X-One", "x-ONE-two", "Cookie", "X-É", ""]
METHODS = ["GET", "post", "HEAD", "PUT", "PATCH", "PROPFIND", "m-search"]
CALLBACKS = [None, SPIDER.parse, SPIDER.alias, SPIDER.private_request(URL).callback, SPIDER.failed]
CLASSES = [Request, FormRequest, JsonRequest, XmlRpcRequest, ApiRequest]
TEXTS = st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2)
META = st.dictionaries(ANY_TEXT, VALUES, max_size=1)


def arguments(text: st.SearchStrategy[str], **more: st.SearchStrategy[Any]) -> Any:
    """What requests are made of; ``text`` is for the texts of what is sent."""
    path = st.sampled_from(PATHS) | text | text.map("?q={}".format) | text.map("#{}".format)
    url = st.builds("https://{}/{}{}".format, st.sampled_from(HOSTS), path, path)
    cookie = st.fixed_dictionaries({"name": text, "value": text}, optional={"path": text})
    header = st.lists(text | st.binary(max_size=6) | st.sampled_from(["a, b", b"\0"]), max_size=3)
    options = {"method": st.sampled_from(METHODS), "priority": st.integers()}
    options |= {"body": TEXT | st.binary(max_size=20) | st.sampled_from(["\0", "\ufeffx"])}
    options |= {"headers": st.dictionaries(st.sampled_from(NAMES), header | st.none(), max_size=4)}
    options |= {"cookies": TEXTS | st.lists(cookie, max_size=2), "dont_filter": st.booleans()}
    options |= {"meta": META, "cb_kwargs": META, "flags": st.lists(ANY_TEXT, max_size=3)}
    options |= {"encoding": st.sampled_from(["utf-8", "latin-1", "cp1252", "UTF8"])}
    options |= dict.fromkeys(["callback", "errback"], st.sampled_from(CALLBACKS))
    return st.fixed_dictionaries({"url": url}, optional={**options, **more})


@seeded(60)
@given(arguments(TEXT))
def test_any_request_is_the_same_after_restarts(arguments: dict[str, Any]) -> None:
    try:
        request = Request(**arguments)
    except ValueError:  # no URL, or text that the encoding lacks
        reject()
    before = describe(request)
    entry = encoded(request)
    assert describe(request) == before
    for _ in range(3):
        again = converter().decode(entry)
        assert describe(again) == before
        assert encoded(again, replaced=entry) == entry


def loosely(request: Request) -> dict[str, Any]:
    """All of it; an empty value and a missing one are the same."""
    names = type(request).attributes
    values = {name: describe(getattr(request, name) or None) for name in names}
    return {**values, "dont_filter": bool(request.dont_filter), "class": type(request)}


# What code may do to a request after its construction.
CHANGES = dict.fromkeys(["method", "priority", "dont_filter", "flags", "cookies"], VALUES)
CHANGES["priority"] |= st.sampled_from([10**5000, 2**60])
CHANGES["callback"] = CHANGES["errback"] = st.sampled_from([SPIDER.parse, print, "parse", 5])
ANY_NAME = ANY_TEXT.filter(str.isprintable)
HEADERS = st.dictionaries(ANY_NAME, st.lists(st.binary(max_size=5)), max_size=3)
IN_PLACE = {"headers": HEADERS, "meta": META, "cookies": TEXTS | st.just([])}


@seeded(80)
@given(
    st.sampled_from(CLASSES),
    arguments(ANY_TEXT, encoding=st.sampled_from(["latin-1", "utf-16", ODD, "none"])),
    st.fixed_dictionaries({}, optional=CHANGES),
    st.fixed_dictionaries({}, optional=IN_PLACE) | st.just({}),
    st.sampled_from(["not verbatim", "verbatim", "verbatim at first"]),
)
def test_whatever_is_written_comes_back(
    cls: Any, arguments: dict[str, Any], changes: dict[str, Any], in_place: Any, kind: str
) -> None:
    if kind != "not verbatim":
        arguments["meta"] = dict(VERBATIM)
    try:
        request = cls(**arguments)
        for name, value in changes.items():
            setattr(request, name, value)
        if "headers" in in_place:
            in_place = {**in_place, "headers": Headers(in_place["headers"], request.encoding)}
    except (ValueError, TypeError, LookupError):
        reject()
    if kind == "verbatim at first":
        request.meta.clear()
    try:
        entry = encoded(request, **in_place)
    except CodecError:
        return
    expected = {name: describe(value or None) for name, value in in_place.items()}
    assert loosely(converter().decode(entry)) == {**loosely(request), **expected}


def test_values_in_place_of_the_own_leave_no_trace() -> None:
    meta = {"_auth_proxy": "secret", "page": 2, "dont_retry": True}
    headers = {"Proxy-Authorization": "secret", "A": "1"}
    request = Request(URL, headers=headers, meta=meta, cookies={"session": "secret"})
    before = describe(request)
    given: Any = {"headers": Headers({"A": "1"}), "meta": {"page": 2}, "cookies": {}}
    entry = encoded(request, **given)
    assert describe(request) == before
    assert "secret" not in entry.to_json()
    assert entry.no_retry is False
    assert describe(converter().decode(entry)) == describe(Request(URL, **given))


@pytest.mark.parametrize("dont_retry", [True, 1, "yes", False, 0, None])
def test_dont_retry_is_also_written_where_others_look(dont_retry: object) -> None:
    request = Request(URL, meta={"dont_retry": dont_retry})
    entry = encoded(request)
    assert entry.no_retry is bool(dont_retry)
    assert describe(converter().decode(entry)) == describe(request)


def test_the_entry_shares_nothing_with_the_request() -> None:
    meta: dict[str, Any] = {"list": [1, {"x": [2]}], "tuple": ([3],)}
    request = Request(URL, meta=meta, cookies={"a": "b"}, cb_kwargs={"k": [4]}, flags=["f"])
    entry = converter().encode(request, "key")
    before = copy.deepcopy(entry)
    for inner in (meta["list"][1]["x"], meta["tuple"][0], request.cb_kwargs["k"], request.flags):
        inner.append("more")
    request.cookies["more"] = "c"  # type: ignore[call-overload]
    assert entry == before
    first, second = (converter().decode(entry) for _ in range(2))
    first.meta["list"].append("more")
    assert second.meta["list"] == [1, {"x": [2]}]


def test_content_is_what_no_fingerprint_says() -> None:
    requests = [Request(f"{URL}?a#1"), Request(f"{URL}?a#2"), Request(URL, cookies={"a": "b"})]
    requests += [Request(URL, SPIDER.parse), Request(URL, headers={"A": None}), JsonRequest(URL)]
    assert len({converter().content(request) for request in requests}) == 6
    same = [Request(URL, priority=1), Request(f"{URL}#", meta={"depth": 1}, dont_filter=True)]
    assert {converter().content(request) for request in same} == {""}


# The form

GET: Any = {"meta": {"depth": 1, "download_timeout": 180.0}, "callback": SPIDER.parse_page}
GET |= {"headers": {"Referer": "https://example.com/"}, "cb_kwargs": {"category": ("books", 7)}}
GET_JSON = """{"id":"LHDhK3oGRvkiefQ","uniqueKey":"key","url":"https://example.com/catalogue?page=2",
"method":"GET","headers":{"Referer":"https://example.com/"},
"userData":{"label":"parse_page","scrapy":{"v":1,"callback":"parse_page",
"meta":{"depth":1,"download_timeout":{"$float":"180.0"}},"cb_kwargs":{"category":{"$tuple":["books",7]}}}},
"retryCount":0,"noRetry":false,"errorMessages":[]}"""
POST: Any = {"data": {"query": "é"}, "callback": SPIDER.parse, "errback": SPIDER.failed}
POST |= {"headers": {"X-Both": ["1", "2"]}, "cookies": {"session": "abc"}, "flags": ["slow"]}
POST |= {"meta": {"at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "dont_retry": True}}
POST |= {"priority": -10, "dont_filter": True}
POST_JSON = r"""{"id":"LHDhK3oGRvkiefQ","uniqueKey":"key","url":"https://example.com/api",
"method":"POST","payload":"{\"query\": \"\\u00e9\"}","headers":{"X-Both":"1, 2",
"Content-Type":"application/json","Accept":"application/json, text/javascript, */*; q=0.01"},
"userData":{"label":"parse","scrapy":{"v":1,"callback":"parse","errback":"failed","priority":-10,
"dont_filter":true,"meta":{"at":{"$datetime":["2026-01-02T00:00:00",0,[0]]},"dont_retry":true},
"cookies":{"session":"abc"},"flags":["slow"],"class":"scrapy.http.request.json_request:JsonRequest",
"attributes":{"dumps_kwargs":{"sort_keys":true}},
"headers":[[{"$bytes":"WC1Cb3Ro"},[{"$bytes":"MQ=="},{"$bytes":"Mg=="}]],
[{"$bytes":"Q29udGVudC1UeXBl"},[{"$bytes":"YXBwbGljYXRpb24vanNvbg=="}]],[{"$bytes":"QWNjZXB0"},
[{"$bytes":"YXBwbGljYXRpb24vanNvbiwgdGV4dC9qYXZhc2NyaXB0LCAqLyo7IHE9MC4wMQ=="}]]]}},
"retryCount":0,"noRetry":true,"errorMessages":[]}"""


def test_the_stored_form_stays_as_it_is() -> None:
    # Queues outlive versions: a change here needs a new number, and a reader of the old form.
    get = Request("https://example.com/catalogue?page=2", **GET)
    post = JsonRequest("https://example.com/api", **POST)
    for request, text in ((get, GET_JSON), (post, POST_JSON)):
        entry = encoded(request)
        assert entry.to_json() == text.replace("\n", "")
        assert describe(converter().decode(Entry.from_json(entry.id, text))) == describe(request)


def test_the_priority_is_read_without_decoding() -> None:
    assert stored_priority(encoded(Request(URL, priority=-3))) == -3
    blobs = ({}, {"priority": "high"}, {"priority": None}, [], "text", None)
    assert [stored_priority(entry) for entry in (*map(own, blobs), foreign())] == [0] * 7


def test_user_data_of_others_is_kept_by_a_retry() -> None:
    entry = foreign(user_data={"label": "DETAIL", "shop": {"id": 5}})
    a_converter = converter(callbacks={"DETAIL": "parse_page"})
    request = a_converter.decode(entry)
    again = encoded(request, a_converter, replaced=entry)
    assert again.user_data.items() >= entry.user_data.items()
    assert describe(a_converter.decode(again)) == describe(request)


# What cannot be written


def changed(**values: Any) -> Request:
    request = Request(URL)
    for name, value in values.items():
        setattr(request, name, value)
    return request


# Since 2.17 Scrapy lets such URLs and encodings in, if meta has "verbatim_url".
REFUSED = [changed(_url=f"{URL}/{ODD}"), changed(_url=f"{URL}/ä b"), changed(_encoding=ODD)]
REFUSED += [Request(URL, method=ODD), changed(method="get"), changed(method=None)]
REFUSED += [changed(priority=1.5), changed(priority=10**5000), changed(flags=("a",))]
REFUSED += [changed(flags="a"), changed(cookies="a=b"), changed(cookies={1, 2})]
NAMED = Request(URL, headers={"Éa": "Since 2.18, Scrapy itself cannot find this header again"})
REFUSED += [NAMED] if next(iter(NAMED.headers)) not in NAMED.headers else []


@pytest.mark.parametrize("request_", REFUSED, ids=range(len(REFUSED)))
def test_a_request_that_would_not_come_back_is_refused(request_: Request) -> None:
    with pytest.raises(CodecError, match=r"^Request (cannot be|does not restore)"):
        encoded(request_)


def test_what_cannot_be_written_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["x"] = endless
    for value in (object(), lambda: None, endless, nested(100_000)):
        for name in ("meta", "cb_kwargs"):
            with pytest.raises(CodecError, match=rf"^{name}\['x'\]"):
                encoded(Request(URL, **{name: {"x": value}}))


# Hostile entries

WRONG: dict[str, list[Any]] = {
    "callback": [5, None, [], "", "no_such", "parse ", {"$tuple": []}],
    "errback": [5, None, "no_such"],
    "priority": ["1", 1.5, None, []],
    "dont_filter": ["yes", 1, None],
    "encoding": [5, None, "no such encoding"],
    "method": [5, None, ["GET"]],
    "meta": [5, "text", None, [["a", 1]], {"$tuple": []}, {"$unknown": 1}, {"$item": 5}],
    "cb_kwargs": [5, "text", None, [1]],
    "cookies": [5, "text", None],
    "flags": [5, "text", None, {"a": 1}],
    "body": [5, None, "not base64!", "é", ["YQ=="]],
    "headers": [5, None, "text", {"A": "b"}, [5], [["A"]], [["A", 5]], [[5, ["b"]]]],
    "class": [5, None, [], "", ":", "Request", "scrapy:", ":Request", "scrapy.http:Nothing"],
}


def test_a_field_of_the_wrong_kind() -> None:
    for name, value in ((name, value) for name, values in WRONG.items() for value in values):
        refusal(own({"v": 1, name: value}, url=f"{URL}?q=é"))
    for version in (2, 0, "1", None, [], {}, 10**20):
        assert "version" in refusal(own({"v": version}))


BIG = "x" * 2_000_001  # no valid base64


@pytest.mark.parametrize("junk", [None, "x", "$tuple", BIG], ids=["lists", "x", "tuples", "2 MB"])
def test_deep_and_large_values(junk: str | None) -> None:
    if junk is not BIG:
        junk = nested(50_000, lambda inner: [inner] if junk is None else {junk: [inner]})
        refusal(own({"v": 1, "method": junk}))
    for name in ("callback", "class", "priority", "body", "headers", "v", "encoding"):
        refusal(own({"v": 1, name: junk}, url=f"{URL}?é"))
    for name in ("meta", "cb_kwargs", "cookies", "flags"):
        refusal(own({"v": 1, name: junk if junk is BIG else {"x": junk}}))
    refusal(apify_text(junk))


def test_deep_and_large_entries() -> None:
    text = own({"v": 1}).to_json().replace('"v":1', f'"v":1,"meta":{"[" * 50_000}{"]" * 50_000}')
    assert "the entry" in refusal(Entry.from_json("id", text))
    refusal(apify_text('{"a":' * 50_000))
    refusal(foreign(url=BIG))
    long = f"http://{'é' * 2_000_000}/"
    for entry in (foreign(url=long), own({"v": 1}, url=long), apify(url=long)):
        assert "host of 2000000" in refusal(entry)
    refusal(own({"v": 1, "meta": {f"${BIG}": 1}}))
    request = converter().decode(own({"v": 1, "meta": {"big": BIG}}, payload=BIG))
    assert request.meta["big"] == BIG
    assert len(request.body) == len(BIG)


BLOB = json.loads(POST_JSON)["userData"]["scrapy"]
NAMES_OF_VALUES = [*BLOB, "encoding", "method", "body", "cb_kwargs", "others"]


@seeded(100)
@given(st.dictionaries(st.sampled_from(NAMES_OF_VALUES), JSON_DATA, max_size=3) | JSON_DATA)
def test_any_blob_is_decoded_or_refused(blob: Any) -> None:
    try:
        request = converter().decode(own({**BLOB, **blob} if isinstance(blob, dict) else blob))
    except CodecError:
        return
    assert isinstance(request, Request)
    assert request.url == URL


# Tried again from the start


@pytest.mark.parametrize("more", [{}, {5: "a key that JSON lacks"}])
def test_reset_forgets_all_that_retries_have_left(more: dict[Any, Any]) -> None:
    meta = {"retry_times": 2, "page": 3, **more}
    entry = encoded(Request(URL, meta=meta, priority=8))
    store_spider_errors(entry, 1)
    assert entry.user_data["scrapy"]["spider_errors"] == 1
    left = {"retry_count": 2, "error_messages": ["5"] * 3, "handled_at": NOW, "loaded_url": URL}
    entry = entry.model_copy(update=left)
    reset(entry, -1)
    again = converter().decode(entry)
    assert again.meta == {"retry_times": 0, "page": 3, **more}
    assert again.priority == 10  # as it was before two retries
    assert entry == foreign(headers={}, no_retry=False, user_data=entry.user_data)
    assert "spider_errors" not in entry.user_data["scrapy"]


def test_reset_reads_what_apify_scrapy_wrote() -> None:
    meta = {"retry_times": 2, "page": 3}
    entry = apify_text(json.dumps({"url": URL, "meta": meta}))
    reset(entry, -1)
    expected = {"url": URL, "meta": {**meta, "retry_times": 0}}
    assert json.loads(entry.user_data["scrapy_request"]) == expected


def test_reset_takes_what_strangers_write() -> None:
    pairs = [1, [], ["retry_times", "?"]]
    blobs = (1, {"v": 1, "meta": 2}, {"v": 1, "meta": {"$dict": pairs}})
    texts = ("gASVpickle", "[1]", 5, '{"a":' * 100_000)
    for entry in (foreign(), *map(own, blobs), *map(apify_text, texts)):
        entry.handled_at, entry.error_messages = NOW, ["why"]
        reset(entry, -1)
        assert (entry.handled_at, entry.error_messages) == (None, [])
