"""A request comes back from its entry as it was; what strangers wrote does no harm."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import functools
import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import scrapy
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scrapy import Request
from scrapy.http import FormRequest, Headers, JsonRequest, XmlRpcRequest

from scrapy_apify_rq.entries.converter import (
    RequestConverter,
    reset,
    store_spider_errors,
    stored_priority,
)
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import CodecError, ConfigError

HERE = __name__
URL = "https://example.com/page"
KEY = "key"


class Spider(scrapy.Spider):
    name = "spider"
    ran: list[str] = []  # noqa: RUF012 (what a hostile entry has made run)

    def __init__(self) -> None:
        super().__init__()
        self.instance_alias = self.parse_page
        self.helper_method = Helper().method

    def parse(self, response: Any) -> None: ...

    def parse_page(self, response: Any) -> None: ...

    def failed(self, failure: Any) -> None: ...

    def __private(self, response: Any) -> None: ...

    def private_request(self) -> Request:
        return Request(URL, self.__private, errback=self.__private)

    alias = parse_page
    renamed = functools.wraps(parse_page)(lambda self, response: None)

    @property
    def tempting(self) -> Any:
        self.ran.append("property")
        return self.parse

    @classmethod
    def of_class(cls, response: Any) -> None:
        cls.ran.append("classmethod")

    @staticmethod
    def static(response: Any) -> None: ...

    class Inner:
        def method(self, response: Any) -> None: ...


class Helper:
    def method(self, response: Any) -> None: ...


class TokenRequest(Request):
    """What a project may have: attributes of its own, given by keyword."""

    attributes: tuple[str, ...] = (*Request.attributes, "token", "seen")

    def __init__(self, *args: Any, token: str = "", seen: Any = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token = token
        self.seen = seen


class Forgetful(Request):
    """Its constructor does not take what is to be restored."""

    attributes: tuple[str, ...] = (*Request.attributes, "token")
    token = "lost"

    def __init__(self, *args: Any, token: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Positional(Request):
    def __init__(self, number: int) -> None:
        super().__init__(f"{URL}/{number}")


class Signed(Request):
    """Its constructor changes what it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headers.appendlist("X-Signature", "again")


SPIDER = Spider()


def converter(**options: Any) -> RequestConverter:
    return RequestConverter(SPIDER, **options)


def exact(value: Any) -> Any:
    """A form of the value that is equal only if all types inside are, too."""
    if isinstance(value, Mapping):
        return type(value), [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [exact(element) for element in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, value))
    return type(value), repr(value)


def all_of(request: Request) -> Any:
    values = {name: exact(getattr(request, name)) for name in type(request).attributes}
    return type(request), values, request.headers.encoding


def stored(entry: Entry) -> Entry:
    """The entry as the next process reads it."""
    again = Entry.from_json(entry.id, entry.to_json())
    assert again.broken is None
    assert again == entry
    return again


def restarted(request: Request, **options: Any) -> Request:
    """The request after three restarts, each time the same."""
    before = all_of(request)
    entry = converter().encode(request, KEY)
    assert all_of(request) == before
    first = entry.to_json()
    again = request
    for _ in range(3):
        again = converter(**options).decode(stored(entry))
        assert all_of(again) == before
        entry = converter().encode(again, KEY, replaced=entry)
        assert entry.to_json() == first
    return again


def own(blob: Any, **values: Any) -> Entry:
    """An entry with this ``userData.scrapy``."""
    return Entry(
        **{
            "id": request_id(KEY),
            "unique_key": KEY,
            "url": URL,
            "user_data": {"scrapy": blob},
            **values,
        }
    )


def foreign(**values: Any) -> Entry:
    return Entry(**{"id": request_id(KEY), "unique_key": KEY, "url": URL, **values})


# There and back

