"""Tagged JSON: keeps the Python types of what a request carries in ``meta`` and ``cb_kwargs``.

What JSON can hold is written as it is. All else is an object with one key, which begins with "$":

    $tuple $set $frozenset   [element, ...], those of sets in a fixed order
    $bytes $bytearray $str   base64; $str is UTF-8 with surrogates, for a str with lone surrogates
    $int $float              beyond +-2**53 (others read the queue in JavaScript); nan, inf, -inf
    $decimal $uuid $date     text
    $datetime $time          ISO text, or [ISO text, fold, zone]. A zone is null, a ZoneInfo key, or
                             for a datetime.timezone [microseconds] or [microseconds, name]
    $timedelta               [days, seconds, microseconds]
    $dict                    [[key, value], ...]: keys that JSON lacks, or an only key with a "$"
    $item                    [class path, [[field, value], ...]], and a third list for fields that
                             are set after construction (init=False, defaults of pydantic)

Limits: a subclass (IntEnum, OrderedDict, namedtuple) is refused: it would come back as another
type. The exception is lxml's text, a str that knows its element: it comes back as a plain str, for
CrawlSpider keeps the text of every link in meta. An item is refused unless all of its state comes
back; to know, it is read back: its constructor runs. What occurs twice comes back as two objects.
JSON of more than about 100 levels is refused. Reading finds classes only in loaded or trusted
modules, and calls only the constructors of item classes.
"""

import base64
import dataclasses
import datetime as dt
import importlib
import json
import math
import sys
from collections.abc import Callable, Collection
from decimal import Decimal
from types import MemberDescriptorType, ModuleType
from typing import Any, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attr
from itemadapter import ItemAdapter
from lxml import etree  # type: ignore[import-untyped]
from pydantic import AliasChoices, BaseModel, JsonValue
from scrapy import Item

from scrapy_apify_rq.errors import CodecError

MAX_DEPTH = 100

# Beyond it, JavaScript's only number type skips integers.
_MAX_INT = 2**53
# Python itself refuses to convert more digits between int and str (since 3.10.7).
_MAX_DIGITS = 4300
# The type flag of classes that are not static C types (CPython's Py_TPFLAGS_HEAPTYPE).
_HEAP_TYPE = 1 << 9
# Not by its name, which is private.
_LXML_TEXT: type[str] = type(etree.XPath("string()")(etree.Element("a")))
# What vars() would return, were it not for an own __getattribute__ of a module or metaclass.
_MODULE_DICT: Any = vars(ModuleType)["__dict__"]
_CLASS_DICT: Any = vars(type)["__dict__"]

_T = TypeVar("_T")
_ItemWriter: TypeAlias = "Callable[[Any, _Place], JsonValue]"
_Decoder: TypeAlias = Callable[[Any, Collection[str], int], Any]


def encode(value: object, where: str = "value") -> JsonValue:
    """Return ``value`` as JSON data that shares nothing with it.

    Raises CodecError for what would not come back the same. ``where`` begins the path it names.
    """
    root = _Place(None, where, 0, _write_checked_item)
    try:
        fits = _NATIVE.get(type(value))
        return value if fits and fits(value) else _encode(value, root)  # type: ignore[return-value]
    except RecursionError:
        raise root.refusal("nested too deeply") from None


def decode(data: JsonValue, trusted: Collection[str] = ()) -> Any:
    """Return the value that ``encode`` wrote. May import modules at or below a ``trusted`` name."""
    try:
        return _decode(data, trusted, 0)
    except RecursionError:
        raise CodecError("the stored value is nested too deeply") from None


def class_path(cls: type) -> str:
    """Return "module:Qual.Name", by which ``find_class`` finds this very class."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    try:
        found = find_class(path)
    except CodecError:
        found = None
    if found is not cls:
        raise CodecError(
            f"the class {_short(path)} cannot be found again by this name: "
            "define it at the top level of a module"
        )
    return path


def find_class(path: str, trusted: Collection[str] = ()) -> type:
    """Return the class at "module:Qual.Name". Only the import of a trusted module runs any code."""
    module_name, _, qualname = path.partition(":")
    module = sys.modules.get(module_name)
    if module is None and _may_import(module_name, trusted):
        module = _run(importlib.import_module, module_name)
    if not issubclass(type(module), ModuleType):
        raise CodecError(
            f"the class {_short(path)} is in no loaded module: if data from the queue may import "
            "its module, add it to the trusted modules"
        )
    found: Any = module
    namespace: Any = _MODULE_DICT.__get__(module)
    for name in qualname.split("."):
        found = namespace.get(name)
        # Not isinstance(found, type): it would ask the object for its __class__.
        if not issubclass(type(found), type):
            raise CodecError(f"there is no class {_short(path)}")
        namespace = _CLASS_DICT.__get__(found)
    return found  # type: ignore[no-any-return]


def _may_import(name: str, trusted: Collection[str]) -> bool:
    if name in trusted:
        return True
    below = any(name.startswith(f"{above}.") for above in trusted)
    return below and all(part.isidentifier() for part in name.split("."))


def _run(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call what may run code of the project: a constructor, a property, a __hash__, an import."""
    try:
        return function(*arguments)
    except CodecError:
        raise
    except Exception as error:
        reason = _short(" ".join(str(error).split()))
        raise CodecError(f"{type(error).__name__}: {reason}") from error


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"


