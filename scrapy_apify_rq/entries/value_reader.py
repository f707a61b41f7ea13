"""The reading half of ``values``: tagged JSON to Python values.

The data may come from a stranger. It is read strictly, never executed, and anything that ``encode``
would not have written raises CodecError.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import FunctionType, MethodType
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import JsonValue
from pydantic_core import TzInfo
from scrapy import Request

from scrapy_apify_rq.entries.item_classes import (
    base_of,
    build,
    is_namedtuple_class,
    is_url_class,
    new_object,
    set_state,
)
from scrapy_apify_rq.entries.names import (
    NOTHING,
    Names,
    is_item_class,
    run,
    short,
    type_name,
)
from scrapy_apify_rq.errors import CodecError, MissingError

MAX_DEPTH: Final = 100
# Python refuses to convert more digits between int and str.
MAX_DIGITS: Final = 4300
# The flags of a pattern that change what it matches, and do nothing else.
FLAGS: Final = int(re.A | re.I | re.L | re.M | re.S | re.U | re.X)

_LONGEST_FLOAT: Final = 30
_PLAIN: Final = frozenset((str, int, bool, type(None), float))

_T = TypeVar("_T")
_Decoder: TypeAlias = Callable[[Any, Names, int], Any]


def decode(data: JsonValue, names: Names = NOTHING, depth: int = 0) -> Any:
    """Return the value that ``encode`` wrote. ``names`` says what of the project it may hold.

    ``depth`` is how deeply the data is nested in other data that counts towards the limit.
    """
    try:
        return _decode(data, names, depth)
    except RecursionError:
        raise CodecError("the stored value is nested too deeply") from None


def _decode(data: Any, names: Names, depth: int) -> Any:
    kind = type(data)
    if kind in _PLAIN:
        return data
    if depth >= MAX_DEPTH:
        raise CodecError(f"the stored value is nested more than {MAX_DEPTH} levels deep")
    if kind is list:
        return [_decode(element, names, depth + 1) for element in data]
    if kind is not dict or not all(type(key) is str for key in data):
        raise CodecError(f"the stored value is not JSON data: it contains a {type_name(data)}")
    if len(data) == 1:
        ((key, payload),) = data.items()
        if key.startswith("$"):
            return _decode_tag(key, payload, names, depth)
    return {key: _decode(element, names, depth + 1) for key, element in data.items()}


def _decode_tag(tag: str, payload: Any, names: Names, depth: int) -> Any:
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise CodecError(f"the stored value has an unknown tag: {short(tag)}")
    try:
        return decoder(payload, names, depth)
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


def _list(payload: Any, *lengths: int) -> list[Any]:
    _expect(type(payload) is list, "a list")
    _expect(not lengths or len(payload) in lengths, f"a list of {lengths} elements")
    return payload  # type: ignore[no-any-return]


def _elements(payload: Any, names: Names, depth: int, levels: int = 2) -> list[Any]:
    return [_decode(element, names, depth + levels) for element in _list(payload)]


def _decode_set(kind: Callable[[list[Any]], _T]) -> _Decoder:
    def decode_elements(payload: Any, names: Names, depth: int) -> _T:
        result: Any = run(kind, _elements(payload, names, depth))
        _expect(len(result) == len(payload), "elements that differ")
        return result  # type: ignore[no-any-return]

    return decode_elements


def _decode_pairs(payload: Any, names: Names, depth: int, levels: int = 3) -> dict[Any, Any]:
    _expect(type(payload) is list, "a list")
    _expect(all(type(pair) is list and len(pair) == 2 for pair in payload), "pairs")
    depth += levels
    pairs = [(_decode(key, names, depth), _decode(value, names, depth)) for key, value in payload]
    result: dict[Any, Any] = run(dict, pairs)
    _expect(len(result) == len(pairs), "keys that differ")
    return result


def _decode_int(payload: Any, names: Names, depth: int) -> int:
    _expect(len(_text(payload)) <= MAX_DIGITS + 1, f"at most {MAX_DIGITS} digits")
    return _canonical(payload, int)


def _decode_float(payload: Any, names: Names, depth: int) -> float:
    _expect(len(_text(payload)) <= _LONGEST_FLOAT, "a float in its usual form")
    return _canonical(payload, float, repr)


def _decode_timedelta(payload: Any, names: Names, depth: int) -> dt.timedelta:
    _expect(type(payload) is list and len(payload) == 3, "three numbers")
    _expect(all(type(number) is int for number in payload), "three numbers")
    return dt.timedelta(*payload)


def _decode_moment(kind: Any) -> _Decoder:
    def decode_moment(payload: Any, names: Names, depth: int) -> Any:
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
    if type(zone) is dict:
        _expect(zone.keys() == {"pydantic"} and type(zone["pydantic"]) is int, "a time zone")
        return TzInfo(zone["pydantic"])
    _expect(type(zone) is list and len(zone) in (1, 2) and type(zone[0]) is int, "a time zone")
    offset = dt.timedelta(microseconds=zone[0])
    return dt.timezone(offset, _text(zone[1])) if len(zone) == 2 else dt.timezone(offset)


# Types of the standard library that JSON has no likes of


def _decode_complex(payload: Any, names: Names, depth: int) -> complex:
    real, imaginary = _elements(_list(payload, 2), names, depth)
    _expect(type(real) is type(imaginary) is float, "two floats")
    return complex(real, imaginary)


def _decode_counter(payload: Any, names: Names, depth: int) -> Counter[Any]:
    counter: Counter[Any] = Counter()
    dict.update(counter, _decode_pairs(payload, names, depth))
    return counter


def _decode_defaultdict(payload: Any, names: Names, depth: int) -> defaultdict[Any, Any]:
    factory = _decode(_list(payload, 2)[0], names, depth + 2)
    is_factory = isinstance(factory, (type, FunctionType, MethodType))
    _expect(factory is None or is_factory, "a class, a function or null")
    return defaultdict(factory, _decode_pairs(payload[1], names, depth, levels=4))


def _decode_deque(payload: Any, names: Names, depth: int) -> deque[Any]:
    elements, maxlen = _list(payload, 2)
    _expect(maxlen is None or (type(maxlen) is int and maxlen >= 0), "a number or null")
    _expect(maxlen is None or len(_list(elements)) <= maxlen, "as many elements as fit")
    return deque(_elements(elements, names, depth, levels=3), maxlen)


def _decode_range(payload: Any, names: Names, depth: int) -> range:
    numbers = _elements(_list(payload, 3), names, depth)
    _expect(all(type(number) is int for number in numbers), "three whole numbers")
    return range(*numbers)


def _decode_pattern(payload: Any, names: Names, depth: int) -> re.Pattern[Any]:
    pattern, flags = _list(payload, 2)
    pattern = _decode(pattern, names, depth + 2)
    _expect(type(pattern) in (str, bytes), "text or bytes")
    _expect(type(flags) is int and not flags & ~FLAGS, "flags")
    return run(re.compile, pattern, flags)


def _decode_path(payload: Any, names: Names, depth: int) -> Any:
    kind, text = _list(payload, 2)
    cls = _PATHS.get(_text(kind))
    if cls is None:
        raise CodecError(f"the stored value is malformed: {short(kind)} is not a kind of path")
    return cls(_text(_decode(text, names, depth + 2)))


_PATHS: Final[dict[str, Callable[[str], Any]]] = {
    "Path": Path,
    "PurePosixPath": PurePosixPath,
    "PureWindowsPath": PureWindowsPath,
}

# What the project has


def _decode_class(payload: Any, names: Names, depth: int) -> type:
    cls = names.find_class(_text(payload))
    if not run(names.is_value, cls):
        raise CodecError(f"the class {short(payload)} is not of the project or a trusted module")
    return cls


def _decode_method(payload: Any, names: Names, depth: int) -> Callable[..., Any]:
    if names.methods is None:
        raise CodecError("there is no spider whose methods could be found")
    return names.methods.get(_text(payload))


def _decode_request(payload: Any, names: Names, depth: int) -> Request:
    if names.requests is None:
        raise CodecError("there is no spider whose requests could be read")
    return names.requests.read_part(_list(payload, 5), depth)


def _class_of(payload: Any, names: Names, is_one: Callable[[type], bool], what: str) -> Any:
    cls = names.find_class(_text(payload))
    if not run(is_one, cls):
        raise CodecError(f"{short(payload)} is not {what}")
    return cls


def _decode_enum(payload: Any, names: Names, depth: int) -> Enum:
    path, key = _list(payload, 2)
    cls = _class_of(path, names, lambda cls: issubclass(cls, Enum), "an enum")
    if type(key) is str:
        if key not in cls._member_map_:
            raise MissingError(
                f"{short(path)} has no member {short(key)}", "give the new one the old name, too"
            )
        return cls._member_map_[key]  # type: ignore[no-any-return]
    number = _decode(key, names, depth + 2)
    _expect(type(number) is int and issubclass(cls, Flag), "the name of a member")
    return run(cls, number)  # type: ignore[no-any-return]


def _decode_namedtuple(payload: Any, names: Names, depth: int) -> Any:
    path, elements = _list(payload, 2)
    cls = _class_of(path, names, is_namedtuple_class, "a named tuple")
    if len(_list(elements)) != len(cls._fields):
        raise MissingError(f"{short(path)} has other fields than the stored one", "restore them")
    return tuple.__new__(cls, _elements(elements, names, depth, levels=3))


def _decode_url(payload: Any, names: Names, depth: int) -> Any:
    path, text = _list(payload, 2)
    return run(_class_of(path, names, is_url_class, "a URL type of pydantic"), _text(text))


def _decode_item(payload: Any, names: Names, depth: int) -> Any:
    path, *fields = _list(payload, 2, 3)
    cls = _class_of(path, names, is_item_class, "an item class")
    arguments, attributes = (
        _decode_pairs(pairs, names, depth, levels=4) for pairs in [*fields, []][:2]
    )
    _expect(all(type(name) is str for name in [*arguments, *attributes]), "names of fields")
    try:
        return run(build, cls, arguments, attributes)
    except CodecError as error:
        if not names.is_plain(cls):
            raise
        # The class may have changed since, or may change back.
        raise MissingError(f"{short(path)} does not take what is stored", str(error)) from error


def _decode_object(payload: Any, names: Names, depth: int) -> Any:
    path, pairs, *rest = _list(payload, 2, 3)
    cls = _class_of(path, names, names.is_plain, "a class of the project or a trusted module")
    base = base_of(cls)
    _expect(base is not None and (base is object) == (not rest), "an object without a reducer")
    attributes = _decode_pairs(pairs, names, depth, levels=4)
    _expect(all(type(name) is str for name in attributes), "names of attributes")
    content = _decode(rest[0], names, depth + 2) if rest else None
    _expect(base is object or type(content) is base, "the value of the built-in base")
    made = run(new_object, cls, base, content)
    run(set_state, made, attributes)
    return made


_DECODERS: dict[str, _Decoder] = {
    "$tuple": lambda payload, names, depth: tuple(_elements(payload, names, depth)),
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
    "$complex": _decode_complex,
    "$ordereddict": lambda *arguments: OrderedDict(_decode_pairs(*arguments)),
    "$counter": _decode_counter,
    "$defaultdict": _decode_defaultdict,
    "$deque": _decode_deque,
    "$range": _decode_range,
    "$pattern": _decode_pattern,
    "$path": _decode_path,
    "$class": _decode_class,
    "$function": lambda payload, names, _: names.find_function(_text(payload)),
    "$method": _decode_method,
    "$request": _decode_request,
    "$enum": _decode_enum,
    "$namedtuple": _decode_namedtuple,
    "$url": _decode_url,
    "$item": _decode_item,
    "$object": _decode_object,
}