NO_SURROGATES = st.characters(exclude_categories=("Cs",))
ODD_TEXT = st.text(NO_SURROGATES, max_size=12)
HOSTS = ["example.com", "EXAMPLE.com:8080", "müller.example", "[::1]:80", "u:p%40s@example.com"]
URLS = st.builds(
    lambda host, path, query, fragment: f"https://{host}/{path}{query}{fragment}",
    st.sampled_from(HOSTS),
    ODD_TEXT | st.sampled_from(["a%20b/%zz", "ä/é?", "a|b^c`{d}", "%E9", "../x//y", " x "]),
    st.just("") | ODD_TEXT.map(lambda text: f"?q={text}"),
    st.just("") | ODD_TEXT.map(lambda text: f"#{text}"),
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.datetimes()
    | st.decimals()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=6,
)
HEADERS = st.dictionaries(
    st.sampled_from(["Accept", "content-type", "X-One", "x-ONE-two", "Cookie", "X-É", ""]),
    st.lists(ODD_TEXT | st.binary(max_size=6) | st.sampled_from(["", "a, b", b"\x00"]), max_size=3)
    | st.none(),
    max_size=4,
)
COOKIES = st.dictionaries(ODD_TEXT, ODD_TEXT, max_size=3) | st.lists(
    st.fixed_dictionaries(
        {"name": ODD_TEXT, "value": ODD_TEXT},
        optional={"domain": ODD_TEXT, "path": ODD_TEXT, "secure": st.booleans()},
    ),
    max_size=2,
)
METHODS = st.sampled_from(["GET", "post", "HEAD", "PUT", "PATCH", "PROPFIND", "m-search"])
CALLBACKS = st.sampled_from(
    [None, SPIDER.parse, SPIDER.parse_page, SPIDER.alias, SPIDER.private_request().callback]
)
ARGUMENTS = st.fixed_dictionaries(
    {"url": URLS},
    optional={
        "method": METHODS,
        "body": ODD_TEXT | st.binary(max_size=20) | st.sampled_from([b"\x00", "\x00", "\ufeffx"]),
        "headers": HEADERS,
        "cookies": COOKIES,
        "meta": st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
        "cb_kwargs": st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), VALUES),
        "flags": st.lists(st.text(max_size=5), max_size=3),
        "encoding": st.sampled_from(["utf-8", "latin-1", "cp1252", "UTF8"]),
        "priority": st.integers(),
        "dont_filter": st.booleans(),
        "callback": CALLBACKS,
        "errback": CALLBACKS | st.just(SPIDER.failed),
    },
)


@settings(max_examples=250, deadline=None)
@given(ARGUMENTS)
def test_any_request_is_the_same_after_restarts(arguments: dict[str, Any]) -> None:
    try:
        request = Request(**arguments)
    except ValueError:  # no URL, or text that the encoding lacks
        reject()
    restarted(request)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_encoding_is_kept(encoding: str) -> None:
    request = Request(
        "https://example.com/?q=é", body="café", headers={"X": "é"}, encoding=encoding
    )
    assert request.url.endswith("?q=%E9")
    again = restarted(request)
    assert again.body == b"caf\xe9"
    assert again.headers["X"] == b"\xe9"
    assert again.replace(body="é").body == b"\xe9"


@pytest.mark.parametrize("dont_retry", [True, 1, "yes", False, 0, None])
def test_dont_retry_is_also_written_where_others_look(dont_retry: object) -> None:
    request = Request(URL, meta={"dont_retry": dont_retry})
    restarted(request)
    assert converter().encode(request, KEY).no_retry is bool(dont_retry)


def test_a_private_method() -> None:
    request = SPIDER.private_request()
    assert restarted(request).callback == request.callback
    assert converter().encode(request, KEY).user_data["label"] == "_Spider__private"


@pytest.mark.parametrize("name", ["alias", "renamed", "instance_alias", "helper_method"])
def test_a_method_under_another_name(name: str) -> None:
    restarted(Request(URL, getattr(SPIDER, name)))


@pytest.mark.parametrize(
    "request_",
    [
        FormRequest(URL, formdata={"a": ["1", "2"], "b": "é"}),
        FormRequest(URL, method="GET", formdata={"a": "1"}),
        JsonRequest(URL, data={"b": [1, None], "a": "é"}),
        JsonRequest(URL, data={"b": 1}, dumps_kwargs={"indent": 2, "sort_keys": False}),
        JsonRequest(URL, method="PUT", body=b"{}", headers={"Accept": "text/plain"}),
        JsonRequest(URL),
        XmlRpcRequest(URL, methodname="login", params=("user", 5), encoding="latin-1"),
        TokenRequest(URL, token="secret", seen={1, 2}),
        TokenRequest(URL, method="POST", body=b"\xff", callback=SPIDER.parse_page),
    ],
    ids=lambda request: f"{type(request).__name__}-{request.method}",
)
def test_a_subclass_of_request(request_: Request) -> None:
    restarted(request_)


