"""What holds for all calls: paths, parameters, bodies, and who may call."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from scrapy_apify_rq.limits import MAX_BODY
from tests.support.queues import TOKEN, ServedQueue, serving
from tests.support.raw_calls import BEARER, Answer, Caller, called, one, request


def test_unknown_paths_and_verbs(api: Caller, remote: Caller) -> None:
    assert Caller(api.http, "/v2/acts")("GET").error == (404, "page-not-found")
    answer = remote("PATCH", "/head")
    assert answer.error == (405, "method-not-allowed")
    assert answer.message.endswith("HTTP methods: OPTIONS,GET")


def test_parameter_can_name_the_verb_but_not_in_a_link(served: ServedQueue, remote: Caller) -> None:
    remote.add("a")
    with called(served, headers={}) as linked:
        path = remote.path.removeprefix(linked.path) + one("a")
        answer = linked("GET", path, method="DELETE", token=TOKEN)
    assert answer.error == (403, "insufficient-permissions")
    assert remote.counts() == (1, 0, 1)
    assert remote("GET", one("a"), method="DELETE").status == 204
    assert remote.counts() == (0, 0, 0)


def test_wrong_parameters(remote: Caller) -> None:
    for path, query, error in (
        ("/head", {"limit": "many"}, "invalid-parameter"),
        ("/head", {"limit": -1}, "invalid-parameter"),
        ("/head", {"limit": "nan"}, "invalid-parameter"),
        ("/requests", {"filter": "handled"}, "param-not-one-of"),
        ("/requests", {"filter": "locked", "exclusiveStartId": "a"}, "invalid-parameter"),
        ("/requests", {"cursor": "?"}, "invalid-parameter"),
        ("/requests", {"cursor": "bnVsbA"}, "invalid-parameter"),
        ("/requests", {"cursor": "W1tb" * 1000}, "invalid-parameter"),  # [[[[...
        ("/head/lock", {"method": "POST"}, "parameter-required"),
        ("/head/lock", {"method": "POST", "lockSecs": 0}, "invalid-parameter"),
        ("/head/lock", {"method": "POST", "lockSecs": "inf"}, "invalid-parameter"),
        ("/head/lock", {"method": "POST", "lockSecs": 1e12}, "invalid-parameter"),
    ):
        assert remote("GET", path, **query).error == (400, error), (path, query)


# Bodies


def test_body_is_a_json_object(remote: Caller) -> None:
    for body in (b"", b"{", b"[]", b'"a"', b"\xff"):
        answer = remote("POST", "/requests", content=body)
        assert answer.error == (400, "invalid-request"), body
        assert answer.message == "POST data must be a JSON object"


def test_body_says_what_it_is(remote: Caller) -> None:
    def refused(**headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return remote("POST", "/requests", content=b"{}", headers=sent)

    assert refused(Content_Type="text/plain").error == (400, "invalid-content-type-header")
    answer = refused(Content_Encoding="bla")
    assert answer.error == (415, "unsupported-content-encoding")
    assert answer.message == 'Content-Encoding "bla" is not supported.'


def _brotli(body: bytes) -> bytes:
    packed: bytes = pytest.importorskip("brotli").compress(body)
    return packed


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
        ("deflate", zlib.compress),
        ("br", _brotli),
        ("identity", bytes),
    ],
)
def test_bodies_may_be_compressed(
    remote: Caller, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    def post(key: str, cut: int | None = None, size: int = 2000) -> Answer:
        body = json.dumps(request(key, userData={"text": "x" * size})).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": encoding}
        return remote("POST", "/requests", content=pack(body)[:cut], headers=headers)

    assert post("a").status == 201
    assert len(remote.get("a")["userData"]["text"]) == 2000
    assert post("b", cut=-5).error == (400, "invalid-request")
    assert post("c", size=MAX_BODY).error == (413, "request-too-large")
    assert remote.counts() == (1, 0, 1)


def test_large_body_is_taken_up_to_the_limit(remote: Caller) -> None:
    empty = len(json.dumps(request("a", payload="")).encode())
    for size, status in ((MAX_BODY, 201), (MAX_BODY + 1, 413)):
        body = json.dumps(request("a", payload="x" * (size - empty))).encode()
        assert len(body) == size
        answer = remote("POST", "/requests", content=body)
        assert answer.status == status
    assert answer.message == (
        "The POST payload is too large (limit: 9437184 bytes, actual length: 9437185 bytes)."
    )


def test_what_takes_long_to_read_is_refused(remote: Caller) -> None:
    many = 100_001
    for body in (b"[%s]" % b",".join([b"[]"] * many), b'["%s"]' % b'","'.join([b""] * many)):
        answer = remote("POST", "/requests/batch", content=body)
        assert answer.error == (413, "request-too-large")
    # One problem, and not one for each.
    answer = remote("POST", "/requests", request("a", errorMessages=[1] * 99_000))
    assert answer.message == "Invalid value provided: errorMessages: Value error, must be texts"
    # A text may have as many commas and brackets as it likes.
    assert remote("POST", "/requests", request("a", payload='",\\"[' * many)).status == 201
    assert len(remote.get("a")["payload"]) == 5 * many


# Who may call


def test_token_is_demanded(served: ServedQueue) -> None:
    wrong = "user-or-token-not-found"
    with called(served, headers={}) as api:
        assert api("GET").error == (401, "token-not-provided")
        assert api("GET", token="other").error == (401, wrong)
        assert api("GET", headers={"Authorization": "Bearer söcret".encode()}).error == (401, wrong)
        assert api("GET", headers={"Authorization": b"Bearer \xff"}).error == (401, wrong)
        assert api("GET", token=TOKEN).status == 200
        odd = api("GET", headers={**BEARER, "Host": "localhost:abc"})
        assert odd.error == (400, "invalid-request")
        assert api("GET", headers=BEARER).status == 200


def test_web_pages_may_not_call_a_server_without_a_token(tmp_path: Path) -> None:
    with serving(tmp_path, token=None) as served, called(served, "/~a", {}) as remote:
        remote.http.post("/v2/request-queues?name=a")
        for name, value in (
            ("Origin", "https://example.com"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Host", "rebound.example.com"),
            ("Host", "0.0.0.0:8080"),
            ("Host", "192.168.1.5"),
            ("Sec-Fetch-Site", "none"),  # a link in a mail
        ):
            answer = remote("GET", method="DELETE", headers={name: value})
            assert answer.error == (403, "insufficient-permissions"), value
        for host in ("127.0.0.2:8080", "LOCALHOST", "[::1]:80"):
            assert remote("GET", headers={"Host": host}).status == 200, host
        assert remote("GET", headers={"Authorization": "Bearer anything"}).status == 200
