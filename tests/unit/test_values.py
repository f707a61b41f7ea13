"""What encode() writes comes back exactly, or is refused."""

from __future__ import annotations

import collections
import datetime as dt
import inspect
import json
import math
import socket
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import TZPATH, ZoneInfo

import pytest
from hypothesis import given

from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError
from tests.support import codec_classes as cc
from tests.support.codec_classes import Model, Number, Open, Order, Pair, Point, Product, Visit
from tests.support.exact_values import HERE, ODD, VALUES, describe, is_refused, nested, seeded


def with_attribute(item: Any, name: str, value: object) -> Any:
    setattr(item, name, value)
    return item


def through_json(value: object) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


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


@seeded(200)
@given(VALUES)
def test_any_value(value: Any) -> None:
    """It is written as plain JSON, comes back exactly, and is neither changed nor shared."""
    before = describe(value)
    data = encode(value)
    assert describe(value) == before
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    text.encode()
    assert describe(json.loads(text)) == describe(data)
    assert not set(mutable_parts(value)) & set(mutable_parts(data))
    assert not set(mutable_parts(data)) & set(mutable_parts(decode(data)))
    for _ in range(3):
        value = through_json(value)
        assert describe(value) == before


NATIVE = [None, True, 2**53, 1.5, "x", [1, {"a": []}], {"$tuple": [], "a": 1}]
AZORES = dt.timezone(dt.timedelta(hours=-1), "AZOT")
PRAGUE = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Prague"))
UUID_TEXT = "12345678-1234-5678-1234-567812345678"
ORDER = [f"{HERE}:Order", [["price", 2], ["count", 1]], [["total", 2]]]
TAGGED: list[tuple[str, Any, Any]] = [
    ("$int", 2**53 + 1, "9007199254740993"),
    ("$int", -(2**53) - 1, "-9007199254740993"),
    *(("$float", float(text), text) for text in ("inf", "-inf", "nan")),
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
]


def test_the_stored_form_stays_as_it_is() -> None:
    # Queues outlive versions.
    forms = [(value, value) for value in NATIVE]
    forms += [(value, {tag: payload}) for tag, value, payload in TAGGED]
    written = [describe(encode(value)) for value, _ in forms]
    assert written == [describe(data) for _, data in forms]
    read = [describe(decode(json.loads(json.dumps(data)))) for _, data in forms]
    assert read == [describe(value) for value, _ in forms]


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
REFUSED: list[Any] = [lambda: 0, cc.run, Product, object(), (n for n in [1]), 1j, range(3)]
REFUSED += [memoryview(b""), Number.ONE, cc.Named(1), cc.Text("a"), Path("a"), ABROAD, CYCLE]
REFUSED += [collections.OrderedDict(), collections.defaultdict(list), 10**5000, {10**5000: 1}]
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


MESSAGES: dict[str, Any] = {
    r"^meta\['a'\]\[0\]\['b'\]: ": {"a": ({"b": lambda: 0},)},
    r"^meta\[1\]: ": {1: lambda: 0},
    r"^meta\[<tuple>\]\[1\]: ": {(1, Number.ONE): 0},
    rf"^meta\['name'\]\[0\]: a value of type {HERE}.Number ": Product(name=[Number.ONE]),
    r"^meta\[<frozenset>\]\[<": {frozenset([Number.ONE])},
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