def _type_name(value: object) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


# ---- Writing


class _Place:
    """Where in the value the encoder is, and what it does with the items there.

    ``depth`` counts levels of the JSON, not of the value: parsers of JSON have limits.
    """

    __slots__ = ("depth", "key", "parent", "write_item")

    def __init__(
        self, parent: "_Place | None", key: object, depth: int, write_item: _ItemWriter
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
            steps.append(f"[{place.key!r}]" if readable else f"[<{_type_name(place.key)}>]")
            place = place.parent
        return _short("".join([str(place.key), *reversed(steps)]))

    def refusal(self, reason: str) -> CodecError:
        return CodecError(f"{self}: {reason}")

    def with_writer(self, write_item: _ItemWriter) -> "_Place":
        return _Place(self.parent, self.key, self.depth, write_item)


def _is_safe_int(value: int) -> bool:
    return -_MAX_INT <= value <= _MAX_INT


def _is_unicode(value: str) -> bool:
    """Tell whether there are no lone surrogates in it."""
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
    str: _is_unicode,
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
    # Decided before any part is written: changing one's mind would double the work at each level.
    if _needs_pairs(value):
        pairs: list[JsonValue] = [
            [_part(key, place, key, 3), _part(item, place, key, 3)] for key, item in value.items()
        ]
        return {"$dict": pairs}
    return {key: _part(item, place, key, 1) for key, item in value.items()}


def _needs_pairs(value: dict[Any, Any]) -> bool:
    for key in value:
        if type(key) is not str or not (key.isascii() or _is_unicode(key)):
            return True
    return len(value) == 1 and next(iter(value)).startswith("$")


def _encode_int(value: int, place: _Place) -> JsonValue:
    try:
        digits = str(value)
    except ValueError:
        digits = ""
    if not 0 < len(digits.lstrip("-")) <= _MAX_DIGITS:
        raise place.refusal(f"an int of more than {_MAX_DIGITS} digits")
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
        if _is_unicode(name):
            return [microseconds, name]
    elif type(zone) is ZoneInfo and _is_known_zone(zone.key):
        return zone.key
    raise place.refusal(f"the time zone {_type_name(zone)} could not be restored")


def _is_known_zone(key: str | None) -> bool:
    # A ZoneInfo read from a file has no key, or any.
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


# ---- Writing items. The outermost item is checked, and with it all that are inside: checking each
# of them would double the work at each level.


def _write_checked_item(item: Any, place: _Place) -> JsonValue:
    data = _write_item(item, place.with_writer(_write_item))
    try:
        restored = _decode(data, (), place.depth)
    except CodecError as error:
        raise place.refusal(f"the {_type_name(item)} could not be restored: {error}") from error
    as_state = place.with_writer(_write_state)
    if json.dumps(_write_state(item, as_state)) != json.dumps(_write_state(restored, as_state)):
        raise place.refusal(f"the {_type_name(item)} would not be the same when restored")
    return data


def _write_item(item: Any, place: _Place) -> JsonValue:
    path = _item_class_path(item, place)
    payload: list[JsonValue] = [path]
    try:
        arguments, attributes = _run(_split, item)
    except CodecError as error:
        raise place.refusal(f"the {_type_name(item)} cannot be read: {error}") from error
    payload.append(_field_pairs(arguments, place, 4))
    if attributes:
        payload.append(_field_pairs(attributes, place, 4))
    return {"$item": payload}


def _write_state(item: Any, place: _Place) -> JsonValue:
    """Write all that the object holds, declared or not. Only for comparison: nothing reads it."""
    return [_item_class_path(item, place), _field_pairs(_state(item), place, 3)]


def _field_pairs(fields: dict[str, Any], place: _Place, levels: int) -> list[JsonValue]:
    return [[name, _part(value, place, name, levels)] for name, value in fields.items()]


def _item_class_path(item: Any, place: _Place) -> str:
    cls = type(item)
    if not _is_item_class(cls):
        raise place.refusal(
            f"a value of type {_type_name(item)} cannot be written as JSON without loss"
        )
    # A list or an exception that is also a dataclass holds what no attribute shows.
    if any(not base.__flags__ & _HEAP_TYPE for base in cls.__mro__ if base is not object):
        raise place.refusal(f"{_type_name(item)} is an item class with a built-in base")
    try:
        return class_path(cls)
    except CodecError as error:
        raise place.refusal(str(error)) from None


def _is_item_class(cls: type) -> bool:
    return not issubclass(cls, dict) and ItemAdapter.is_item_class(cls)


def _state(item: Any) -> dict[str, Any]:
    """Return the attributes in the instance's __dict__ and in its slots, by name."""
    state = dict(getattr(item, "__dict__", {}))
    for base in type(item).__mro__:
        if "__slots__" in vars(base):
            for name, slot in vars(base).items():
                if isinstance(slot, MemberDescriptorType) and _is_filled(slot, item):
                    state.setdefault(name, slot.__get__(item))
    return dict(sorted(state.items()))


def _is_filled(slot: MemberDescriptorType, item: Any) -> bool:
    try:
        slot.__get__(item)
    except AttributeError:
        return False
    return True


def _split(item: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that the constructor takes, and those that are set after it."""
    if isinstance(item, Item):
        return dict(item), {}
    if isinstance(item, BaseModel):
        # A default passed to the constructor would no longer count as unset (exclude_unset).
        given = {name: value for name, value in vars(item).items() if name in item.model_fields_set}
        unset = {name: value for name, value in vars(item).items() if name not in given}
        return {**given, **(item.model_extra or {})}, unset
    flags = _init_flags(type(item))
    arguments = {
        name: getattr(item, name) for name, init in flags.items() if init and hasattr(item, name)
    }
    attributes = {name: value for name, value in _state(item).items() if flags.get(name) is False}
    return arguments, attributes


def _init_flags(cls: Any) -> dict[str, bool]:
    """Return for each field whether the constructor takes it."""
    if dataclasses.is_dataclass(cls):
        return {field.name: field.init for field in dataclasses.fields(cls)}
    if attr.has(cls):
        return {field.name: field.init for field in attr.fields(cls)}
    return dict.fromkeys(ItemAdapter.get_field_names_from_class(cls) or (), True)


# ---- Reading


def _decode(data: Any, trusted: Collection[str], depth: int) -> Any:
    kind = type(data)
    if kind in _NATIVE:
        return data
    if depth >= MAX_DEPTH:
        raise CodecError(f"the stored value is nested more than {MAX_DEPTH} levels deep")
    if kind is list:
        return [_decode(element, trusted, depth + 1) for element in data]
    if kind is not dict or not all(type(key) is str for key in data):
        raise CodecError(f"the stored value is no JSON data: it contains a {_type_name(data)}")
    if len(data) == 1:
        ((key, payload),) = data.items()
        if key.startswith("$"):
            return _decode_tag(key, payload, trusted, depth)
    return {key: _decode(element, trusted, depth + 1) for key, element in data.items()}


def _decode_tag(tag: str, payload: Any, trusted: Collection[str], depth: int) -> Any:
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise CodecError(f"the stored value has an unknown tag: {_short(tag)}")
    try:
        return decoder(payload, trusted, depth)
    except CodecError:
        raise
    except (ArithmeticError, LookupError, OSError, ValueError) as error:
        raise CodecError(f"malformed {tag}: {_short(str(error))}") from error


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise CodecError(f"the stored value is malformed: {what} expected")


def _text(payload: Any) -> str:
    _expect(type(payload) is str, "text")
    return payload  # type: ignore[no-any-return]


def _canonical(payload: Any, parse: Callable[[str], _T], write: Callable[[_T], str] = str) -> _T:
    """Parse only what we would have written: parsers take more, differently in each Python."""
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
        result: Any = _run(kind, _elements(payload, trusted, depth))
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
    result: dict[Any, Any] = _run(dict, pairs)
    _expect(len(result) == len(pairs), "keys that differ")
    return result


def _decode_int(payload: Any, trusted: Collection[str], depth: int) -> int:
    # Before Python 3.10.7, nothing else limits the time that this takes.
    _expect(len(_text(payload)) <= _MAX_DIGITS + 1, f"at most {_MAX_DIGITS} digits")
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
    if not _run(_is_item_class, cls):
        raise CodecError(f"{_short(payload[0])} is not an item class")
    arguments, attributes = (
        _decode_pairs(pairs, trusted, depth, levels=4) for pairs in [*payload[1:], []][:2]
    )
    _expect(all(type(name) is str for name in [*arguments, *attributes]), "names of fields")
    return _run(_build, cls, arguments, attributes)


def _build(cls: Any, arguments: dict[str, Any], attributes: dict[str, Any]) -> Any:
    if issubclass(cls, Item):
        _expect(not attributes, "no attribute of an Item")
        return cls(arguments)
    names = _argument_names(cls)
    item = cls(**{names.get(field, field): value for field, value in arguments.items()})
    for field, value in attributes.items():
        _expect(_is_set_later(cls, field), "fields that the constructor does not take")
        # Frozen classes forbid the ordinary way.
        object.__setattr__(item, field, value)
    return item


def _is_set_later(cls: Any, field: str) -> bool:
    if issubclass(cls, BaseModel):
        return field in cls.model_fields
    return _init_flags(cls).get(field) is False


def _argument_names(cls: Any) -> dict[str, str]:
    """Return what the constructor calls the fields that it does not call by their name."""
    if issubclass(cls, BaseModel):
        config: Any = cls.model_config
        if config.get("populate_by_name") or config.get("validate_by_name"):
            return {}
        return {
            field: _alias(info.validation_alias) or field
            for field, info in cls.model_fields.items()
        }
    if not dataclasses.is_dataclass(cls) and attr.has(cls):
        return {field.name: field.alias or field.name for field in attr.fields(cls)}
    return {}


def _alias(alias: Any) -> str | None:
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return next((choice for choice in choices if isinstance(choice, str)), None)


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
