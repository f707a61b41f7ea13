"""Bodies and headers, exact for us and readable for others."""

from __future__ import annotations

import json

import pytest
from scrapy import Request

from tests.support.conversion import URL, converter, encoded, foreign, restarted


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_encoding_is_kept(encoding: str) -> None:
    again = restarted(Request(f"{URL}?q=é", body="café", headers={"X": "é"}, encoding=encoding))
    assert (again.url, again.body, again.headers["X"]) == (f"{URL}?q=%E9", b"caf\xe9", b"\xe9")
    assert again.replace(body="é").body == b"\xe9"


def test_how_bodies_are_stored() -> None:
    text, binary, none = (
        encoded(Request(URL, method="POST", body=body))
        for body in ("0123456789" * 1000, b"\xff\x00\x80" * 1000, b"")
    )
    assert text.to_json().count("0123456789") == 1000
    assert "body" not in text.user_data["scrapy"]
    assert binary.payload is None
    assert len(binary.to_json()) < 4000 + 200
    assert len(none.to_json()) < 200


def test_a_payload_that_is_an_object() -> None:
    request = converter().decode(foreign(method="POST", payload={"a": [1, "é"]}))
    assert json.loads(request.body) == {"a": [1, "é"]}


def test_a_header_that_is_not_sent() -> None:
    """Scrapy keeps the name, so that no middleware sets it."""
    request = Request(URL, headers={"User-Agent": None, "X": [1, "b"]})
    assert encoded(request).headers == {"X": "1, b"}
    again = restarted(request)
    assert (again.headers.getlist("User-Agent"), "User-Agent" in again.headers) == ([], True)