def test_dumps_kwargs_still_work_after_a_restart() -> None:
    request = JsonRequest(URL, data={"a": 1}, dumps_kwargs={"indent": 1})
    again = restarted(request)
    assert again.replace(data={"b": 2}).body == b'{\n "b": 2\n}'


def test_a_value_that_is_never_equal_does_not_condemn_its_class() -> None:
    a_converter = converter()
    a_converter.encode(JsonRequest(URL, meta={"x": float("nan")}), KEY)
    a_converter.encode(JsonRequest(URL), KEY)


def test_the_entry_shares_nothing_with_the_request() -> None:
    meta: dict[str, Any] = {"list": [1, {"x": [2]}], "tuple": ([3],)}
    request = Request(URL, meta=meta, cookies={"a": "b"}, cb_kwargs={"k": [4]}, flags=["f"])
    entry = converter().encode(request, KEY)
    before = copy.deepcopy(entry)
    request.meta["list"][1]["x"].append("more")
    request.meta["tuple"][0].append("more")
    request.cb_kwargs["k"].append("more")
    request.cookies["more"] = "c"  # type: ignore[call-overload]
    request.flags.append("more")
    assert entry == before
    first, second = (converter().decode(entry) for _ in range(2))
    first.meta["list"].append("more")
    assert second.meta["list"] == [1, {"x": [2]}]


# The form

