"""What strangers wrote is read or refused, and does no harm."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrapy_apify_rq.entries.names import NOTHING, Names
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError
from tests.support.exact_values import (
    HERE,
    JSON_DATA,
    JSON_LEAVES,
    MIDNIGHT,
    ODD,
    OWN,
    TAG,
    is_refused,
    nested,
    seeded,
)

BAD_ZONES = ["No/Such", "Europe", "../../../etc/passwd", "/etc/passwd", [], {}, [0, 1]]
BAD_ZONES += [[10**30], [86400000000]]
ITEMS: list[tuple[Any, ...]] = [("Point",), ("Point", {}), ("Point", [], [], []), ("Point", [])]
ITEMS += [("Point", [["x", 1], ["z", 2]]), ("Point", [["x", 1]], [["x", 2]])]
ITEMS += [("Point", [[1, 1]]), ("Point", [["x", 1]], [["__class__", 2]]), ("Text", [])]
ITEMS += [("Product", [["nope", 1]]), ("Product", [], [["name", 1]]), ("Pair", [["_left", 1]])]
ITEMS += [("Model", [["name", 5]]), ("Model", [["name", "n"]], [["__pydantic_private__", 2]])]
MALFORMED: dict[str, list[Any]] = {
    **{"$unknown": [1], "$": [1], "$frozenset": [{}], "$bytearray": [None]},
    "$tuple": [{"a": 1}, "ab"],
    "$set": [[[]], [1, 1], [1, True], [{"$item": [f"{HERE}:Hashing", [["x", 5]]]}]],
    "$bytes": ["a", "YQ==\n", [1]],
    "$str": ["/w==", 1],
    "$int": [5, "05", "1_000", "9" * 5000],
    "$float": ["1", "1.50", "1e5", "9" * 500, 1.0],
    "$decimal": [" 1", "x", 1],
    "$uuid": ["{12345678-1234-5678-1234-567812345678}", "x"],
    "$date": ["20240101", "2024-02-30"],
    "$time": ["25:00:00", "01"],
    "$datetime": ["2024-01-01 00:00:00", f"{MIDNIGHT}+00:00"],
    "$timedelta": [[1, 2], [1.5, 2, 3], [10**30, 0, 0]],
    "$dict": [{"a": 1}, [["a"]], ["ab"], [["a", 1], ["a", 2]], [[[], 1]]],
    "$item": [f"{HERE}:Point", [], [5, []], ["collections:OrderedDict", []], ["builtins:dict", []]],
}
CLASSES = [f"{HERE}:Color", f"{HERE}:Access", f"{HERE}:Step"]
MALFORMED |= {
    "$complex": [[1, 2], [1.5], "1j"],
    "$counter": [[1], 5],
    "$defaultdict": [[5, []], [{"$class": "builtins:list"}], ["builtins:list", []]],
    "$deque": [[[1, 2], 1], [[], -1], [[], True], [5, None]],
    "$range": [[1, 2], [1, 2, 0], [1, 2, True], [1, 2, "3"]],
    "$pattern": [["(", 0], ["a", 128], ["a", "i"], [5, 0], ["(" * 5000, 0], ["a", 4]],
    "$path": [["PosixPath", "a"], ["Path", 5], ["Path", {"$bytes": ""}], [[], "a"]],
    "$url": [["builtins:str", "a"], ["pydantic.networks:HttpUrl", "no url"], ["os:system", "a"]],
    "$enum": [[CLASSES[0], "BLUE"], [CLASSES[0], 1], [CLASSES[1], 99], ["builtins:int", "real"]],
    "$namedtuple": [[CLASSES[2], [1]], ["builtins:tuple", []], [CLASSES[2], 5]],
    "$object": [["builtins:object", []], [f"{HERE}:Plain", []], ["scrapy.link:Link", [["no", 1]]]],
    "$class": [f"{HERE}:Plain", f"{HERE}:a_function", 5],
    "$function": [f"{HERE}:a_function", "builtins:len"],
    "$method": ["parse"],
    "$request": [["https://example.com", "GET", None, None, {"v": 1}]],
}
MALFORMED["$datetime"] += [[MIDNIGHT, fold, None] for fold in (2, True, [])]
MALFORMED["$datetime"] += [[MIDNIGHT, 0, zone] for zone in BAD_ZONES]
MALFORMED["$item"] += [[f"{HERE}:{name}", *fields] for name, *fields in ITEMS]


DANGEROUS = ["subprocess:Popen", "tempfile:TemporaryDirectory", "tempfile:_TemporaryFileCloser"]
DANGEROUS += ["scrapy.crawler:CrawlerProcess", "builtins:type", "builtins:eval", "os:system"]
DANGEROUS += ["builtins:classmethod", "types:CodeType", "functools:partial", "shutil:rmtree"]
DANGEROUS += ["tests.support.npm_packages:subprocess.Popen", "tests.support.queues:SqliteBackend"]
DANGEROUS += [f"{HERE}:run.__code__", f"{HERE}:Closing", f"{HERE}:Counted", f"{HERE}:Meta"]
FORMS: list[Callable[[str], Any]] = [
    lambda path: {"$object": [path, []]},
    lambda path: {"$object": [path, [["a", 1]]]},
    lambda path: {"$object": [path, [], 5]},
    lambda path: {"$item": [path, []]},
    lambda path: {"$function": path},
    lambda path: {"$enum": [path, "a"]},
    lambda path: {"$url": [path, "a"]},
    lambda path: {"$namedtuple": [path, []]},
]
VALUES: list[Callable[[str], Any]] = [
    lambda path: {"$class": path},
    lambda path: {"$defaultdict": [{"$class": path}, []]},
]


def test_nothing_harmful_is_made_or_named() -> None:
    """Not even by the name that a module of the project's own has for it."""
    own = Names(["tests"], ["tests"])
    data = [form(path) for form in FORMS for path in DANGEROUS]
    others = [path for path in DANGEROUS if not path.startswith(HERE)]
    data += [form(path) for form in VALUES for path in others]
    assert [one for one in data if not is_refused(decode, one, own)] == []


