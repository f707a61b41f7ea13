"""Values compared exactly, and values of all kinds, for tests of what is written and read."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import FunctionType, MethodType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import HttpUrl
from pydantic_core import TzInfo
from scrapy import Request
from scrapy.link import Link

from scrapy_apify_rq.entries.names import Names
from scrapy_apify_rq.errors import CodecError
from tests.support import codec_classes as cc

HERE = cc.__name__
OWN = Names([HERE])
ODD = "\ud800"


def seeded(examples: int) -> settings:
    """So many examples, the same in each run."""
    ignored = [HealthCheck.too_slow]  # it measures the machine's load as well
    always: Any = {"derandomize": True, "database": None, "deadline": None}
    return settings(max_examples=examples, suppress_health_check=ignored, **always)


def nested(depth: int, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = wrap(value)
    return value


def is_refused(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except CodecError:
        return True
    return False


def describe(value: Any) -> Any:
    """Types and values at every depth, so that == between two descriptions is exact."""
    kind = type(value)
    if isinstance(value, Request):
        parts = [(name, describe(getattr(value, name))) for name in kind.attributes]
        return kind, parts, value.headers.encoding
    if kind in (list, tuple):
        return kind, [describe(part) for part in value]
    if issubclass(kind, type) or isinstance(value, FunctionType | MethodType | Enum):
        return value
    if kind in (set, frozenset):
        return kind, sorted(map(describe, value), key=repr)
    if isinstance(value, tuple | list | dict | deque | str) and kind is not str:
        content = list(dict.items(value)) if isinstance(value, dict) else list(value)
        others = [getattr(value, name, None) for name in ("maxlen", "default_factory")]
        return kind, describe(content), others, describe(object.__getstate__(value))
    if kind in (dt.datetime, dt.time):
        naive = value.replace(tzinfo=None, fold=0)
        return kind, repr(naive), value.fold, type(value.tzinfo), repr(value.tzinfo)
    if kind.__module__ == HERE or kind is Link:
        return kind, describe(object.__getstate__(value))
    return kind, repr(value)


# All that can be written

STRINGS = st.text(st.characters(exclude_categories=()), max_size=8)
STRINGS |= st.sampled_from(["$tuple", "$", "$dict", "\ud83d\ude00", ODD, "é", "\0"])
OFFSETS = st.timedeltas(dt.timedelta(hours=-23, microseconds=1), dt.timedelta(hours=23))
ZONES = st.none() | st.timezones() | st.builds(dt.timezone, OFFSETS)
ZONES |= st.builds(TzInfo, st.integers(-86399, 86399))
ZONES |= st.builds(dt.timezone, st.just(dt.timedelta(hours=1)), st.text(max_size=5))
NUMBERS = st.integers() | st.floats() | st.decimals().filter(lambda number: not number.is_snan())
NUMBERS |= st.integers(2**53 - 2, 2**53 + 2) | st.integers(-(2**53) - 2, 2 - 2**53)
MOMENTS = st.dates() | st.datetimes(timezones=ZONES) | st.times(timezones=ZONES) | st.timedeltas()
MOMENTS |= st.builds(lambda at, fold: at.replace(fold=fold), st.datetimes(), st.integers(0, 1))
HASHABLES = st.none() | st.booleans() | NUMBERS | STRINGS | MOMENTS | st.binary(max_size=8)
HASHABLES |= st.uuids() | st.builds(cc.Order, st.integers(), st.integers())
KEYS = st.recursive(
    HASHABLES,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    sets = st.sets(KEYS, max_size=3) | st.frozensets(KEYS, max_size=3)
    dicts = st.dictionaries(STRINGS, inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3)
    products = st.builds(lambda a, b: cc.Product(name=a, related=b), inner, inner)
    items = products | st.builds(cc.Point, inner, inner) | st.builds(cc.Pair, inner, inner)
    return lists | lists.map(tuple) | sets | dicts | items | _others(inner, lists, dicts)


def _others(inner: Any, lists: Any, dicts: Any) -> st.SearchStrategy[Any]:
    factories = st.sampled_from([None, int, list, cc.Plain, cc.Product, cc.a_function])
    counts = st.dictionaries(KEYS, st.integers(), max_size=3)
    mappings = dicts.map(OrderedDict) | counts.map(Counter) | dicts.map(cc.Table)
    mappings |= st.builds(defaultdict, factories, dicts)
    queues = st.builds(deque, lists, st.none() | st.integers(0, 5)) | lists.map(cc.Stack)
    objects = st.builds(lambda a, b: cc.Plain.of(a=a, b=b), inner, inner)
    objects |= st.builds(cc.Slotted, inner) | st.builds(cc.Step, inner, st.integers())
    # Its constructor changes it, so it comes back without one.
    objects |= st.builds(cc.Growing, lists)
    return mappings | queues | objects


NAMED = st.sampled_from([cc.Color.RED, cc.Number.ONE, *(map(cc.Access, range(4)))])
NAMED |= st.sampled_from([dict, cc.Product, cc.Plain, cc.Color, cc.a_function])
TEXTUAL = STRINGS.map(cc.Name) | st.builds(Link, STRINGS, STRINGS, nofollow=st.booleans())
TEXTUAL |= STRINGS.map(lambda text: PurePosixPath(text.replace("\0", "")))
TEXTUAL |= st.sampled_from([Path("a/b"), PureWindowsPath("c:\\a"), HttpUrl("http://é.com/a b")])
TEXTUAL |= st.sampled_from([re.compile("a+(?i:b)", re.X | re.S), re.compile(b"\xff", re.I)])
NUMERIC = st.builds(range, st.integers(), st.integers(), st.integers(1)) | st.complex_numbers()
LEAVES = (
    HASHABLES
    | NAMED
    | TEXTUAL
    | NUMERIC
    | st.decimals()
    | st.builds(bytearray, st.binary(max_size=8))
)
VALUES = st.recursive(LEAVES, _containers, max_leaves=8)

# JSON that strangers may write

TAGS = "tuple set frozenset bytes bytearray datetime date time timedelta decimal uuid float int str"
TAGS += " complex ordereddict counter defaultdict deque range pattern path url enum namedtuple"
TAGS += " dict item object class function method request"
TAG = st.sampled_from([f"${name}" for name in TAGS.split()])
NAMES = ("Product", "Point", "Order", "Visit", "Pair", "Model", "Open", "Hashing", "Color", "Step")
NAMES += ("Plain", "Slotted", "Name", "Table", "Closing", "Access", "a_function")
CLASSES = ["os:system", "subprocess:Popen", "builtins:dict", *(f"{HERE}:{name}" for name in NAMES)]
FIELDS = ["x", "y", "price", "total", "name", "Name", "_left", "r", "self", "$tuple"]
MIDNIGHT = "2024-01-01T00:00:00"
TEXTS = ["nan", "inf", "2024-01-01", MIDNIGHT, f"{MIDNIGHT}+02:00", "00:00", "24:00:00", "1_0"]
TEXTS += ["1E+999999999999999999999", " 1", "\u0661", "-0", "é", "=", "QQ==", "a//b", "\0", ODD, ""]
TEXTS += ["Europe", "Europe/Prague", "../../etc/passwd", "/etc/passwd"]
JSON_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON_LEAVES |= st.sampled_from(TEXTS)


def _tagged(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.lists(st.tuples(st.sampled_from(FIELDS), inner).map(list), max_size=2)
    item = st.builds(lambda *parts: {"$item": [*parts]}, st.sampled_from(CLASSES), fields, fields)
    kinds = st.sampled_from(["$object", "$enum", "$namedtuple", "$url"])
    item |= st.builds(lambda kind, *parts: {kind: [*parts]}, kinds, st.sampled_from(CLASSES), inner)
    item |= st.builds(lambda *parts: {"$object": [*parts]}, st.sampled_from(CLASSES), fields)
    tagged = st.dictionaries(TAG, inner | st.lists(inner), min_size=1, max_size=1)
    return (
        st.lists(inner, max_size=4) | tagged | item | st.dictionaries(TEXT_KEY, inner, max_size=3)
    )


TEXT_KEY = st.text(max_size=4)
JSON_DATA = st.recursive(JSON_LEAVES | st.sampled_from(CLASSES + FIELDS), _tagged, max_leaves=10)
