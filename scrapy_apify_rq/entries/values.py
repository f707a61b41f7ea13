"""Tagged JSON: keeps the Python types of what a request carries in ``meta`` and ``cb_kwargs``.

A value that JSON can hold is written as it is. Any other is an object whose only key begins with
"$":

    $tuple $set $frozenset   [element, ...]; those of sets in a fixed order
    $bytes $bytearray $str   base64; $str is UTF-8 with surrogates, for a str with lone surrogates
    $int $float              beyond +-2**53 (others read the queue in JavaScript); nan, inf, -inf
    $decimal $uuid $date     text
    $datetime $time          ISO text, or [ISO text, fold, zone]. A zone is null, a ZoneInfo key, or
                             for a datetime.timezone [microseconds] or [microseconds, name]
    $timedelta               [days, seconds, microseconds]
    $dict                    [[key, value], ...]: for keys that JSON lacks, and where the only key
                             begins with "$"
    $item                    [class path, [[field, value], ...]], and a third list for fields that
                             are set after construction (init=False, defaults of pydantic)

Limits: a subclass of one of these types (IntEnum, OrderedDict, namedtuple) is refused, because it
would come back as another type. The exception is lxml's text, a str that knows its element: it
comes back as a plain str, because CrawlSpider keeps the text of every link in meta. An item is
refused unless all of its state comes back; to find out, we read it back, which runs its
constructor. An object that occurs twice comes back as two objects. JSON of more than about 100
levels is refused.

This module writes; ``value_reader`` reads.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any, Final, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from lxml import etree  # type: ignore[import-untyped]
from pydantic import JsonValue

from scrapy_apify_rq.entries.item_classes import (
    class_path,
    has_builtin_base,
    is_item_class,
    run,
    short,
    split,
    state,
    type_name,
)
from scrapy_apify_rq.entries.value_reader import MAX_DEPTH, MAX_DIGITS, decode
from scrapy_apify_rq.errors import CodecError

# Beyond it, JavaScript's only number type skips integers.
_MAX_INT: Final = 2**53
# Found by making one, because its name is private.
_LXML_TEXT: Final[type[str]] = type(etree.XPath("string()")(etree.Element("a")))

_ItemWriter: TypeAlias = "Callable[[Any, _Place], JsonValue]"


def encode(value: object, where: str = "value") -> JsonValue:
    """Return ``value`` as JSON data that shares nothing with it.

    Raises CodecError if a part would not come back the same; ``where`` begins the path to it.
    """
    root = _Place(None, where, 0, _write_checked_item)
    try:
        fits = _NATIVE.get(type(value))
        return value if fits and fits(value) else _encode(value, root)  # type: ignore[return-value]
    except RecursionError:
        raise root.refusal("nested too deeply") from None


class _Place:
    """Where in the value the encoder is, and what it does with the items there.

    ``depth`` counts levels of the JSON, not of the value: parsers of JSON have limits.
    """

    __slots__ = ("depth", "key", "parent", "write_item")

    def __init__(
        self, parent: _Place | None, key: object, depth: int, write_item: _ItemWriter
    ) -> None:
        self.parent = parent
        self.key = key
        self.depth = depth
        self.write_item = write_item

    def __str__(self) -> str:
        steps: list[str] = []
        place = self
        while place.parent is not None:
            fits = _NATIVE.get(type(place.key))
            readable = fits is not None and fits(place.key)
            steps.append(f"[{place.key!r}]" if readable else f"[<{type_name(place.key)}>]")
            place = place.parent
        return short("".join([str(place.key), *reversed(steps)]))

    def refusal(self, reason: str) -> CodecError:
        return CodecError(f"{self}: {reason}")

    def with_writer(self, write_item: _ItemWriter) -> _Place:
        return _Place(self.parent, self.key, self.depth, write_item)


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


_NATIVE: dict[type, Callable[[Any], bool]] = {
    str: is_unicode,
    int: _is_safe_int,
    bool: _always,
    type(None): _always,
    float: math.isfinite,
}


def _encode(value: object, place: _Place) -> JsonValue:
    """Write a value that JSON cannot hold as it is, or that has parts."""
    if place.depth >= MAX_DEPTH:
        raise place.refusal(f"nested more than {MAX_DEPTH} levels deep, or contains itself")
    encoder = _ENCODERS.get(type(value))
    return encoder(value, place) if encoder else place.write_item(value, place)


def _part(value: Any, place: _Place, key: object, levels: int) -> JsonValue:
    """Write what lies at ``key`` of the container at ``place``, ``levels`` deeper in the JSON."""
    fits = _NATIVE.get(type(value))
    if fits is not None and fits(value):
        return value  # type: ignore[no-any-return]
    return _encode(value, _Place(place, key, place.depth + levels, place.write_item))


def _parts(values: Collection[Any], place: _Place, levels: int) -> list[JsonValue]:
    return [_part(value, place, index, levels) for index, value in enumerate(values)]


def _encode_list(value: list[Any], place: _Place) -> JsonValue:
    return _parts(value, place, 1)


def _encode_tuple(value: tuple[Any, ...], place: _Place) -> JsonValue:
    return {"$tuple": _parts(value, place, 2)}


def _encode_elements(value: Collection[Any], place: _Place) -> list[JsonValue]:
    return sorted((_part(element, place, element, 2) for element in value), key=json.dumps)


def _encode_set(value: set[Any], place: _Place) -> JsonValue:
    return {"$set": _encode_elements(value, place)}


def _encode_frozenset(value: frozenset[Any], place: _Place) -> JsonValue:
    return {"$frozenset": _encode_elements(value, place)}


def _encode_dict(value: dict[Any, Any], place: _Place) -> JsonValue:
    # Decided before any part is written: to start again would double the work at each level.
    if _needs_pairs(value):
        pairs: list[JsonValue] = [
            [_part(key, place, key, 3), _part(item, place, key, 3)] for key, item in value.items()
        ]
        return {"$dict": pairs}
    return {key: _part(item, place, key, 1) for key, item in value.items()}


def _needs_pairs(value: dict[Any, Any]) -> bool:
    for key in value:
        if type(key) is not str or not (key.isascii() or is_unicode(key)):
            return True
    return len(value) == 1 and next(iter(value)).startswith("$")


def _encode_int(value: int, place: _Place) -> JsonValue:
    try:
        digits = str(value)
    except ValueError:
        digits = ""
    if not 0 < len(digits.lstrip("-")) <= MAX_DIGITS:
        raise place.refusal(f"an int of more than {MAX_DIGITS} digits")
    return {"$int": digits}


def _encode_datetime(value: dt.datetime, place: _Place) -> JsonValue:
    text = value.replace(tzinfo=None).isoformat()
    return {"$datetime": _with_zone(text, value, place)}


def _encode_time(value: dt.time, place: _Place) -> JsonValue:
    text = value.replace(tzinfo=None).isoformat()
    return {"$time": _with_zone(text, value, place)}


def _with_zone(text: str, value: dt.datetime | dt.time, place: _Place) -> JsonValue:
    if value.tzinfo is None and not value.fold:
        return text
    return [text, value.fold, _encode_zone(value.tzinfo, place)]


def _encode_zone(zone: dt.tzinfo | None, place: _Place) -> JsonValue:
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        microseconds = offset // dt.timedelta(microseconds=1)
        if name == dt.timezone(offset).tzname(None):
            return [microseconds]
        if is_unicode(name):
            return [microseconds, name]
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


_ENCODERS: dict[type, Callable[[Any, _Place], JsonValue]] = {
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
}


# Items. Only the outermost is checked, and with it those inside: to check each of them would double
# the work at each level.


def _write_checked_item(item: Any, place: _Place) -> JsonValue:
    data = _write_item(item, place.with_writer(_write_item))
    try:
        restored = decode(data, (), place.depth)
    except CodecError as error:
        raise place.refusal(f"the {type_name(item)} could not be restored: {error}") from error
    as_state = place.with_writer(_write_state)
    if json.dumps(_write_state(item, as_state)) != json.dumps(_write_state(restored, as_state)):
        raise place.refusal(f"the {type_name(item)} would not be the same when restored")
    return data


def _write_item(item: Any, place: _Place) -> JsonValue:
    path = _item_class_path(item, place)
    payload: list[JsonValue] = [path]
    try:
        arguments, attributes = run(split, item)
    except CodecError as error:
        raise place.refusal(f"the {type_name(item)} cannot be read: {error}") from error
    payload.append(_field_pairs(arguments, place, 4))
    if attributes:
        payload.append(_field_pairs(attributes, place, 4))
    return {"$item": payload}


def _write_state(item: Any, place: _Place) -> JsonValue:
    """Write all attributes, declared or not, to compare two items. Nobody reads this form."""
    return [_item_class_path(item, place), _field_pairs(state(item), place, 3)]


def _field_pairs(fields: dict[str, Any], place: _Place, levels: int) -> list[JsonValue]:
    for name in fields:
        if not is_unicode(name):  # a field of an Item or an extra one of pydantic has any name
            raise place.refusal(f"the name of field {name!r} cannot be written as JSON")
    return [[name, _part(value, place, name, levels)] for name, value in fields.items()]


def _item_class_path(item: Any, place: _Place) -> str:
    cls = type(item)
    if not is_item_class(cls):
        raise place.refusal(
            f"a value of type {type_name(item)} cannot be written as JSON without loss"
        )
    if has_builtin_base(cls):
        raise place.refusal(f"{type_name(item)} is an item class with a built-in base")
    try:
        return class_path(cls)
    except CodecError as error:
        raise place.refusal(str(error)) from None
