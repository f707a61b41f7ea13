"""Subclasses of Request come back, each instance judged by itself; no other class is called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapy import FormRequest, Request
from scrapy.http import JsonRequest, XmlRpcRequest
from w3lib.url import safe_url_string

from scrapy_apify_rq.entries.request_classes import _PLAIN_URL, known_base
from scrapy_apify_rq.errors import CodecError
from tests.support import codec_classes as cc
from tests.support.codec_classes import SPIDER, TokenRequest
from tests.support.conversion import URL, apify, converter, encoded, own, refusal, restarted
from tests.support.exact_values import HERE, seeded

GOOD = [FormRequest(URL, formdata={"a": ["1", "2"], "b": "é"}), JsonRequest(URL)]
GOOD += [
    FormRequest(URL, method="GET", formdata={"a": "1"}),
    JsonRequest(URL, data={"b": [1, "é"]}),
]
GOOD += [JsonRequest(URL, data={"b": 1}, dumps_kwargs={"indent": 2, "sort_keys": False})]
GOOD += [JsonRequest(URL, method="PUT", body=b"{}", headers={"Accept": "text/plain"})]
GOOD += [XmlRpcRequest(URL, methodname="login", params=("user", 5), encoding="latin-1")]
GOOD += [TokenRequest(URL, token={1, 2}, number=5), cc.Posting(URL), cc.Mixed(URL, body="x")]
GOOD += [TokenRequest(URL, method="POST", body=b"\xff", callback=SPIDER.parse_page)]
GOOD += [cc.PayloadRequest(URL, payload=[1]), cc.UserRequest(URL), cc.SlottedRequest(URL)]
assert GOOD[-2].host  # type: ignore[attr-defined]


@pytest.mark.parametrize("request_", GOOD, ids=range(14))
def test_a_subclass_of_request(request_: Request) -> None:
    restarted(request_)


def test_dumps_kwargs_still_work_after_a_restart() -> None:
    again = restarted(JsonRequest(URL, data={"a": 1}, dumps_kwargs={"indent": 1}))
    assert again.replace(data={"b": 2}).body == b'{\n "b": 2\n}'


LocalRequest = type("LocalRequest", (Request,), {"__qualname__": "f.<locals>.LocalRequest"})
LONG, BARE, UNSORTED = TokenRequest(URL, number=5), JsonRequest(URL, data=1), JsonRequest(URL)
LONG.number = 10
del BARE.headers["Accept"]
UNSORTED.dumps_kwargs.clear()
OTHER, SLOTTED, MARKED = cc.PayloadRequest(URL), cc.SlottedRequest(URL), cc.UserRequest(URL)
OTHER._set_body(b"other")
SLOTTED.user = "Ann"  # what no class lists
MARKED.mark = "x"  # type: ignore[attr-defined]
BAD = {
    "LocalRequest cannot be found again": LocalRequest(URL),
    "Positional cannot be restored": cc.Positional(1),
    "TokenRequest does not restore its number": LONG,
    "JsonRequest does not restore its headers": BARE,
    "JsonRequest does not restore its dumps_kwargs": UNSORTED,
    "PayloadRequest does not restore its body": OTHER,
    "UserRequest does not restore its user: list": cc.UserRequest(URL, user="Ann"),
    "UserRequest does not restore its mark": MARKED,
    "SlottedRequest does not restore its user": SLOTTED,
    "meta.'x'.: the UserRequest would not be the same": Request(URL, meta={"x": MARKED}),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("after_good_ones", [False, True])
def test_an_instance_that_does_not_come_back(message: str, after_good_ones: bool) -> None:
    a_converter = converter()
    # A value that is never equal to itself does not condemn its class either.
    good = [*GOOD, JsonRequest(URL, meta={"x": float("nan")})]
    for request in good if after_good_ones else ():
        encoded(request, a_converter)
    for _ in range(2):
        with pytest.raises(CodecError, match=message):
            encoded(BAD[message], a_converter)
    for request in good:
        encoded(request, a_converter)


def test_which_classes_are_known_to_restore() -> None:
    known = {cls: cls for cls in (Request, FormRequest, JsonRequest, XmlRpcRequest)}
    known |= {cc.ApiRequest: JsonRequest, TokenRequest: None, cc.Posting: None, cc.Mixed: None}
    assert {cls: known_base(cls) for cls in known} == known


@seeded(50)
@given(st.from_regex(_PLAIN_URL, fullmatch=True))
def test_a_plain_address_is_left_alone_by_scrapy(url: str) -> None:
    assert Request(url).url == url == safe_url_string(url)


def test_a_long_address_is_judged_fast() -> None:
    assert _PLAIN_URL.fullmatch(f"{URL}/{'a' * 1_000_000}") is not None
    assert _PLAIN_URL.fullmatch(f"{URL}/{'a' * 1_000_000}\\") is None


def test_attributes_of_the_wrong_kind() -> None:
    for attributes in (5, "token", ["token"], {"token": {"$bytes": 5}}, {"url": "https://a.org"}):
        refusal(own({"v": 1, "class": f"{HERE}:TokenRequest", "attributes": attributes}))


HARMFUL = ["os:system", "subprocess:Popen", "builtins:eval", "builtins:dict", "scrapy:Spider"]
HARMFUL += ["scrapy.http:Response", "scrapy.http:Request.__init__", f"{HERE}:Holder"]
HARMFUL += [f"{HERE}:MethodsSpider.Inner", f"{HERE}:SPIDER"]
UNLOADED = ["this", "antigravity", "idlelib.idle"]


@pytest.mark.parametrize("path", [*HARMFUL, *(f"{module}:Request" for module in UNLOADED)])
def test_a_class_that_is_not_a_request(path: str) -> None:
    refusal(own({"v": 1, "class": path}))
    refusal(own({"v": 1, "meta": {"x": {"$item": [path, []]}}}))
    refusal(apify(_class=path.replace(":", ".")))
    assert not set(UNLOADED) & sys.modules.keys()


def test_a_trusted_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import scrapy\nclass Mine(scrapy.Request):\n    pass\n"
    (tmp_path / "trusted_by_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    entry = own({"v": 1, "class": "trusted_by_test:Mine"})
    refusal(entry)
    request = converter(trusted=["trusted_by_test"]).decode(entry)
    assert type(request).__name__ == "Mine"
    del sys.modules["trusted_by_test"]
