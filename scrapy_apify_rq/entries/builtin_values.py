"""Writes values of the types that Python and its standard library have: see ``values``."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from lxml import etree  # type: ignore[import-untyped]
from pydantic import JsonValue
from pydantic_core import TzInfo

from scrapy_apify_rq.entries.names import type_name
from scrapy_apify_rq.entries.place import Place
from scrapy_apify_rq.entries.value_reader import FLAGS, MAX_DEPTH, MAX_DIGITS

# Of those that are not written as they are. An entry of 9 MB has no room for many more.
MAX_PARTS: Final = 1_000_000
# Beyond it, JavaScript's only number type skips integers.
_MAX_INT: Final = 2**53
# Found by making one, because its name is private.
_LXML_TEXT: Final[type[str]] = type(etree.XPath("string()")(etree.Element("a")))


def _is_safe_int(value: int) -> bool:
    return -_MAX_INT <= value <= _MAX_INT


def is_unicode(value: str) -> bool:
    """Return False for a text with lone surrogates, which UTF-8 cannot hold."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _always(value: object) -> bool:
    return True


def _has_fraction(value: float) -> bool:
    """Return False for nan and infinity, too, and for 10.0: JavaScript would make it 10."""
    return value % 1 > 0


NATIVE: dict[type, Callable[[Any], bool]] = {
    str: is_unicode,
    int: _is_safe_int,
    bool: _always,
    type(None): _always,
    float: _has_fraction,
}


def write(value: object, place: Place) -> JsonValue:
    """Write a value that JSON cannot hold as it is, or that has parts."""
    if place.depth >= MAX_DEPTH:
        raise place.refusal(f"nested more than {MAX_DEPTH} levels deep, or contains itself")
    left = place.writer.left
    left[0] -= 1
    if left[0] < 0:
        raise place.refusal(f"the value has more than {MAX_PARTS} parts, or the same ones often")
    encoder = _ENCODERS.get(type(value))
    return encoder(value, place) if encoder else place.writer.write_other(value, place)


def part(value: Any, place: Place, key: object, levels: int) -> JsonValue:
    """Write what lies at ``key`` of the container at ``place``, ``levels`` deeper in the JSON."""
    fits = NATIVE.get(type(value))
    if fits is not None and fits(value):
        return value  # type: ignore[no-any-return]
    return write(value, Place(place, key, place.depth + levels, place.writer))


def parts(values: Collection[Any], place: Place, levels: int) -> list[JsonValue]:
    return [part(value, place, index, levels) for index, value in enumerate(values)]


def _encode_list(value: list[Any], place: Place) -> JsonValue:
    return parts(value, place, 1)


def _encode_tuple(value: tuple[Any, ...], place: Place) -> JsonValue:
    return {"$tuple": parts(value, place, 2)}


def _encode_elements(value: Collection[Any], place: Place) -> list[JsonValue]:
    return sorted((part(element, place, element, 2) for element in value), key=json.dumps)


def _encode_set(value: set[Any], place: Place) -> JsonValue:
    return {"$set": _encode_elements(value, place)}


def _encode_frozenset(value: frozenset[Any], place: Place) -> JsonValue:
    return {"$frozenset": _encode_elements(value, place)}


def _encode_dict(value: dict[Any, Any], place: Place) -> JsonValue:
    # Decided before any part is written: to start again would double the work at each level.
    if _needs_pairs(value):
        return {"$dict": pairs(value, place, 3)}
    return {key: part(item, place, key, 1) for key, item in value.items()}


def pairs(value: Mapping[Any, Any], place: Place, levels: int) -> list[JsonValue]:
    return [
        [part(key, place, key, levels), part(item, place, key, levels)]
        for key, item in value.items()
    ]


def _needs_pairs(value: dict[Any, Any]) -> bool:
    for key in value:
        if type(key) is not str or not (key.isascii() or is_unicode(key)):
            return True
    return len(value) == 1 and next(iter(value)).startswith("$")


def _encode_int(value: int, place: Place) -> JsonValue:
    try:
        digits = str(value)
    except ValueError:
        digits = ""
    if not 0 < len(digits.lstrip("-")) <= MAX_DIGITS:
        raise place.refusal(f"an int of more than {MAX_DIGITS} digits")
    return {"$int": digits}