def test_malformed_data() -> None:
    data = [{tag: payload} for tag, many in MALFORMED.items() for payload in many]
    data += [{"a": [{"$tuple": 5}]}, (1,), {1: 2}, object(), collections.OrderedDict(a=1)]
    assert [one for one in data if not is_refused(decode, one)] == []


@pytest.mark.parametrize("depth", [101, 20_000])
def test_deep_data(depth: int) -> None:
    assert is_refused(decode, nested(depth))
    for key in ("a", "$tuple", "$set", "$item"):
        assert is_refused(decode, nested(depth, lambda inner, key=key: {key: [inner]}))
    assert is_refused(decode, nested(depth, lambda inner: {"$dict": [[inner, 1]]}))
    assert is_refused(decode, nested(depth, lambda inner: {"$dict": [[1, inner]]}))
    item = f"{HERE}:Point"
    assert is_refused(decode, nested(depth, lambda inner: {"$item": [item, [["x", inner]]]}))


def test_large_values_in_reasonable_time() -> None:
    size = 2_000_000
    started = time.perf_counter()
    value = {"a": "x" * size, "b": "é" * size, "c": b"x" * size, "d": ODD * 400_000}
    assert decode(encode(value)) == value
    for tag in ("$decimal", "$int", "$date", "$datetime", "$uuid", "$bytes", "$float", "$time"):
        with pytest.raises(CodecError, match=r"^.{1,500}$"):
            decode({tag: "1" * size + "é"})
    assert is_refused(decode, {"$int": "1" * size})
    assert is_refused(decode, {"$datetime": [MIDNIGHT, 0, "x" * size]})
    assert is_refused(decode, {"$" + "x" * size: 1})
    assert is_refused(decode, {"$item": ["x" * size + ":" + "y" * size, []]})
    assert time.perf_counter() - started < 4


@seeded(100)
@given(JSON_DATA)
def test_any_json_is_read_or_refused(data: Any) -> None:
    loaded = set(sys.modules)
    for names in (NOTHING, OWN):
        with contextlib.suppress(CodecError):
            decode(data, names)
    assert not {name for name in set(sys.modules) - loaded if not name.startswith("tzdata")}


@seeded(60)
@given(TAG, JSON_LEAVES | st.lists(JSON_LEAVES))
def test_any_payload_is_read_or_refused(tag: str, payload: Any) -> None:
    for names in (NOTHING, OWN):
        with contextlib.suppress(CodecError):
            decode({tag: payload}, names)
