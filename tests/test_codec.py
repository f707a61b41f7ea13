"""What encode() writes comes back exactly or is refused; what strangers wrote does no harm."""

import collections
import contextlib
import dataclasses
import datetime as dt
import enum
import json
import math
import re
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import TZPATH, ZoneInfo

import attr
import attrs
import pydantic
import pytest
import scrapy
from hypothesis import given, settings
from hypothesis import strategies as st

from scrapy_apify_rq.entries.item_classes import class_path, find_class
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError

HERE = __name__


def case_id(value: object) -> str:
    """A name for the case that is the same in every process, as pytest-xdist needs it."""
    if isinstance(value, (set, frozenset)):
        value = sorted(map(repr, value))
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))[:60]


# ---- Item classes


class Product(scrapy.Item):
    name = scrapy.Field()
    price = scrapy.Field()
    related = scrapy.Field()


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Order:
    price: int
    count: int = 1
    total: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.price * self.count)


@dataclasses.dataclass
class Visit:
    url: str
    number: int = dataclasses.field(init=False)
    kind: str = dataclasses.field(init=False, default="page")


@dataclasses.dataclass(slots=True, kw_only=True)
class Slotted:
    a: int
    b: Any = None


@dataclasses.dataclass(eq=False)
class ByIdentity:
    a: Any


@attrs.define
class Account:
    _key: str
    name: str = "x"
    seen: int = attrs.field(init=False, default=0)


@attrs.frozen
class Pair:
    left: Any
    right: Any = attrs.field(alias="r")


@attr.s
class OldAttrs:
    __secret = attr.ib()
    other = attr.ib(factory=list)


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(alias="Name")
    nick: str = pydantic.Field("", validation_alias=pydantic.AliasChoices("Nick", "nickname"))
    seen: dt.datetime = pydantic.Field(default_factory=lambda: dt.datetime.now(dt.UTC))
    tags: set[str] = set()
    price: Decimal | None = None
    _note: str = pydantic.PrivateAttr("n")


class Open(pydantic.BaseModel, extra="allow", frozen=True, populate_by_name=True):
    a: int = pydantic.Field(1, alias="A")


class Wrapper(pydantic.RootModel[list[int]]):
    pass


ITEMS: dict[str, Callable[[], Any]] = {
    "item": lambda: Product(name="a", related=("x", {1})),
    "item-empty": Product,
    "item-nested": lambda: Product(related=[Product(price=Decimal("1.50")), Point(1)]),
    "dataclass": lambda: Point(b"x", [1, (2,)]),
    "dataclass-nan": lambda: Point(math.nan),
    "dataclass-frozen": lambda: Order(3, 4),
    "dataclass-init-false": lambda: with_attribute(Visit("u"), "number", 5),
    "dataclass-unset": lambda: Visit("u"),
    "dataclass-changed": lambda: with_attribute(Visit("u"), "kind", "file"),
    "dataclass-slots": lambda: Slotted(a=1, b=Slotted(a=2)),
    "dataclass-identity": lambda: ByIdentity((1,)),
    "attrs-private": lambda: Account("k"),
    "attrs-init-false": lambda: with_attribute(Account("k", "n"), "seen", 9),
    "attrs-frozen": lambda: Pair(1, Pair(2, frozenset([3]))),
    "attrs-mangled": lambda: OldAttrs("s", [1]),
    "pydantic-alias": lambda: Model(Name="n", Nick="m", tags={"b", "a"}, price=Decimal("1.0")),
    "pydantic-defaults": lambda: Model(Name="n"),
    "pydantic-extra": lambda: Open(A=2, more=[1], most=(1,)),
    "pydantic-by-name": lambda: Open(a=3),
    "pydantic-root": lambda: Wrapper([1, 2]),
}


# Or cannot be compared at all, for an unset field.
NOT_EQUAL_TO_COPIES = {
    "dataclass-nan",
    "dataclass-identity",
    "dataclass-unset",
    "dataclass-changed",
}


def with_attribute(item: Any, name: str, value: object) -> Any:
    setattr(item, name, value)
    return item


# ---- Comparison


