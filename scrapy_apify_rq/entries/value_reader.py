"""The reading half of ``values``: tagged JSON to Python values.

The data may come from a stranger. It is read strictly, never executed, and anything that ``encode``
would not have written raises CodecError.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import JsonValue

from scrapy_apify_rq.entries.item_classes import (
    build,
    find_class,
    is_item_class,
    run,
    short,
    type_name,
)
from scrapy_apify_rq.errors import CodecError

MAX_DEPTH: Final = 100
# Python refuses to convert more digits between int and str.
MAX_DIGITS: Final = 4300

_PLAIN: Final = frozenset((str, int, bool, type(None), float))

_T = TypeVar("_T")
_Decoder: TypeAlias = Callable[[Any, Collection[str], int], Any]


def decode(data: JsonValue, trusted: Collection[str] = (), depth: int = 0) -> Any:
    """Return the value that ``encode`` wrote. May import modules at or below a ``trusted`` name.

    ``depth`` is how deeply the data is nested in other data that counts towards the limit.
    """
    try:
        return _decode(data, trusted, depth)
    except RecursionError:
        raise CodecError("the stored value is nested too deeply") from None


def _decode(data: Any, trusted: Collection[str], depth: int) -> Any:
    kind = type(data)
    if kind in _PLAIN:
        return data
    if depth >= MAX_DEPTH:
        raise CodecError(f"the stored value is nested more than {MAX_DEPTH} levels deep")
    if kind is list:
        return [_decode(element, trusted, depth + 1) for element in data]
    if kind is not dict or not all(type(key) is str for key in data):
        raise CodecError(f"the stored value is not JSON data: it contains a {type_name(data)}")
    if len(data) == 1:
        ((key, payload),) = data.items()
        if key.startswith("$"):
            return _decode_tag(key, payload, trusted, depth)
    return {key: _decode(element, trusted, depth + 1) for key, element in data.items()}


def _decode_tag(tag: str, payload: Any, trusted: Collection[str], depth: int) -> Any:
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise CodecError(f"the stored value has an unknown tag: {short(tag)}")
    try:
        return decoder(payload, trusted, depth)
    except CodecError:
        raise
    except (ArithmeticError, LookupError, OSError, ValueError) as error:
        raise CodecError(f"malformed {tag}: {short(str(error))}") from error


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise CodecError(f"the stored value is malformed: {what} expected")


def _text(payload: Any) -> str:
    _expect(type(payload) is str, "text")
    return payload  # type: ignore[no-any-return]


def _canonical(payload: Any, parse: Callable[[str], _T], write: Callable[[_T], str] = str) -> _T:
    """Parse only the form that we write: parsers accept others, and more in newer Pythons."""
    value = parse(_text(payload))
    _expect(write(value) == payload, f"a {type(value).__name__} in its usual form")
    return value


def _bytes(payload: Any) -> bytes:
    return base64.b64decode(_text(payload), validate=True)


def _elements(payload: Any, trusted: Collection[str], depth: int) -> list[Any]:
    _expect(type(payload) is list, "a list")
    return [_decode(element, trusted, depth + 2) for element in payload]


def _decode_set(kind: Callable[[list[Any]], _T]) -> _Decoder:
    def decode_elements(payload: Any, trusted: Collection[str], depth: int) -> _T:
        result: Any = run(kind, _elements(payload, trusted, depth))
        _expect(len(result) == len(payload), "elements that differ")
        return result  # type: ignore[no-any-return]

    return decode_elements


def _decode_pairs(
    payload: Any, trusted: Collection[str], depth: int, levels: int = 3
) -> dict[Any, Any]:
    _expect(type(payload) is list, "a list")
    _expect(all(type(pair) is list and len(pair) == 2 for pair in payload), "pairs")
    depth += levels
    pairs = [
        (_decode(key, trusted, depth), _decode(value, trusted, depth)) for key, value in payload
    ]
    result: dict[Any, Any] = run(dict, pairs)
    _expect(len(result) == len(pairs), "keys that differ")
    return result


def _decode_int(payload: Any, trusted: Collection[str], depth: int) -> int:
    _expect(len(_text(payload)) <= MAX_DIGITS + 1, f"at most {MAX_DIGITS} digits")
    return _canonical(payload, int)


def _decode_float(payload: Any, trusted: Collection[str], depth: int) -> float:
    _expect(_text(payload) in ("nan", "inf", "-inf"), "nan, inf or -inf")
    return float(payload)


def _decode_timedelta(payload: Any, trusted: Collection[str], depth: int) -> dt.timedelta:
    _expect(type(payload) is list and len(payload) == 3, "three numbers")
    _expect(all(type(number) is int for number in payload), "three numbers")
    return dt.timedelta(*payload)


def _decode_moment(kind: Any) -> _Decoder:
    def decode_moment(payload: Any, trusted: Collection[str], depth: int) -> Any:
        text, fold, zone = (
            payload if type(payload) is list and len(payload) == 3 else (payload, 0, None)
        )
        _expect(type(fold) is int and fold in (0, 1), "a fold of 0 or 1")
        moment: Any = _canonical(text, kind.fromisoformat, kind.isoformat)
        _expect(moment.tzinfo is None, "a time without offset")
        return moment.replace(tzinfo=_decode_zone(zone), fold=fold)

    return decode_moment


def _decode_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if type(zone) is str:
        return ZoneInfo(zone)
    _expect(type(zone) is list and len(zone) in (1, 2) and type(zone[0]) is int, "a time zone")
    offset = dt.timedelta(microseconds=zone[0])
    return dt.timezone(offset, _text(zone[1])) if len(zone) == 2 else dt.timezone(offset)


def _decode_item(payload: Any, trusted: Collection[str], depth: int) -> Any:
    _expect(type(payload) is list and len(payload) in (2, 3), "a class and its fields")
    cls = find_class(_text(payload[0]), trusted)
    if not run(is_item_class, cls):
        raise CodecError(f"{short(payload[0])} is not an item class")
    arguments, attributes = (
        _decode_pairs(pairs, trusted, depth, levels=4) for pairs in [*payload[1:], []][:2]
    )
    _expect(all(type(name) is str for name in [*arguments, *attributes]), "names of fields")
    return run(build, cls, arguments, attributes)


_DECODERS: dict[str, _Decoder] = {
    "$tuple": lambda payload, trusted, depth: tuple(_elements(payload, trusted, depth)),
    "$set": _decode_set(set),
    "$frozenset": _decode_set(frozenset),
    "$dict": _decode_pairs,
    "$str": lambda payload, *_: _bytes(payload).decode("utf-8", "surrogatepass"),
    "$int": _decode_int,
    "$float": _decode_float,
    "$bytes": lambda payload, *_: _bytes(payload),
    "$bytearray": lambda payload, *_: bytearray(_bytes(payload)),
    "$datetime": _decode_moment(dt.datetime),
    "$date": lambda payload, *_: _canonical(payload, dt.date.fromisoformat),
    "$time": _decode_moment(dt.time),
    "$timedelta": _decode_timedelta,
    "$decimal": lambda payload, *_: _canonical(payload, Decimal),
    "$uuid": lambda payload, *_: _canonical(payload, UUID),
    "$item": _decode_item,
}