GET = Request(
    "https://example.com/catalogue?page=2",
    SPIDER.parse_page,
    headers={"Referer": "https://example.com/"},
    meta={"depth": 1, "download_timeout": 180.0},
    cb_kwargs={"category": ("books", 7)},
)
GET_JSON = """{"id":"LHDhK3oGRvkiefQ","uniqueKey":"key",
"url":"https://example.com/catalogue?page=2","method":"GET",
"headers":{"Referer":"https://example.com/"},
"userData":{"label":"parse_page","scrapy":{"v":1,"callback":"parse_page",
"meta":{"depth":1,"download_timeout":180.0},"cb_kwargs":{"category":{"$tuple":["books",7]}}}},
"retryCount":0,"noRetry":false,"errorMessages":[]}"""
POST = JsonRequest(
    "https://example.com/api",
    data={"query": "é"},
    callback=SPIDER.parse,
    errback=SPIDER.failed,
    headers={"X-Both": ["1", "2"]},
    cookies={"session": "abc"},
    meta={"at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "dont_retry": True},
    priority=-10,
    dont_filter=True,
    flags=["slow"],
)
POST_JSON = r"""{"id":"LHDhK3oGRvkiefQ","uniqueKey":"key","url":"https://example.com/api","method":"POST",
"payload":"{\"query\": \"\\u00e9\"}",
"headers":{"X-Both":"1, 2","Content-Type":"application/json",
"Accept":"application/json, text/javascript, */*; q=0.01"},
"userData":{"label":"parse","scrapy":{"v":1,"callback":"parse","errback":"failed","priority":-10,
"dont_filter":true,"meta":{"at":{"$datetime":["2026-01-02T00:00:00",0,[0]]},"dont_retry":true},
"cookies":{"session":"abc"},"flags":["slow"],
"class":"scrapy.http.request.json_request:JsonRequest",
"attributes":{"dumps_kwargs":{"sort_keys":true}},
"headers":[[{"$bytes":"WC1Cb3Ro"},[{"$bytes":"MQ=="},{"$bytes":"Mg=="}]],
[{"$bytes":"Q29udGVudC1UeXBl"},[{"$bytes":"YXBwbGljYXRpb24vanNvbg=="}]],
[{"$bytes":"QWNjZXB0"},
[{"$bytes":"YXBwbGljYXRpb24vanNvbiwgdGV4dC9qYXZhc2NyaXB0LCAqLyo7IHE9MC4wMQ=="}]]]}},
"retryCount":0,"noRetry":true,"errorMessages":[]}"""


@pytest.mark.parametrize(("request_", "text"), [(GET, GET_JSON), (POST, POST_JSON)])
def test_the_stored_form_stays_as_it_is(request_: Request, text: str) -> None:
    # Queues outlive versions: a change here needs a new number, and a reader of the old form.
    entry = converter().encode(request_, KEY)
    assert entry.to_json() == text.replace("\n", "")
    assert all_of(converter().decode(Entry.from_json(entry.id, text))) == all_of(request_)


def test_a_plain_request_is_stored_in_few_bytes() -> None:
    assert len(converter().encode(Request("https://example.com/"), KEY).to_json()) < 200


def test_a_body_is_stored_once() -> None:
    text = converter().encode(Request(URL, method="POST", body="0123456789" * 1000), KEY)
    assert text.to_json().count("0123456789") == 1000
    assert "body" not in text.user_data["scrapy"]
    binary = converter().encode(Request(URL, method="POST", body=b"\xff\x00\x80" * 1000), KEY)
    assert binary.payload is None
    assert len(binary.to_json()) < 4000 + 200


def test_the_priority_is_read_without_decoding() -> None:
    assert stored_priority(converter().encode(Request(URL, priority=-3), KEY)) == -3
    for blob in ({}, {"priority": "high"}, {"priority": None}, [], "text", None):
        assert stored_priority(own(blob)) == 0
    assert stored_priority(foreign()) == 0


def test_user_data_of_others_is_kept_by_a_retry() -> None:
    entry = foreign(user_data={"label": "DETAIL", "shop": {"id": 5}})
    a_converter = converter(callbacks={"DETAIL": "parse_page"})
    request = a_converter.decode(entry)
    again = stored(a_converter.encode(request, KEY, replaced=entry))
    assert again.user_data["label"] == "DETAIL"
    assert again.user_data["shop"] == {"id": 5}
    assert all_of(a_converter.decode(again)) == all_of(request)


# What cannot be written


def local_request() -> Request:
    class Local(Request):
        pass

    return Local(URL)


def of_another_spider() -> Request:
    return Request(URL, Spider().parse)


@pytest.mark.parametrize(
    "request_",
    [
        Request(URL, lambda response: None),
        Request(URL, errback=lambda failure: None),
        Request(URL, functools.partial(SPIDER.parse)),
        Request(URL, print),
        Request(URL, scrapy.http.request.NO_CALLBACK),
        Request(URL, Helper().method),
        Request(URL, Spider().parse),
        Request(URL, errback=Spider().failed),
        Request(URL, SPIDER.of_class),
        Request(URL, SPIDER.static),
        local_request(),
        Request(URL, meta={"socket": object()}),
        Request(URL, cb_kwargs={"x": lambda: None}),
    ],
    ids=range(13),
)
def test_what_would_not_come_back_is_refused(request_: Request) -> None:
    a_converter = converter()
    # Its own method first: what was found for one object must not answer for another.
    a_converter.encode(Request(URL, SPIDER.parse, errback=SPIDER.failed), KEY)
    before = all_of(request_)
    for _ in range(2):
        with pytest.raises(CodecError):
            a_converter.encode(request_, KEY)
    assert all_of(request_) == before


def test_meta_that_is_nested_without_end_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    endless: dict[str, Any] = {}
    endless["x"] = endless
    for value in (deep, endless):
        with pytest.raises(CodecError):
            converter().encode(Request(URL, meta={"x": value}), KEY)


def test_a_class_that_forgets_is_refused() -> None:
    a_converter = converter()
    request = Forgetful(URL)
    request.token = "kept"
    for _ in range(2):
        with pytest.raises(CodecError, match="Forgetful does not restore its token"):
            a_converter.encode(request, KEY)


def test_a_class_that_cannot_be_made_again_is_refused() -> None:
    a_converter = converter()
    for _ in range(2):
        with pytest.raises(CodecError, match="Positional cannot be restored"):
            a_converter.encode(Positional(1), KEY)


def test_a_class_that_changes_its_arguments_is_refused() -> None:
    with pytest.raises(CodecError, match="Signed does not restore its headers"):
        converter().encode(Signed(URL), KEY)


# Hostile entries


def refusal(entry: Entry, **options: Any) -> str:
    SPIDER.ran.clear()
    with pytest.raises(CodecError) as error:
        converter(**options).decode(entry)
    assert SPIDER.ran == []
    assert 0 < len(str(error.value)) <= 1000
    return str(error.value)


@pytest.mark.parametrize("version", [2, 0, "1", None, [], {}, 10**20])
def test_an_unknown_version(version: object) -> None:
    assert "version" in refusal(own({"v": version}))


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


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_field_of_the_wrong_kind(name: str, value: object) -> None:
    refusal(own({"v": 1, name: value}, url=f"{URL}?q=é"))


@pytest.mark.parametrize(
    "attributes", [5, "token", ["token"], {"token": {"$bytes": 5}}, {"url": "https://example.org"}]
)
def test_attributes_of_the_wrong_kind(attributes: object) -> None:
    path = f"{HERE}:TokenRequest"
    refusal(own({"v": 1, "class": path, "attributes": attributes}))


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "builtins:dict",
        "scrapy.http:Response",
        "scrapy:Spider",
        "scrapy.http:Request.__init__",
        f"{HERE}:Helper",
        f"{HERE}:Spider.Inner",
        f"{HERE}:SPIDER",
    ],
)
def test_a_class_that_is_not_a_request(path: str) -> None:
    refusal(own({"v": 1, "class": path}))
    refusal(own({"v": 1, "meta": {"x": {"$item": [path, []]}}}))


