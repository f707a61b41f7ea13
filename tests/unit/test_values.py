"""What encode() writes comes back exactly, or is refused."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import inspect
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import TZPATH, ZoneInfo

import pytest
from hypothesis import given
from pydantic import HttpUrl
from scrapy import Request
from scrapy.link import Link

from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError
from tests.support import codec_classes as cc
from tests.support.codec_classes import Model, Number, Open, Order, Pair, Point, Product, Visit
from tests.support.exact_values import HERE, ODD, OWN, VALUES, describe, is_refused, nested, seeded


def with_attribute(item: Any, name: str, value: object) -> Any:
    setattr(item, name, value)
    return item


def through_json(value: object) -> Any:
    return decode(json.loads(json.dumps(encode(value, names=OWN))), OWN)


def through_javascript(data: object) -> Any:
    """As JavaScript writes it again: all its numbers are floats, and whole ones have no point."""

    def number(text: str) -> float | int:
        value = float(text)
        return int(value) if value.is_integer() and abs(value) < 1e21 else value

    text = json.dumps(data, allow_nan=False)
    return json.loads(text, parse_int=number, parse_float=number)


ITEMS = [Product(name="a", related=("x", {1})), Product(), Point(b"x", [1, (2,)]), Order(3, 4)]
ITEMS += [Product(related=[Product(price=Decimal("1.50")), Point(1)]), cc.Wrapper([1, 2])]
ITEMS += [with_attribute(Visit(url="u"), "number", 5), Pair(1, Pair(2, frozenset([3])))]
ITEMS += [cc.OldAttrs("s", [1]), with_attribute(cc.OldAttrs("s"), "seen", 9), Model(Name="n")]
ITEMS += [Open(a=3), Model(Name="n", Nick="m", tags={"b", "a"}, price=Decimal("1.0"))]
ITEMS += [Open(A=2, more=[1], most=(1,))]
# Those of Visit lack a field, so that they cannot be compared.
UNEQUAL = [Point(math.nan), cc.Hashing((1,)), with_attribute(Visit(url="u"), "kind", "f")]
UNEQUAL += [Visit(url=Visit(url=(1,)))]


@pytest.mark.parametrize("number", range(18))
def test_item(number: int) -> None:
    item = (ITEMS + UNEQUAL)[number]
    before = describe(item)
    restored = through_json(through_json(through_json(item)))
    assert describe(restored) == before == describe(item)
    assert number >= len(ITEMS) or restored == item


def mutable_parts(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple | set | frozenset | dict):
        if not isinstance(value, tuple | frozenset):
            yield id(value)
        for part in (*value, *(value.values() if isinstance(value, dict) else ())):
            yield from mutable_parts(part)


@seeded(120)
@given(VALUES)
def test_any_value(value: Any) -> None:
    """It is written as plain JSON, comes back exactly, and is neither changed nor shared."""
    before = describe(value)
    data = encode(value, names=OWN)
    assert describe(value) == before
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    text.encode()
    assert describe(json.loads(text)) == describe(data)
    assert not set(mutable_parts(value)) & set(mutable_parts(data))
    assert not set(mutable_parts(data)) & set(mutable_parts(decode(data, OWN)))
    assert describe(decode(through_javascript(data), OWN)) == before
    for _ in range(3):
        value = through_json(value)
        assert describe(value) == before


NATIVE = [None, True, 2**53, 1.5, "x", [1, {"a": []}], {"$tuple": [], "a": 1}]
AZORES = dt.timezone(dt.timedelta(hours=-1), "AZOT")
PRAGUE = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Prague"))
UUID_TEXT = "12345678-1234-5678-1234-567812345678"
ORDER = [f"{HERE}:Order", [["price", 2], ["count", 1]], [["total", 2]]]
PLAIN = [f"{HERE}:Plain", [["b", 1], ["a", {"$tuple": [2]}]]]
NAMED = [f"{HERE}:Name", [["source", 1]], "n"]
TABLE = [f"{HERE}:Table", [["title", "t"]], {"a": 1}]
LINK_PARTS = [["fragment", ""], ["nofollow", False], ["text", "t"], ["url", "http://a.org"]]
LINK = ["scrapy.link:Link", LINK_PARTS]
TAGGED: list[tuple[str, Any, Any]] = [
    ("$int", 2**53 + 1, "9007199254740993"),
    ("$int", -(2**53) - 1, "-9007199254740993"),
    *(("$float", float(text), text) for text in ("inf", "-inf", "nan", "10.0", "-0.0", "1e+300")),
    ("$complex", 1.5 - 2j, [1.5, {"$float": "-2.0"}]),
    ("$str", ODD, "7aCA"),
    ("$dict", {ODD: 1}, [[{"$str": "7aCA"}, 1]]),
    ("$dict", {1: "a", "b": 2}, [[1, "a"], ["b", 2]]),
    ("$dict", {"$tuple": []}, [["$tuple", []]]),
    ("$dict", {"$": 1}, [["$", 1]]),
    ("$tuple", (1, (2,)), [1, {"$tuple": [2]}]),
    ("$set", {"b", "a", 1}, ["a", "b", 1]),
    ("$frozenset", frozenset(), []),
    ("$bytes", b"\xff", "/w=="),
    ("$bytearray", bytearray(b"a"), "YQ=="),
    ("$date", dt.date(1, 2, 3), "0001-02-03"),
    ("$datetime", dt.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
    ("$datetime", PRAGUE, ["2024-10-27T02:30:00", 1, "Europe/Prague"]),
    ("$time", dt.time(1, 2, tzinfo=dt.UTC), ["01:02:00", 0, [0]]),
    ("$time", dt.time(1, tzinfo=AZORES), ["01:00:00", 0, [-3600000000, "AZOT"]]),
    ("$timedelta", dt.timedelta(-1, 2, 3), [-1, 2, 3]),
    ("$decimal", Decimal("1.50"), "1.50"),
    ("$uuid", UUID(UUID_TEXT), UUID_TEXT),
    ("$item", Product(name="n"), [f"{HERE}:Product", [["name", "n"]]]),
    ("$item", Order(2), ORDER),
    ("$ordereddict", collections.OrderedDict(b=1, a=2), [["b", 1], ["a", 2]]),
    ("$counter", collections.Counter(a=2), [["a", 2]]),
    ("$defaultdict", collections.defaultdict(None, a=1), [None, [["a", 1]]]),
    ("$defaultdict", collections.defaultdict(list), [{"$class": "builtins:list"}, []]),
    ("$deque", collections.deque([1, (2,)], 5), [[1, {"$tuple": [2]}], 5]),
    ("$range", range(2**60, 0, -2), [{"$int": str(2**60)}, 0, -2]),
    ("$pattern", re.compile("a(?x:b)", re.IGNORECASE), ["a(?x:b)", 34]),
    ("$pattern", re.compile(b"a"), [{"$bytes": "YQ=="}, 0]),
    ("$path", Path("a"), ["Path", "a"]),
    ("$path", PureWindowsPath("c:/a"), ["PureWindowsPath", "c:\\a"]),
    ("$url", HttpUrl("http://a.org"), ["pydantic.networks:HttpUrl", "http://a.org/"]),
    ("$enum", cc.Color.ALIAS, [f"{HERE}:Color", "RED"]),
    ("$enum", cc.Access(3), [f"{HERE}:Access", 3]),
    ("$enum", Number.ONE, [f"{HERE}:Number", "ONE"]),
    ("$namedtuple", cc.Step("u", 5), [f"{HERE}:Step", ["u", 5]]),
    ("$class", Product, f"{HERE}:Product"),
    ("$class", cc.Plain, f"{HERE}:Plain"),
    ("$function", cc.a_function, f"{HERE}:a_function"),
    ("$object", cc.Plain.of(b=1, a=(2,)), PLAIN),
    ("$object", cc.Slotted(1), [f"{HERE}:Slotted", [["_Slotted__private", 1], ["here", 1]]]),
    ("$object", with_attribute(cc.Name("n"), "source", 1), NAMED),
    ("$object", with_attribute(cc.Table(a=1), "title", "t"), TABLE),
    ("$object", cc.Row((1, 2, 3)), [f"{HERE}:Row", [], {"$tuple": [1, 2, 3]}]),
    ("$object", cc.Growing(["a"]), [f"{HERE}:Growing", [["tags", ["a", "new"]]]]),
    ("$object", Link("http://a.org", "t"), LINK),
]


def test_the_stored_form_stays_as_it_is() -> None:
    # Queues outlive versions.
    forms = [(value, value) for value in NATIVE]
    forms += [(value, {tag: payload}) for tag, value, payload in TAGGED]
    written = [describe(encode(value, names=OWN)) for value, _ in forms]
    assert written == [describe(data) for _, data in forms]
    read = [describe(decode(json.loads(json.dumps(data)), OWN)) for _, data in forms]
    assert read == [describe(value) for value, _ in forms]
    assert describe(decode({"a": 10.0})) == describe({"a": 10.0})  # as it was written before


def test_order_and_identity() -> None:
    restored = through_json({"z": 1, "a": {3: 1, 1: 2}})
    assert (list(restored), list(restored["a"])) == (["z", "a"], [3, 1])
    names = [f"n{number}" for number in range(50)]
    assert encode(set(names)) == {"$set": sorted(names)}
    shared: list[int] = []
    first, second = through_json([shared, shared])
    assert first is not second


# Refused

CYCLE: list[Any] = []
CYCLE.append({"again": CYCLE})
ABROAD = dt.datetime(2024, 1, 1, tzinfo=type("Zone", (dt.tzinfo,), {})())
NAMELESS = dt.time(1, tzinfo=dt.timezone(dt.timedelta(0), ODD))
DEEP_TUPLE = nested(1000, lambda inner: (inner,))
REFUSED: list[Any] = [lambda: 0, cc.run, cc.Plain, object(), (n for n in [1]), memoryview(b"")]
REFUSED += [cc.Plain.of(), cc.Text("a"), cc.Counted(1), ABROAD, CYCLE, subprocess.Popen, os.system]
REFUSED += [collections.defaultdict(lambda: 0), 10**5000, {10**5000: 1}, Request("data:,"), len]
REFUSED += [cc.LOCAL, cc.IMPOSTOR, Point(1, lambda: 0), Visit(url=object())]
REFUSED += [with_attribute(Point(1), "extra", extra) for extra in (1, object())]
REFUSED += [with_attribute(Product(), "_extra", 1), with_attribute(Model(Name="n"), "_note", "x")]
REFUSED += [Open.model_construct(a="no number"), cc.Growing(["a"]), cc.NeedsMore(1, 2)]
REFUSED += [cc.Parsed("[1]"), cc.DataList(1), cc.DataError(1), nested(1000), nested(1000, Point)]
REFUSED += [nested(1000, lambda inner: {"a": inner}), DEEP_TUPLE, NAMELESS]
REFUSED += [{DEEP_TUPLE: 1}]


@pytest.mark.parametrize("value", REFUSED, ids=range(len(REFUSED)))
def test_refused_with_path(value: Any) -> None:
    with pytest.raises(CodecError, match=r"^meta\['a'\]\[3\]"):
        encode({"a": [1, 2, 3, value]}, "meta")
    with pytest.raises(CodecError, match=r"^value"):
        encode(value)


def test_open_socket_and_file_are_refused(tmp_path: Path) -> None:
    expected = pytest.raises(CodecError, match=r"^cb_kwargs\[1\]\['s'\]: .*socket\.socket")
    with socket.socket() as sock, (tmp_path / "file").open("w") as file, expected:
        encode({1: {"s": sock}, "file": file}, "cb_kwargs")


LOCAL = enum.Enum("Local", ["A"]).A
MESSAGES: dict[str, Any] = {
    r"^meta\['a'\]\[0\]\['b'\]: ": {"a": ({"b": lambda: 0},)},
    r"^meta\[1\]: ": {1: lambda: 0},
    r"^meta\[<tuple>\]\[1\]: ": {(1, LOCAL): 0},
    rf"^meta\['name'\]\[0\]: a value of type {HERE}.Plain ": Product(name=[cc.Plain.of()]),
    r"^meta\[<frozenset>\]\[<": {frozenset([LOCAL])},
    r"^.{10,400}$": {"x" * 1_000_000: lambda: 0},
    r"the name of field .* cannot be written as JSON": Product({ODD: 1}),
    r"the name of field .* cannot be written as JSO": Open(x=1),
}
MESSAGES[r"the name of field .* cannot be written as JSO"].model_extra[ODD] = 1


@pytest.mark.parametrize("message", MESSAGES)
def test_message(message: str) -> None:
    with pytest.raises(CodecError, match=message):
        encode(MESSAGES[message], "meta")


def test_refused_item_is_left_alone() -> None:
    item = cc.Growing(["a"])
    assert is_refused(encode, item)
    assert item.tags == ["a", "new"]


def test_zone_without_a_name_to_find_it_by() -> None:
    files = [file for folder in TZPATH if (file := Path(folder, "Europe/Prague")).exists()]
    if not files:
        pytest.skip("no time zone files on this system")
    for key in (None, "No/Such", "../Prague"):
        with files[0].open("rb") as file:
            zone = ZoneInfo.from_file(file, key=key)
        with pytest.raises(CodecError, match="time zone"):
            encode(dt.datetime(2024, 1, 1, tzinfo=zone))


DEEPEST: list[tuple[Any, int]] = [(lambda x: [x], 100), (lambda x: {"a": x}, 100), (Point, 24)]
DEEPEST += [(lambda x: (x,), 50), (lambda x: frozenset([x]), 50), (lambda x: {1: x}, 33)]
DEEPEST += [(lambda x: Product(name=x), 24), (lambda x: {"a": [x], 1: 2}, 25)]


@pytest.mark.parametrize(("wrap", "levels"), DEEPEST)
def test_deepest_possible(wrap: Callable[[Any], Any], levels: int) -> None:
    """Each of these would take for ever if a level were written or checked twice."""
    value = nested(levels, wrap)
    assert describe(through_json(value)) == describe(value)
    assert is_refused(encode, nested(101, wrap))


def test_what_shares_its_parts_at_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrapy_apify_rq.entries.values.MAX_PARTS", 1000)
    assert is_refused(encode, nested(40, lambda x: [x, x]))
    assert is_refused(encode, nested(12, lambda x: Product(name=x, related=x)))
    assert len(encode([(1,)] * 999)) == 999  # type: ignore[arg-type]


def test_little_stack_left() -> None:
    limit, data = sys.getrecursionlimit(), encode(nested(90))
    calls = [(encode, nested(90)), (decode, data), (encode, nested(20, Point))]
    sys.setrecursionlimit(len(inspect.stack(0)) + 80)
    try:
        for function, argument in calls:
            with pytest.raises(CodecError, match=r"nested too deeply|RecursionError"):
                function(argument)
    finally:
        sys.setrecursionlimit(limit)


# What is the project's own


NOT_EVEN_OWN = [cc.LOCAL, cc.IMPOSTOR, cc.Closing(), cc.Counted(1), cc.Exploit(), cc.DataError(1)]
NOT_EVEN_OWN += [lambda: 0, cc.Holder.method, os.system, with_attribute(Point(1), "e", object())]


def test_what_cannot_be_restored_even_of_the_project() -> None:
    assert [one for one in NOT_EVEN_OWN if not is_refused(encode, one, "v", OWN)] == []


def test_items_that_their_constructors_would_change() -> None:
    changed = [with_attribute(Point(1), "extra", (1,)), with_attribute(Product(), "_extra", 1)]
    changed += [with_attribute(Model(Name="n"), "_note", "x"), Open.model_construct(a="no number")]
    changed += [cc.Growing(["a"]), cc.NeedsMore(1, 2), cc.Parsed("[1]"), cc.DataList(1)]
    for item in [*changed, Point([changed]), Product(name=changed)]:
        assert describe(through_json(item)) == describe(item)


def test_scalars_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    values = [numpy.float64(1), numpy.float32(0.5), numpy.int64(2**60), numpy.bool_(True)]
    values += [numpy.str_("a"), numpy.bytes_(b"a")]
    expected = [1.0, 0.5, 2**60, True, "a", b"a"]
    assert describe(decode(encode(values))) == describe(expected)
    for refused in (numpy.longdouble(1), numpy.datetime64("2024-01-01"), numpy.zeros(1)):
        assert is_refused(encode, refused)