def _encode_datetime(value: dt.datetime, place: Place) -> JsonValue:
    text = value.replace(tzinfo=None).isoformat()
    return {"$datetime": _with_zone(text, value, place)}


def _encode_time(value: dt.time, place: Place) -> JsonValue:
    text = value.replace(tzinfo=None).isoformat()
    return {"$time": _with_zone(text, value, place)}


def _with_zone(text: str, value: dt.datetime | dt.time, place: Place) -> JsonValue:
    if value.tzinfo is None and not value.fold:
        return text
    return [text, value.fold, _encode_zone(value.tzinfo, place)]


def _encode_zone(zone: dt.tzinfo | None, place: Place) -> JsonValue:
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        microseconds = offset // dt.timedelta(microseconds=1)
        if name == dt.timezone(offset).tzname(None):
            return [microseconds]
        if is_unicode(name):
            return [microseconds, name]
    elif type(zone) is TzInfo:
        offset = zone.utcoffset(None) or dt.timedelta(0)
        return {"pydantic": offset // dt.timedelta(seconds=1)}
    elif type(zone) is ZoneInfo and _is_known_zone(zone.key):
        return zone.key
    raise place.refusal(f"the time zone {type_name(zone)} could not be restored")


def _is_known_zone(key: str | None) -> bool:
    # A ZoneInfo read from a file has no key, or one that its reader invented.
    try:
        return key is not None and ZoneInfo(key).key == key
    except (LookupError, OSError, ValueError):
        return False


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _encode_defaultdict(value: defaultdict[Any, Any], place: Place) -> JsonValue:
    factory = part(value.default_factory, place, "default_factory", 2)
    return {"$defaultdict": [factory, pairs(value, place, 4)]}


def _encode_deque(value: deque[Any], place: Place) -> JsonValue:
    return {"$deque": [parts(value, place, 3), value.maxlen]}


def _encode_range(value: range, place: Place) -> JsonValue:
    return {"$range": parts((value.start, value.stop, value.step), place, 2)}


def _encode_pattern(value: re.Pattern[Any], place: Place) -> JsonValue:
    flags = value.flags & FLAGS
    if re.compile(value.pattern, flags) != value:
        raise place.refusal("the pattern could not be restored")
    return {"$pattern": [part(value.pattern, place, "pattern", 2), flags]}


def _encode_path(value: PurePath, place: Place) -> JsonValue:
    kind = "Path" if isinstance(value, Path) else type(value).__name__
    return {"$path": [kind, part(str(value), place, "path", 2)]}


_ENCODERS: dict[type, Callable[[Any, Place], JsonValue]] = {
    dict: _encode_dict,
    list: _encode_list,
    tuple: _encode_tuple,
    set: _encode_set,
    frozenset: _encode_frozenset,
    str: lambda value, _: {"$str": _base64(value.encode("utf-8", "surrogatepass"))},
    int: _encode_int,
    float: lambda value, _: {"$float": repr(value)},
    bytes: lambda value, _: {"$bytes": _base64(value)},
    bytearray: lambda value, _: {"$bytearray": _base64(value)},
    dt.datetime: _encode_datetime,
    dt.date: lambda value, _: {"$date": value.isoformat()},
    dt.time: _encode_time,
    dt.timedelta: lambda value, _: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    _LXML_TEXT: lambda value, _: str(value),
    Decimal: lambda value, _: {"$decimal": str(value)},
    UUID: lambda value, _: {"$uuid": str(value)},
    complex: lambda value, place: {"$complex": parts((value.real, value.imag), place, 2)},
    OrderedDict: lambda value, place: {"$ordereddict": pairs(value, place, 3)},
    Counter: lambda value, place: {"$counter": pairs(value, place, 3)},
    defaultdict: _encode_defaultdict,
    deque: _encode_deque,
    range: _encode_range,
    re.Pattern: _encode_pattern,
    type(Path()): _encode_path,
    PurePosixPath: _encode_path,
    PureWindowsPath: _encode_path,
}