@pytest.mark.parametrize("module", ["this", "antigravity", "idlelib.idle"])
def test_no_module_is_imported(module: str) -> None:
    assert module not in sys.modules
    refusal(own({"v": 1, "class": f"{module}:Request"}))
    refusal(own({"v": 1, "meta": {"x": {"$item": [f"{module}:Item", []]}}}))
    refusal(apify(_class=f"{module}.Request"))
    assert module not in sys.modules


def test_a_trusted_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import scrapy\nclass Mine(scrapy.Request):\n    pass\n"
    (tmp_path / "trusted_by_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    entry = own({"v": 1, "class": "trusted_by_test:Mine"})
    refusal(entry)
    request = converter(trusted=["trusted_by_test"]).decode(entry)
    assert type(request).__name__ == "Mine"
    del sys.modules["trusted_by_test"]


@pytest.mark.parametrize(
    "name",
    [
        "tempting",
        "of_class",
        "static",
        "__init__",
        "__class__",
        "__private",
        "Inner",
        "Inner.method",
        "parse.__func__",
        "instance_alias.__call__",
        "from_crawler",
        "logger",
        "ran",
        "name",
    ],
)
def test_a_callback_that_is_not_a_method(name: str) -> None:
    assert "has no method" in refusal(own({"v": 1, "callback": name}))
    refusal(own({"v": 1, "errback": name}))
    refusal(apify(callback=name))
    with pytest.raises(ConfigError, match=r"APIFY_RQ_CALLBACKS\['X'\].*has no method"):
        converter(callbacks={"X": name})
    assert SPIDER.ran == []


def nested(depth: int, tag: str | None = None) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if tag is None else {tag: [value]}
    return value


@pytest.mark.parametrize("tag", [None, "x", "$tuple"])
def test_nesting_that_would_overflow_the_stack(tag: str | None) -> None:
    deep = nested(50_000, tag)
    for name in ("meta", "cb_kwargs", "cookies", "flags"):
        refusal(own({"v": 1, name: {"x": deep}}))
    for name in ("callback", "priority", "headers", "method", "encoding", "class", "v"):
        refusal(own({"v": 1, name: deep}))
    refusal(foreign(user_data={"scrapy_request": "{" + '"a":{' * 50_000}))
    text = own({"v": 1}).to_json().replace('"v":1', f'"v":1,"meta":{"[" * 50_000}{"]" * 50_000}')
    entry = Entry.from_json(request_id(KEY), text)
    assert "the entry" in refusal(entry)


BIG = "x" * 5_000_001  # no valid base64


def test_values_of_5_mb() -> None:
    for name in ("callback", "class", "priority", "body", "headers", "v", "encoding", "meta"):
        refusal(own({"v": 1, name: BIG}, url=f"{URL}?é"))
    refusal(foreign(url=BIG))
    refusal(foreign(user_data={"scrapy_request": BIG}))
    refusal(own({"v": 1, "meta": {"$" + BIG: 1}}))
    request = converter().decode(own({"v": 1, "meta": {"big": BIG}}, payload=BIG))
    assert request.meta["big"] == BIG
    assert len(request.body) == len(BIG)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$tuple", "$set", "$dict", "$bytes", "$int", "$item", "$time", "$x"]),
            inner,
            max_size=1,
        )
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["parse", "failed", "tempting", "__init__", "start", "of_class"])
CLASSES = st.sampled_from(
    ["scrapy.http:JsonRequest", "scrapy.http.request.json_request:JsonRequest", "os:system"]
)
BLOBS = st.fixed_dictionaries(
    {},
    optional={
        "v": st.just(1) | JSON_VALUES,
        "callback": NAMES | JSON_VALUES,
        "errback": NAMES | JSON_VALUES,
        "class": CLASSES | JSON_VALUES,
        "attributes": st.dictionaries(st.sampled_from(["dumps_kwargs", "url"]), JSON_VALUES)
        | JSON_VALUES,
        "headers": st.lists(st.tuples(JSON_VALUES, JSON_VALUES), max_size=2) | JSON_VALUES,
        **dict.fromkeys(["priority", "dont_filter", "encoding", "method", "body"], JSON_VALUES),
        **dict.fromkeys(["meta", "cb_kwargs", "cookies", "flags", "others"], JSON_VALUES),
    },
)


