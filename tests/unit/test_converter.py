"""An entry is written only if it can be stored and the same request read from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scrapy
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scrapy import FormRequest, Request
from scrapy.http import Headers, JsonRequest, XmlRpcRequest
from w3lib.url import safe_url_string

from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.request_classes import _PLAIN_URL, known_base
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.errors import CodecError

URL = "https://example.com/page"
KEY = "key"
VERBATIM = {"verbatim_url": True}


class Spider(scrapy.Spider):
    name = "spider"

    def parse(self, response: Any) -> None: ...

    def failed(self, failure: Any) -> None: ...


SPIDER = Spider()


class Page(Request):
    """A subclass that constructs nothing, as projects have them to tell requests apart."""

    __slots__ = ()


class Api(JsonRequest):
    def describe(self) -> str:
        return f"{self.method} {self.url}"


class Numbered(Request):
    """Its constructor cuts long numbers off: some instances come back, others do not."""

    attributes: tuple[str, ...] = (*Request.attributes, "number")

    def __init__(self, *args: Any, number: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = min(number, 9)


class Posting(Request):
    @property
    def method(self) -> str:  # type: ignore[override]
        return "POST"

    @method.setter
    def method(self, value: str) -> None: ...


class Mixin:
    def _set_body(self, body: Any) -> None:
        self._body = b"mixed in"


class Mixed(Mixin, Request):  # type: ignore[misc]
    pass


CLASSES = [Request, FormRequest, JsonRequest, XmlRpcRequest, Page, Api]


def converter() -> RequestConverter:
    return RequestConverter(SPIDER)


def all_of(request: Request) -> dict[str, Any]:
    """The values of a request; an empty one and a missing one are the same."""
    return {
        "class": type(request),
        **{name: getattr(request, name) or None for name in type(request).attributes},
        "dont_filter": bool(request.dont_filter),
    }


def stored(entry: Entry) -> Entry:
    """The entry as the next process reads it."""
    again = Entry.from_json(entry.id, entry.to_json())
    assert again.broken is None
    assert again == entry
    return again


def written_or_refused(request: Request, **options: Any) -> Request | None:
    try:
        entry = converter().encode(request, KEY, **options)
    except CodecError:
        return None
    return converter().decode(stored(entry))


# One bad request costs that request

ANY_TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "Éa", "x\0", "GET", "get", "utf-16"])
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(ANY_TEXT, inner, max_size=3)
        | st.frozensets(st.integers(), max_size=2)
    ),
    max_leaves=5,
)
URLS = st.builds(lambda text: f"https://example.com/{text}", ANY_TEXT) | st.sampled_from(
    [URL, "https://EXAMPLE.com", "http://example.com?q", "data:,", "https://a.b/?q='é'#\ud800"]
)
HEADERS = st.dictionaries(
    ANY_TEXT.filter(lambda text: text.isprintable()) | st.binary(max_size=5),
    st.lists(st.binary(max_size=5), max_size=2),
    max_size=3,
)
# What code may do to a request after its construction.
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "method": ANY_VALUE,
    "priority": ANY_VALUE | st.floats() | st.just(10**5000) | st.just(2**60),
    "dont_filter": ANY_VALUE,
    "flags": ANY_VALUE,
    "cookies": ANY_VALUE,
    "headers": HEADERS,
    "callback": st.sampled_from([SPIDER.parse, SPIDER.failed, print, "parse", 5]),
    "errback": st.sampled_from([SPIDER.failed, print, None]),
}


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(CLASSES),
    st.fixed_dictionaries(
        {"url": URLS},
        optional={
            "method": ANY_TEXT,
            "encoding": st.sampled_from(["utf-8", "latin-1", "utf-16", "\ud800", "none"]),
            "meta": st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=2) | st.just(VERBATIM),
            "cb_kwargs": st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=2),
            "flags": st.lists(ANY_TEXT, max_size=2),
            "body": st.binary(max_size=5),
            "headers": HEADERS,
        },
    ),
    st.fixed_dictionaries({}, optional=CHANGES),
    st.booleans(),
)
def test_whatever_is_written_comes_back(
    cls: type[Request], arguments: dict[str, Any], changes: dict[str, Any], removes_flag: bool
) -> None:
    try:
        request = cls(**arguments)
        for name, value in changes.items():
            setattr(request, name, value)
    except (ValueError, TypeError, LookupError):
        reject()
    if removes_flag:
        request.meta.pop("verbatim_url", None)
    again = written_or_refused(request)
    assert again is None or all_of(again) == all_of(request)


def changed(**values: Any) -> Request:
    request = Request(URL)
    for name, value in values.items():
        setattr(request, name, value)
    return request


def with_flag_removed() -> Request:
    request = Request(f"{URL}/ä b", meta=VERBATIM)
    del request.meta["verbatim_url"]
    return request


@pytest.mark.parametrize(
    "request_",
    [
        Request(f"{URL}/\ud800", meta=VERBATIM),
        Request(URL, method="\ud800"),
        Request(URL, encoding="\ud800", meta=VERBATIM),
        Request(URL, headers={"Éa": "Scrapy itself cannot find this header again"}),
        changed(method="get"),
        changed(method=None),
        changed(priority=1.5),
        changed(priority=10**5000),
        changed(flags=("a",)),
        changed(flags="a"),
        changed(cookies="a=b"),
        changed(cookies={1, 2}),
        with_flag_removed(),
    ],
    ids=range(13),
)
def test_a_request_that_would_not_come_back_is_refused(request_: Request) -> None:
    with pytest.raises(CodecError, match=r"^Request (cannot be|does not restore)"):
        converter().encode(request_, KEY)


def test_surrogates_are_kept_where_they_can_be() -> None:
    text = "\ud800"
    request = Request(
        URL, meta={text: text}, cb_kwargs={text: text}, cookies={text: text}, flags=[text]
    )
    again = written_or_refused(request)
    assert again is not None
    assert all_of(again) == all_of(request)


def test_a_method_with_an_unwritable_name_is_refused() -> None:
    spider = Spider()
    vars(spider)["\ud800"] = Other().method
    with pytest.raises(CodecError, match="is not a method of spider"):
        RequestConverter(spider).encode(Request(URL, vars(spider)["\ud800"]), KEY)


class Other:
    def method(self, response: Any) -> None: ...


def test_a_spider_without_a_name_is_named_in_messages() -> None:
    class Nameless(Spider):
        name: str

        def __init__(self) -> None: ...

    del Spider.name
    try:
        with pytest.raises(CodecError, match="spider 'Nameless' has no method 'missing'"):
            RequestConverter(Nameless()).decode(
                Entry(id="i", unique_key="k", url=URL, user_data={"scrapy": MISSING})
            )
    finally:
        Spider.name = "spider"


MISSING = {"v": 1, "callback": "missing"}


def test_foreign_user_data_that_cannot_be_written_is_refused() -> None:
    replaced = Entry(id="i", unique_key="k", url=URL, user_data={"shop": "\ud800"})
    with pytest.raises(CodecError, match="cannot be written as JSON"):
        converter().encode(Request(URL), KEY, replaced=replaced)


def test_a_unique_key_that_cannot_be_written_is_refused() -> None:
    # Of a request whose method cannot be written either, with APIFY_RQ_UNIQUE_KEY = "crawlee".
    assert len(request_id("\ud800")) == 15
    with pytest.raises(CodecError, match="cannot be written as JSON"):
        converter().encode(Request(URL), "\ud800")


# Classes: each instance is judged by itself


def test_a_bad_first_instance_does_not_ban_its_class() -> None:
    a_converter = converter()
    bad = Numbered(URL, number=5)
    bad.number = 10
    with pytest.raises(CodecError, match="Numbered does not restore its number"):
        a_converter.encode(bad, KEY)
    again = a_converter.decode(a_converter.encode(Numbered(URL, number=5), KEY))
    assert isinstance(again, Numbered)
    assert again.number == 5


def test_a_good_first_instance_does_not_vouch_for_its_class() -> None:
    a_converter = converter()
    a_converter.encode(Numbered(URL, number=5), KEY)
    bad = Numbered(URL, number=5)
    bad.number = 10
    with pytest.raises(CodecError, match="Numbered does not restore its number"):
        a_converter.encode(bad, KEY)


def test_a_json_request_whose_headers_were_removed_is_refused() -> None:
    a_converter = converter()
    a_converter.encode(JsonRequest(URL, data={"a": 1}), KEY)
    request = JsonRequest(URL, data={"a": 1})
    del request.headers["Accept"]
    with pytest.raises(CodecError, match="JsonRequest does not restore its headers"):
        a_converter.encode(request, KEY)


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (Request, Request),
        (FormRequest, FormRequest),
        (JsonRequest, JsonRequest),
        (XmlRpcRequest, XmlRpcRequest),
        (Page, Request),
        (Api, JsonRequest),
        (Numbered, None),
        (Posting, None),
        (Mixed, None),
    ],
)
def test_which_classes_are_known_to_restore(cls: type[Request], base: type[Request] | None) -> None:
    assert known_base(cls) is base


@pytest.mark.parametrize("make", [lambda: Posting(URL), lambda: Mixed(URL, body="x")])
def test_a_class_that_replaces_a_part_of_the_constructor(make: Callable[[], Request]) -> None:
    request = make()
    again = written_or_refused(request)
    assert again is not None
    assert all_of(again) == all_of(request)


@settings(deadline=None, max_examples=500)
@given(st.from_regex(_PLAIN_URL, fullmatch=True))
def test_a_plain_address_is_left_alone_by_scrapy(url: str) -> None:
    assert safe_url_string(url) == url
    assert Request(url).url == url


def test_a_long_address_is_judged_fast() -> None:
    assert _PLAIN_URL.fullmatch(f"{URL}/{'a' * 1_000_000}") is not None
    assert _PLAIN_URL.fullmatch(f"{URL}/{'a' * 1_000_000}\\") is None


# Values in place of the request's own


def test_values_written_in_place_of_the_own() -> None:
    request = Request(
        URL,
        headers={"Proxy-Authorization": "secret", "A": "1"},
        meta={"_auth_proxy": "secret", "page": 2, "dont_retry": True},
        cookies={"session": "secret"},
    )
    before = all_of(request)
    entry = converter().encode(
        request, KEY, headers=Headers({"A": "1"}), meta={"page": 2}, cookies={}
    )
    assert all_of(request) == before
    assert "secret" not in entry.to_json()
    assert entry.no_retry is False
    again = converter().decode(stored(entry))
    assert all_of(again) == all_of(Request(URL, headers={"A": "1"}, meta={"page": 2}))


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(CLASSES),
    HEADERS | st.none(),
    st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=2) | st.none() | st.just({}),
    st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=2) | st.none() | st.just([]),
)
def test_values_in_place_of_the_own_come_back(
    cls: type[Request], headers: dict[Any, Any] | None, meta: Any, cookies: Any
) -> None:
    request = cls(f"{URL}/ä", meta=VERBATIM, cookies={"a": "b"}, headers={"X": "y"})
    given_headers = None if headers is None else Headers(headers)
    again = written_or_refused(request, headers=given_headers, meta=meta, cookies=cookies)
    if again is not None:
        expected = all_of(request)
        for name, value in (("headers", given_headers), ("meta", meta), ("cookies", cookies)):
            if value is not None:
                expected[name] = value or None
        assert all_of(again) == expected