def describe(value: Any) -> Any:
    """Write down types and values at every depth, so that == between two descriptions is exact."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind in (list, tuple):
        return (name, [describe(part) for part in value])
    if kind in (set, frozenset):
        return (name, sorted(map(describe, value), key=repr))
    if kind is dict:
        return (name, [(describe(key), describe(part)) for key, part in value.items()])
    if kind in (dt.datetime, dt.time):
        zone = value.tzinfo
        naive = value.replace(tzinfo=None, fold=0)
        return (name, repr(naive), value.fold, type(zone).__name__, repr(zone))
    if kind.__module__ == HERE:
        slots = [
            slot for base in kind.__mro__ for slot in vars(base) if type(vars(base)[slot]) is SLOT
        ]
        state = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
        state |= getattr(value, "__dict__", {})
        return (name, sorted((key, describe(part)) for key, part in state.items()))
    return (name, repr(value))


SLOT = types.MemberDescriptorType


def through_json(value: object) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


def mutable_parts(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple | set | frozenset | dict):
        if not isinstance(value, tuple | frozenset):
            yield id(value)
        for part in value:
            yield from mutable_parts(part)
        if isinstance(value, dict):
            for part in value.values():
                yield from mutable_parts(part)


def nested(depth: int, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = wrap(value)
    return value


# ---- Strategies

strings = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    ["$tuple", "$", "$dict", "\ud83d\ude00", "\ud800", "é", "\0"]
)
zones = (
    st.none()
    | st.timezones()
    | st.builds(
        dt.timezone,
        st.timedeltas(dt.timedelta(hours=-23, microseconds=1), dt.timedelta(hours=23)),
    )
    | st.builds(lambda name: dt.timezone(dt.timedelta(hours=1), name), st.text(max_size=5))
)
hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**53) - 2, -(2**53) + 2) | st.integers(2**53 - 2, 2**53 + 2),
    st.floats(),
    strings,
    st.binary(max_size=8),
    st.dates(),
    st.datetimes(timezones=zones),
    st.times(timezones=zones),
    st.builds(lambda at, fold: at.replace(fold=fold), st.datetimes(), st.integers(0, 1)),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.uuids(),
    st.builds(Order, st.integers(), st.integers()),
)
hashables = st.recursive(
    hashable_scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    hashable_scalars | st.decimals() | st.builds(bytearray, st.binary(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(hashables, max_size=3),
        st.frozensets(hashables, max_size=3),
        st.dictionaries(strings, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=3),
        st.builds(lambda a, b: Product(name=a, related=b), inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=12,
)


# ---- Round trips


@settings(deadline=None, max_examples=300)
@given(values)
def test_three_round_trips_keep_value_and_types(value: Any) -> None:
    before = describe(value)
    for _ in range(3):
        value = through_json(value)
        assert describe(value) == before


@settings(deadline=None, max_examples=150)
@given(values)
def test_input_is_neither_changed_nor_shared(value: Any) -> None:
    before = describe(value)
    data = encode(value)
    assert describe(value) == before
    assert not set(mutable_parts(value)) & set(mutable_parts(data))
    assert not set(mutable_parts(data)) & set(mutable_parts(decode(data)))


@settings(deadline=None, max_examples=100)
@given(values)
def test_written_data_is_plain_json(value: Any) -> None:
    data = encode(value)
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    text.encode()
    assert describe(json.loads(text)) == describe(data)


@pytest.mark.parametrize("make", ITEMS.values(), ids=ITEMS)
def test_items(make: Callable[[], Any]) -> None:
    item = make()
    before = describe(item)
    restored = through_json(through_json(through_json(item)))
    assert type(restored) is type(item)
    assert describe(restored) == before == describe(item)


@pytest.mark.parametrize("name", sorted(ITEMS.keys() - NOT_EQUAL_TO_COPIES))
def test_items_are_equal(name: str) -> None:
    item = ITEMS[name]()
    assert through_json(item) == item


def test_item_details() -> None:
    assert dict(through_json(Product(name=1))) == {"name": 1}
    model = Model(Name="n")
    restored = through_json(model)
    assert restored.model_fields_set == {"name"}
    assert restored.seen == model.seen
    assert not hasattr(through_json(Visit("u")), "number")


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, None),
        (True, True),
        (2**53, 2**53),
        (2**53 + 1, {"$int": "9007199254740993"}),
        (-(2**53) - 1, {"$int": "-9007199254740993"}),
        (1.5, 1.5),
        (math.inf, {"$float": "inf"}),
        (-math.inf, {"$float": "-inf"}),
        (math.nan, {"$float": "nan"}),
        ("x", "x"),
        ("\ud800", {"$str": "7aCA"}),
        ({"\ud800": 1}, {"$dict": [[{"$str": "7aCA"}, 1]]}),
        ([1, {"a": []}], [1, {"a": []}]),
        ((1, (2,)), {"$tuple": [1, {"$tuple": [2]}]}),
        ({"b", "a", 1}, {"$set": ["a", "b", 1]}),
        (frozenset(), {"$frozenset": []}),
        (b"\xff", {"$bytes": "/w=="}),
        (bytearray(b"a"), {"$bytearray": "YQ=="}),
        ({1: "a", "b": 2}, {"$dict": [[1, "a"], ["b", 2]]}),
        ({"$tuple": []}, {"$dict": [["$tuple", []]]}),
        ({"$": 1}, {"$dict": [["$", 1]]}),
        ({"$tuple": [], "a": 1}, {"$tuple": [], "a": 1}),
        (dt.date(1, 2, 3), {"$date": "0001-02-03"}),
        (dt.datetime(2024, 1, 2, 3), {"$datetime": "2024-01-02T03:00:00"}),
        (
            dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Prague")),
            {"$datetime": ["2024-10-27T02:30:00", 1, "Europe/Prague"]},
        ),
        (dt.time(1, 2, tzinfo=dt.UTC), {"$time": ["01:02:00", 0, [0]]}),
        (
            dt.time(1, tzinfo=dt.timezone(dt.timedelta(hours=-1), "AZOT")),
            {"$time": ["01:00:00", 0, [-3600000000, "AZOT"]]},
        ),
        (dt.timedelta(-1, 2, 3), {"$timedelta": [-1, 2, 3]}),
        (Decimal("1.50"), {"$decimal": "1.50"}),
        (
            UUID("12345678-1234-5678-1234-567812345678"),
            {"$uuid": "12345678-1234-5678-1234-567812345678"},
        ),
        (Product(name="n"), {"$item": [f"{HERE}:Product", [["name", "n"]]]}),
        (Order(2), {"$item": [f"{HERE}:Order", [["price", 2], ["count", 1]], [["total", 2]]]}),
    ],
    ids=case_id,
)
def test_format(value: object, data: object) -> None:
    assert describe(encode(value)) == describe(data)
    assert describe(decode(json.loads(json.dumps(data)))) == describe(value)


def test_order_of_dicts_is_kept() -> None:
    value = {"z": 1, "a": {3: 1, 1: 2}}
    restored = through_json(value)
    assert list(restored) == ["z", "a"]
    assert list(restored["a"]) == [3, 1]


def test_sets_are_written_in_one_order() -> None:
    names = [f"n{number}" for number in range(50)]
    assert encode(set(names)) == {"$set": sorted(names)}


def test_aliases_become_separate_objects() -> None:
    shared: list[int] = []
    first, second = through_json([shared, shared])
    assert first is not second


# ---- Refused values


class Number(enum.IntEnum):
    ONE = 1


class Named(NamedTuple):
    a: int


class Text(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    def utcoffset(self, _: object) -> dt.timedelta:
        return dt.timedelta(0)


@dataclasses.dataclass
class Growing:
    tags: list[str]

    def __post_init__(self) -> None:
        self.tags.append("new")


@dataclasses.dataclass
class NeedsMore:
    a: int
    b: dataclasses.InitVar[int]


@dataclasses.dataclass
class DataList(list):  # type: ignore[type-arg]
    a: int = 0


@attrs.define
class Parsed:
    text: Any = attrs.field(converter=json.loads)


@attr.s(auto_exc=True)
class DataError(Exception):
    a = attr.ib()


def local_class_item() -> Any:
    @dataclasses.dataclass
    class Local:
        a: int = 1

    return Local()


def impostor() -> Any:
    """Make an item whose class names itself like another one."""
    cls = dataclasses.make_dataclass("Point", ["x"])
    cls.__module__ = HERE
    return cls(1)


def cycle() -> Any:
    value: list[Any] = []
    value.append({"again": value})
    return value


REFUSED: dict[str, Callable[[], Any]] = {
    "lambda": lambda: lambda: 0,
    "function": lambda: local_class_item,
    "class": lambda: Product,
    "object": object,
    "generator": lambda: (number for number in [1]),
    "complex": lambda: 1j,
    "range": lambda: range(3),
    "memoryview": lambda: memoryview(b""),
    "int-enum": lambda: Number.ONE,
    "named-tuple": lambda: Named(1),
    "ordered-dict": collections.OrderedDict,
    "default-dict": lambda: collections.defaultdict(list),
    "str-subclass": lambda: Text("a"),
    "path": lambda: Path("a"),
    "own-zone": lambda: dt.datetime(2024, 1, 1, tzinfo=Zone()),
    "huge-int": lambda: 10**5000,
    "dict-of-huge-int": lambda: {10**5000: 1},
    "local-class": local_class_item,
    "impostor-class": impostor,
    "bad-part-of-item": lambda: Point(1, lambda: 0),
    "bad-part-of-slots": lambda: Slotted(a=1, b=object()),
    "extra-attribute": lambda: with_attribute(Point(1), "extra", 1),
    "extra-attribute-of-item": lambda: with_attribute(Product(), "_extra", 1),
    "extra-attribute-unwritable": lambda: with_attribute(Point(1), "extra", object()),
    "private-changed": lambda: with_attribute(Model(Name="n"), "_note", "other"),
    "invalid-model": lambda: Open.model_construct(a="not a number"),
    "constructor-changes": lambda: Growing(["a"]),
    "constructor-needs-more": lambda: NeedsMore(1, 2),
    "constructor-converts": lambda: Parsed("[1]"),
    "list-dataclass": lambda: DataList(1),
    "exception-attrs": lambda: DataError(1),
    "cycle": cycle,
    "deep": lambda: nested(1000),
    "deep-dicts": lambda: nested(1000, lambda inner: {"a": inner}),
    "deep-tuples": lambda: nested(1000, lambda inner: (inner,)),
    "deep-items": lambda: nested(1000, Point),
    "deep-keys": lambda: {nested(1000, lambda inner: (inner,)): 1},
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_refused_with_path(make: Callable[[], Any]) -> None:
    value = make()
    with pytest.raises(CodecError, match=r"^meta\['a'\]\[3\]"):
        encode({"a": [1, 2, 3, value]}, "meta")
    with pytest.raises(CodecError, match=r"^value"):
        encode(value)


def test_refused_open_things(tmp_path: Path) -> None:
    with (
        socket.socket() as sock,
        (tmp_path / "file").open("w") as file,
        pytest.raises(CodecError, match=r"^cb_kwargs\[1\]\['s'\]: .*socket\.socket"),
    ):
        encode({1: {"s": sock}, "file": file}, "cb_kwargs")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": ({"b": lambda: 0},)}, "meta['a'][0]['b']: "),
        ({1: lambda: 0}, "meta[1]: "),
        ({(1, Number.ONE): 0}, "meta[<tuple>][1]: "),
        (Product(name=[Number.ONE]), f"meta['name'][0]: a value of type {HERE}.Number "),
        ({frozenset([Number.ONE])}, "meta[<frozenset>][<"),
    ],
    ids=case_id,
)
def test_path(value: object, path: str) -> None:
    with pytest.raises(CodecError) as caught:
        encode(value, "meta")
    assert str(caught.value).startswith(path)


def test_message_stays_short() -> None:
    with pytest.raises(CodecError) as caught:
        encode({"x" * 1_000_000: lambda: 0})
    assert len(str(caught.value)) < 400


def test_encoding_leaves_the_item_alone() -> None:
    item = Growing(["a"])
    with pytest.raises(CodecError):
        encode(item)
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


# ---- Depth and size


@pytest.mark.parametrize(
    ("wrap", "levels"),
    [
        (lambda inner: [inner], 100),
        (lambda inner: {"a": inner}, 100),
        (lambda inner: (inner,), 50),
        (lambda inner: frozenset([inner]), 50),
        (lambda inner: {1: inner}, 33),
        (Point, 24),
        (lambda inner: Product(name=inner), 24),
        (lambda inner: {"a": [inner], 1: 2}, 25),
    ],
)
def test_deepest_possible(wrap: Callable[[Any], Any], levels: int) -> None:
    """Each of these would take for ever if a level were written or checked twice."""
    value = nested(levels, wrap)
    assert describe(through_json(value)) == describe(value)
    with pytest.raises(CodecError):
        encode(nested(101, wrap))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: {"a": inner},
        lambda inner: {"$tuple": [inner]},
        lambda inner: {"$set": [inner]},
        lambda inner: {"$dict": [[inner, 1]]},
        lambda inner: {"$dict": [[1, inner]]},
        lambda inner: {"$item": [f"{HERE}:Point", [["x", inner]]]},
        lambda inner: {"$item": inner},
    ],
)
def test_deep_hostile_data(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(CodecError):
        decode(nested(20_000, wrap))


def test_little_stack_left() -> None:
    value = nested(90)
    data = encode(value)

    def at_depth(depth: int, function: Callable[[Any], Any], argument: Any) -> Any:
        return function(argument) if depth == 0 else at_depth(depth - 1, function, argument)

    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1  # type: ignore[assignment]
    spare = sys.getrecursionlimit() - used - 80
    for function, argument in ((encode, value), (decode, data), (encode, nested(20, Point))):
        with pytest.raises(CodecError, match=r"nested too deeply|RecursionError"):
            at_depth(spare, function, argument)


def test_large_values_in_reasonable_time() -> None:
    size = 5_000_000
    started = time.perf_counter()
    value = {"a": "x" * size, "b": "é" * size, "c": b"x" * size, "d": "\ud800" * 1_000_000}
    assert through_json(value) == value
    for tag in ("$decimal", "$int", "$date", "$datetime", "$uuid", "$bytes", "$float", "$time"):
        with pytest.raises(CodecError) as caught:
            decode({tag: "1" * size + "é"})
        assert len(str(caught.value)) < 500
    with pytest.raises(CodecError):
        decode({"$int": "1" * size})
    with pytest.raises(CodecError):
        decode({"$datetime": ["2024-01-01T00:00:00", 0, "x" * size]})
    with pytest.raises(CodecError):
        decode({"$" + "x" * size: 1})
    with pytest.raises(CodecError):
        decode({"$item": ["x" * size + ":" + "y" * size, []]})
    assert time.perf_counter() - started < 10


# ---- Hostile data

TAGS = ["$tuple", "$set", "$frozenset", "$bytes", "$bytearray", "$datetime", "$date", "$time"]
TAGS += ["$timedelta", "$decimal", "$uuid", "$float", "$int", "$str", "$dict", "$item"]
classes = st.sampled_from(
    [f"{HERE}:{name}" for name in ("Product", "Point", "Order", "Visit", "Pair", "Model", "Open")]
    + ["os:system", "subprocess:Popen", "builtins:dict", "builtins:list", f"{HERE}:Hashing"]
)
fields = st.sampled_from(
    ["x", "y", "price", "total", "name", "Name", "left", "r", "self", "$tuple"]
)
ODD_TEXTS = [
    "nan",
    "inf",
    "2024-01-01",
    "2024-01-01T00:00:00",
    "2024-01-01T00:00:00+02:00",
    "00:00",
]
ODD_TEXTS += ["24:00:00", "1E+999999999999999999999", "1_0", " 1", "\u0661", "-0", "é", "=", "QQ=="]
ODD_TEXTS += [
    "Europe",
    "Europe/Prague",
    "../../etc/passwd",
    "/etc/passwd",
    "\0",
    "\ud800",
    "a//b",
    "",
]
odd_text = st.sampled_from(ODD_TEXTS)
json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
json_data = st.recursive(
    json_scalars | odd_text | classes | fields,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
        st.dictionaries(st.sampled_from(TAGS), inner, min_size=1, max_size=1),
        st.builds(
            lambda cls, *lists: {"$item": [cls, *[[list(pair) for pair in one] for one in lists]]},
            classes,
            st.lists(st.tuples(fields, inner), max_size=2),
            st.lists(st.tuples(fields, inner), max_size=2),
        ),
        st.builds(lambda tag, parts: {tag: parts}, st.sampled_from(TAGS), st.lists(inner)),
    ),
    max_leaves=10,
)


@dataclasses.dataclass(unsafe_hash=False, eq=False)
class Hashing:
    x: Any

    def __hash__(self) -> int:
        return hash(self.x.lower())


@settings(deadline=None, max_examples=800)
@given(json_data)
def test_arbitrary_json_is_read_or_refused(data: Any) -> None:
    loaded = set(sys.modules)
    with contextlib.suppress(CodecError):
        decode(data)
    assert not {name for name in set(sys.modules) - loaded if not name.startswith("tzdata")}


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(TAGS), json_scalars | odd_text | st.lists(odd_text | json_scalars))
def test_arbitrary_payload_is_read_or_refused(tag: str, payload: Any) -> None:
    with contextlib.suppress(CodecError):
        decode({tag: payload})


@pytest.mark.parametrize(
    "data",
    [
        {"$unknown": 1},
        {"$": 1},
        {"$tuple": {"a": 1}},
        {"$tuple": "ab"},
        {"$set": [[]]},
        {"$set": [1, 1]},
        {"$set": [1, True]},
        {"$set": [{"$item": [f"{HERE}:Hashing", [["x", 5]]]}]},
        {"$frozenset": {}},
        {"$bytes": "a"},
        {"$bytes": "YQ==\n"},
        {"$bytes": [1]},
        {"$bytearray": None},
        {"$str": "/w=="},
        {"$str": 1},
        {"$int": 5},
        {"$int": "05"},
        {"$int": "1_000"},
        {"$int": "9" * 5000},
        {"$float": "1.0"},
        {"$float": 1.0},
        {"$decimal": " 1"},
        {"$decimal": "x"},
        {"$decimal": 1},
        {"$uuid": "{12345678-1234-5678-1234-567812345678}"},
        {"$uuid": "x"},
        {"$date": "20240101"},
        {"$date": "2024-02-30"},
        {"$time": "25:00:00"},
        {"$time": "01"},
        {"$datetime": "2024-01-01 00:00:00"},
        {"$datetime": "2024-01-01T00:00:00+00:00"},
        {"$datetime": ["2024-01-01T00:00:00", 2, None]},
        {"$datetime": ["2024-01-01T00:00:00", True, None]},
        {"$datetime": ["2024-01-01T00:00:00", [], None]},
        {"$datetime": ["2024-01-01T00:00:00", 0, "No/Such"]},
        {"$datetime": ["2024-01-01T00:00:00", 0, "Europe"]},
        {"$datetime": ["2024-01-01T00:00:00", 0, "../../../etc/passwd"]},
        {"$datetime": ["2024-01-01T00:00:00", 0, "/etc/passwd"]},
        {"$datetime": ["2024-01-01T00:00:00", 0, [10**30]]},
        {"$datetime": ["2024-01-01T00:00:00", 0, [86400000000]]},
        {"$datetime": ["2024-01-01T00:00:00", 0, [0, 1]]},
        {"$datetime": ["2024-01-01T00:00:00", 0, []]},
        {"$datetime": ["2024-01-01T00:00:00", 0, {}]},
        {"$timedelta": [1, 2]},
        {"$timedelta": [1.5, 2, 3]},
        {"$timedelta": [10**30, 0, 0]},
        {"$dict": {"a": 1}},
        {"$dict": [["a"]]},
        {"$dict": ["ab"]},
        {"$dict": [["a", 1], ["a", 2]]},
        {"$dict": [[[], 1]]},
        {"$item": f"{HERE}:Point"},
        {"$item": []},
        {"$item": [f"{HERE}:Point"]},
        {"$item": [5, []]},
        {"$item": [f"{HERE}:Point", {}]},
        {"$item": [f"{HERE}:Point", [], [], []]},
        {"$item": [f"{HERE}:Point", []]},
        {"$item": [f"{HERE}:Point", [["x", 1], ["z", 2]]]},
        {"$item": [f"{HERE}:Point", [[1, 1]]]},
        {"$item": [f"{HERE}:Point", [["x", 1]], [["x", 2]]]},
        {"$item": [f"{HERE}:Point", [["x", 1]], [["__class__", 2]]]},
        {"$item": [f"{HERE}:Product", [["nope", 1]]]},
        {"$item": [f"{HERE}:Product", [], [["name", 1]]]},
        {"$item": [f"{HERE}:Model", [["name", 5]]]},
        {"$item": [f"{HERE}:Model", [["name", "n"]], [["__pydantic_private__", 2]]]},
        {"$item": [f"{HERE}:Pair", [["left", 1]]]},
        {"$item": [f"{HERE}:Text", []]},
        {"$item": ["collections:OrderedDict", []]},
        {"$item": ["builtins:dict", []]},
        {"a": [{"$tuple": 5}]},
        (1,),
        {1: 2},
        object(),
        collections.OrderedDict(a=1),
    ],
    ids=case_id,
)
def test_malformed_data(data: Any) -> None:
    with pytest.raises(CodecError):
        decode(data)


# ---- Classes


class Holder:
    ran = False

    class Inner:
        pass

    @property
    def value(self) -> object:
        Holder.ran = True
        return Point

    @classmethod
    def make(cls) -> object:
        Holder.ran = True
        return Point

    point = Point(1)


@pytest.mark.parametrize("cls", [Product, Point, Holder.Inner, dict, Decimal])
def test_class_path_round_trip(cls: type) -> None:
    path = class_path(cls)
    assert path == f"{cls.__module__}:{cls.__qualname__}"
    assert find_class(path) is cls


def test_class_path_refuses_what_cannot_be_found() -> None:
    for item in (local_class_item(), impostor()):
        with pytest.raises(CodecError, match="cannot be found again"):
            class_path(type(item))


HARMFUL = [
    "os:system",
    "builtins:eval",
    "builtins:__import__",
    "scrapy_apify_rq.entries.values:encode",
    "this:Anything",
    "antigravity:Anything",
    "xml.dom.minidom:Document",
    f"{HERE}:Holder.value",
    f"{HERE}:Holder.make",
    f"{HERE}:Holder.point",
    f"{HERE}:Holder.point.x",
    f"{HERE}:Holder.Missing",
    f"{HERE}:Holder.",
    f"{HERE}:.Holder",
    f"{HERE}:",
    f"{HERE}.Holder",
    ":Holder",
    ":",
    "",
    "..:x",
    f"{HERE}:scrapy.Item",
    f"{HERE}:local_class_item.<locals>.Local",
]


@pytest.mark.parametrize("path", [*HARMFUL, "subprocess:Popen", "builtins:type", f"{HERE}:Text"])
def test_harmful_classes(path: str) -> None:
    loaded = set(sys.modules)
    with pytest.raises(CodecError):
        decode({"$item": [path, []]})
    if path in HARMFUL:
        with pytest.raises(CodecError):
            find_class(path)
        with pytest.raises(CodecError):
            find_class(path, ["elsewhere"])
    assert set(sys.modules) == loaded
    assert "this" not in sys.modules
    assert "antigravity" not in sys.modules
    assert not Holder.ran


def test_hooks_of_modules_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            calls.append(name)
            return Point

    dynamic: Any = types.ModuleType("codec_dynamic")
    dynamic.__getattr__ = lambda name: calls.append(name) or Point
    lazy = Lazy("codec_lazy")
    for name, module in {"codec_dynamic": dynamic, "codec_lazy": lazy, "codec_none": None}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "codec_object", Holder())  # type: ignore[arg-type]
    calls.clear()
    for name in ("codec_dynamic", "codec_lazy", "codec_none", "codec_object"):
        with pytest.raises(CodecError):
            find_class(f"{name}:Point")
    assert calls == []


def test_hooks_of_metaclasses_do_not_run() -> None:
    Trap.calls.clear()  # pytest looks at all classes here
    with pytest.raises(CodecError):
        find_class(f"{HERE}:Trap.Point")
    assert Trap.calls == []


class Meta(type):
    calls: list[str]

    def __getattr__(cls, name: str) -> Any:
        cls.calls.append(name)
        return Point


class Trap(metaclass=Meta):
    calls: list[str] = []  # noqa: RUF012


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is on the path and not loaded; its module ``broken`` cannot be imported."""
    name = f"codec_{uuid4().hex}"
    (tmp_path / name).mkdir()
    source = "import dataclasses\n@dataclasses.dataclass\nclass Thing:\n    a: int = 0\n"
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "items.py").write_text(source)
    (tmp_path / name / "broken.py").write_text("1 / 0")
    (tmp_path / f"{name}x.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


@pytest.mark.parametrize("below", ["", ".items"])
def test_trusted_module_is_imported(package: str, below: str) -> None:
    data: Any = {"$item": [f"{package}.items:Thing", [["a", 5]]]}
    with pytest.raises(CodecError, match="trusted"):
        decode(data)
    with pytest.raises(CodecError, match="trusted"):
        decode(data, [f"{package}.item", f"{package}.items.more", "x"])
    assert package not in sys.modules
    thing = decode(data, [package + below])
    assert (thing.a, type(thing).__module__) == (5, f"{package}.items")
    assert describe(through_json(Point(thing))) == describe(Point(thing))


@pytest.mark.parametrize("module", ["x", ".missing", ".broken", ".", "..items", "./items", ".\0"])
def test_what_is_below_a_trusted_module(package: str, module: str) -> None:
    with pytest.raises(CodecError):
        decode({"$item": [f"{package}{module}:Thing", []]}, [package])
    assert f"{package}x" not in sys.modules