@settings(max_examples=400, deadline=None)
@given(BLOBS | JSON_VALUES, st.booleans())
def test_any_blob_is_decoded_or_refused(blob: Any, mostly_right: bool) -> None:
    if mostly_right and isinstance(blob, dict):
        blob["v"] = 1
    SPIDER.ran.clear()
    try:
        request = converter().decode(own(blob))
    except CodecError:
        pass
    else:
        assert isinstance(request, Request)
        assert request.url == URL
    assert SPIDER.ran == []


# Entries of others


def test_an_entry_with_nothing_but_a_url() -> None:
    assert all_of(converter().decode(foreign())) == all_of(Request(URL))


def test_an_entry_of_another_program() -> None:
    request = converter().decode(
        foreign(
            method="POST",
            payload="text é",
            headers={"accept": "*/*", "X-É": "é"},
            user_data={"label": "LIST", "page": 2},
            no_retry=True,
        )
    )
    assert request.method == "POST"
    assert request.body == "text é".encode()
    assert request.headers == Headers({"Accept": "*/*", "X-É": "é"})
    assert request.callback is None
    assert request.meta == {"userData": {"label": "LIST", "page": 2}, "dont_retry": True}


def test_a_payload_that_is_an_object() -> None:
    request = converter().decode(foreign(method="POST", payload={"a": [1, "é"]}))
    assert json.loads(request.body) == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("user_data", "callback"),
    [
        ({"label": "DETAIL"}, SPIDER.parse_page),
        ({"label": "detail"}, None),
        ({"label": 5}, None),
        ({"label": ["DETAIL"]}, None),
        ({"scrapy": {"no": "version"}, "label": "DETAIL"}, SPIDER.parse_page),
        ({"scrapy": "text"}, None),
    ],
)
def test_labels_name_callbacks(user_data: dict[str, Any], callback: object) -> None:
    request = converter(callbacks={"DETAIL": "parse_page"}).decode(foreign(user_data=user_data))
    assert request.callback == callback
    assert request.meta == {"userData": user_data}


@pytest.mark.parametrize("url", ["", "no scheme", "/path"])
def test_a_text_that_is_not_a_url(url: str) -> None:
    refusal(foreign(url=url))


def apify(**changes: Any) -> Entry:
    """What ``apify.scrapy`` 4.1.0 writes: shared/api/facts.md, section 13."""
    scrapy_request = {
        "url": URL,
        "callback": "parse_page",
        "errback": None,
        "headers": {"Accept": [base64.b64encode(b"*/*").decode()], "X-Two": ["MQ==", "Mg=="]},
        "method": "POST",
        "body": base64.b64encode(b"a=1").decode(),
        "cookies": {"a": "b"},
        "meta": {"depth": 2},
        "encoding": "utf-8",
        "priority": 5,
        "dont_filter": False,
        "flags": [],
        "cb_kwargs": {"k": [1]},
        **changes,
    }
    return foreign(
        method="POST",
        payload="a=1",
        headers={"accept": "*/*", "x-two": "1,2"},
        user_data={"page": 3, "scrapy_request": json.dumps(scrapy_request)},
    )


