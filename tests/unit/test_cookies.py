"""Jars as records, and which of them are written again."""

from __future__ import annotations

import threading
from collections import defaultdict
from http.cookiejar import Cookie
from typing import Any

import pytest
from scrapy import Spider
from scrapy.http.cookies import CookieJar

from scrapy_apify_rq.crawl.cookies import _ARGUMENTS, Cookies
from scrapy_apify_rq.entries.converter import RequestConverter

CONVERTER = RequestConverter(Spider("spider"))
VALUES: dict[str, Any] = {
    "version": 1,
    "name": "a",
    "value": None,
    "port": "80,8080",
    "port_specified": True,
    "domain": ".example.com",
    "domain_specified": True,
    "domain_initial_dot": True,
    "path": "/\udcff",
    "path_specified": True,
    "secure": True,
    "expires": 2**40,
    "discard": False,
    "comment": "why",
    "comment_url": "https://example.com/",
    "rest": {"HttpOnly": None, "SameSite": "Lax"},
    "rfc2109": True,
}


def cookie(name: str = "a", **values: Any) -> Cookie:
    return Cookie(**{**VALUES, "name": name, **values})


class Jars:
    """Jars whose records are collected; ``reports`` are what could not be kept."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.jars: defaultdict[Any, CookieJar] = defaultdict(CookieJar)
        self.cookies = Cookies(self.jars, "cookies/", CONVERTER, self.reports.append)

    def attributes(self) -> dict[Any, list[dict[str, Any]]]:
        return {key: [vars(cookie) for cookie in jar] for key, jar in self.jars.items()}

    async def changes(self) -> dict[str, bytes | None]:
        changes: dict[str, bytes | None] = {}
        await self.cookies.collect(changes)
        return changes


@pytest.fixture
def one() -> Jars:
    return Jars()


async def test_all_attributes_come_back(one: Jars) -> None:
    assert VALUES.keys() == set(_ARGUMENTS)
    assert len(_ARGUMENTS) == 17
    for key in (None, 1, "a", ("t", 1), b"b", 1.5, frozenset("xy")):
        one.jars[key].set_cookie(cookie(value=repr(key)))
        one.jars[key].set_cookie(cookie("session", discard=True, expires=None, rest={}))
    changes = await one.changes()
    assert len(changes) == 7
    assert all(name.startswith("cookies/") for name in changes)
    other = Jars()
    assert other.cookies.restore({name: text or b"" for name, text in changes.items()}) == 14
    assert other.attributes() == one.attributes()
    assert await other.changes() == {}
    assert other.reports == []


async def test_only_jars_that_changed_are_written(one: Jars) -> None:
    for number in range(50):
        one.jars[number].set_cookie(cookie())
    one.jars["empty"].clear()
    assert len(await one.changes()) == 50
    assert await one.changes() == {}
    one.jars[1].set_cookie(cookie(value="new"))
    next(iter(one.jars[2])).value = "a spider changes it in place"
    one.jars[3].clear()
    del one.jars[4]
    changes = await one.changes()
    assert [text is None for text in changes.values()] == [False, False, True, True]
    assert await one.changes() == {}
    one.jars[3].set_cookie(cookie())
    assert list((await one.changes()).values()) != [None]


async def test_what_cannot_be_written_is_reported_without_its_value(one: Jars) -> None:
    secret: Any = threading.Lock()
    one.jars[secret].set_cookie(cookie())
    one.jars["a"].set_cookie(cookie("bad", value=secret, rest={"x": secret}))
    one.jars["a"].set_cookie(cookie("good", value="secret"))
    (text,) = (await one.changes()).values()
    why = "a value of type _thread.lock cannot be written as JSON without loss"
    assert [about.partition(":")[2] for about in one.reports] == [
        f" the key of a jar of cookies: {why}",
        f" the cookie bad['value']: {why}",
    ]
    other = Jars()
    assert other.cookies.restore({"cookies/x": text or b""}) == 1
    assert "secret" not in "".join(one.reports)
