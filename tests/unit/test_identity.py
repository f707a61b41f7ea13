"""The names of default queues."""

from __future__ import annotations

import itertools
import re

import pytest

from scrapy_apify_rq import identity
from scrapy_apify_rq.identity import default_name, may_belong_to
from scrapy_apify_rq.limits import is_name


@pytest.mark.parametrize(
    ("bot", "spider", "expected"),
    [
        # As in the first edition: another name would lose a paused crawl.
        ("shop", "quotes", "shop-quotes"),
        ("Shop", "a-b", "Shop-a-b"),
        ("s", "x" * 61, f"s-{'x' * 61}"),
        ("shop", "a.b", "shop-a-b-afbb04ed"),
        ("shop_example", "shop", "shop-example-shop-13b45749"),
        ("s", "x" * 62, r"s-x{52}-[0-9a-f]{8}"),
        ("shop", "été", r"shop--t-[0-9a-f]{8}"),
        ("", "quotes", r"quotes-[0-9a-f]{8}"),
        ("例", "例", r"[0-9a-f]{8}"),
        ("shop", "a" * 47 + "." + "b" * 30, r"shop-a{47}-b?-?[0-9a-f]{8}"),
        # Another bot and spider could have had that name.
        ("a-b", "c", r"a-b-c-[0-9a-f]{12}"),
        ("shop", "a-b-afbb04ed", r"shop-a-b-afbb04ed-[0-9a-f]{12}"),
    ],
)
def test_without_arguments(bot: str, spider: str, expected: str) -> None:
    name = default_name(bot, spider)
    assert re.fullmatch(expected, name)
    assert is_name(name)
    assert may_belong_to(name, bot, spider)


def test_names_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_ROUNDS", 1)  # a name takes 0.05 s otherwise
    spiders = ["a.b", "a_b", "a-b", "a b", "x" * 80, "x" * 81, "c", "b-c", "b.c"]
    crawls = set(itertools.product(["a", "a-b", "a.b", ""], spiders, ["", "1", "2"]))
    # Spiders that somebody has named after the queue of another.
    crawls |= {("a", default_name("a", s, x).removeprefix("a-"), "") for _, s, x in crawls}
    names = {crawl: default_name(*crawl) for crawl in crawls}
    assert len(set(names.values())) == len(names)
    assert all(map(is_name, names.values()))


def test_with_arguments() -> None:
    name = default_name("shop", "quotes", "x")
    assert name == default_name("shop", "quotes", "x")  # and in each process:
    assert name == "shop-quotes-24035aa89271"
    assert may_belong_to(name, "shop", "quotes")
    for bot, spider in (("shop", "quote"), ("sho", "quotes"), ("shop", "quotes-2")):
        assert not may_belong_to(name, bot, spider)
    long = default_name("shop", "x" * 80, "x")
    assert len(long) == 63
    assert may_belong_to(long, "shop", "x" * 80)