def test_an_entry_of_apify_scrapy() -> None:
    expected = Request(
        URL,
        SPIDER.parse_page,
        method="POST",
        body=b"a=1",
        headers={"Accept": "*/*", "X-Two": ["1", "2"]},
        cookies={"a": "b"},
        meta={"depth": 2, "userData": {"page": 3}},
        cb_kwargs={"k": [1]},
        priority=5,
    )
    assert all_of(converter().decode(apify())) == all_of(expected)


def test_a_subclass_in_an_entry_of_apify_scrapy() -> None:
    path = f"{JsonRequest.__module__}.JsonRequest"
    request = converter().decode(apify(_class=path, dumps_kwargs={"indent": 1}))
    assert isinstance(request, JsonRequest)
    assert request.dumps_kwargs == {"indent": 1, "sort_keys": True}
    for wrong in ("os.system", "subprocess.Popen", "dict", 5):
        refusal(apify(_class=wrong))


def test_an_entry_of_apify_scrapy_that_is_wrong() -> None:
    for changes in ({"headers": 5}, {"headers": {"A": 5}}, {"body": 5}, {"meta": None}):
        refusal(apify(**changes))
    for text in ("{", "{}", "[]", "null", "", None, 5, {}):
        refusal(foreign(user_data={"scrapy_request": text}))


def run_by_pickle() -> None:
    SPIDER.ran.append("pickle")


class Exploit:
    def __reduce__(self) -> Any:
        return run_by_pickle, ()


def test_a_pickle_is_refused_and_not_read() -> None:
    text = base64.encodebytes(pickle.dumps(Exploit())).decode()
    assert "pickles" in refusal(foreign(user_data={"scrapy_request": text}))
    pickle.loads(base64.b64decode(text))
    assert SPIDER.ran == ["pickle"]


# Tried again from the start


@pytest.mark.parametrize("more", [{}, {5: "a key that JSON lacks"}])
def test_reset_forgets_all_that_retries_have_left(more: dict[Any, Any]) -> None:
    converter = RequestConverter(Spider())
    request = Request(URL, meta={"retry_times": 2, "page": 3, **more}, priority=8)
    entry = converter.encode(request, KEY)
    store_spider_errors(entry, 1)
    entry.retry_count = 2
    entry.error_messages = ["500", "500", "500"]
    entry.handled_at = dt.datetime.now(dt.UTC)
    entry.loaded_url = URL
    reset(entry, -1)
    again = converter.decode(entry)
    assert again.meta == {"retry_times": 0, "page": 3, **more}
    assert again.priority == 10  # as it was before two retries
    fresh = Entry(id=entry.id, unique_key=KEY, url=URL, headers={}, no_retry=False)
    fresh.user_data = entry.user_data
    assert entry == fresh
    assert "spider_errors" not in entry.user_data["scrapy"]


def test_reset_reads_what_apify_scrapy_wrote() -> None:
    stored = {"url": URL, "meta": {"retry_times": 2, "page": 3}}
    entry = foreign(user_data={"scrapy_request": json.dumps(stored)})
    reset(entry, -1)
    stored["meta"] = {"retry_times": 0, "page": 3}
    assert json.loads(entry.user_data["scrapy_request"]) == stored


@pytest.mark.parametrize(
    "user_data",
    [
        {},
        {"scrapy": 1},
        {"scrapy": {"v": 1, "meta": 2}},
        {"scrapy": {"v": 1, "meta": {"$dict": [1, [], ["retry_times", "?"]]}}},
        {"scrapy_request": "gASVpickle"},
        {"scrapy_request": "[1]"},
        {"scrapy_request": 5},
    ],
)
def test_reset_takes_what_strangers_write(user_data: dict[str, Any]) -> None:
    entry = foreign(user_data=copy.deepcopy(user_data), error_messages=["why"])
    entry.handled_at = dt.datetime.now(dt.UTC)
    reset(entry, -1)
    assert not entry.handled_at
    assert entry.error_messages == []
