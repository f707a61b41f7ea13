"""Writes what is not of a built-in type: items, enums, objects, classes, requests. See ``values``.

What has a constructor that runs (items) is read back at once, to see whether it comes back the
same.
"""

from __future__ import annotations

import json
import sys
from enum import Enum, Flag
from types import FunctionType, MethodType
from typing import Any, Final

from pydantic import JsonValue
from scrapy import Request

from scrapy_apify_rq.entries.builtin_values import is_unicode, part, parts
from scrapy_apify_rq.entries.item_classes import (
    BASES,
    base_of,
    builtin_bases,
    is_namedtuple_class,
    is_url_class,
    new_object,
    split,
    state,
)
from scrapy_apify_rq.entries.names import is_item_class, run, type_name
from scrapy_apify_rq.entries.place import Place
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.errors import CodecError

# The kinds of numpy's scalars that are numbers and texts of Python, but for their size.
_NUMPY_KINDS: Final = "biufcUS"
_PYTHON: Final = (bool, int, float, complex, str, bytes)


def write_other(value: Any, place: Place) -> JsonValue:
    """Write a value that is not of a built-in type, or raise CodecError."""
    cls = type(value)
    if issubclass(cls, type):
        return _write_class(value, place)
    if cls is FunctionType:
        return {"$function": _at(place, place.writer.names.path_of_function, value)}
    if cls is MethodType:
        return _write_method(value, place)
    if issubclass(cls, Request):
        return _write_request(value, place)
    if issubclass(cls, Enum):
        return _write_enum(value, place)
    if is_url_class(cls):
        return _write_url(value, place)
    if _is_numpy_scalar(value):
        return _write_numpy_scalar(value, place)
    if is_namedtuple_class(cls) and _has_fields_only(value):
        elements = parts(tuple(tuple.__iter__(value)), place, 3)
        return {"$namedtuple": [_class_path(cls, place), elements]}
    if is_item_class(cls):
        return _write_item(value, place)
    return _write_object(value, place)


def _has_fields_only(value: Any) -> bool:
    return tuple.__len__(value) == len(value._fields) and not getattr(value, "__dict__", None)


def _at(place: Place, function: Any, *arguments: Any) -> Any:
    """Call what may refuse, and say where that was."""
    try:
        return run(function, *arguments)
    except CodecError as error:
        raise place.refusal(str(error)) from error


def _class_path(cls: type, place: Place) -> str:
    path: str = _at(place, place.writer.names.path_of_class, cls)
    return path


def _write_class(cls: type, place: Place) -> JsonValue:
    path = _class_path(cls, place)
    if not place.writer.names.is_value(cls):
        raise place.refusal(f"the class {path} is not of the project or a trusted module")
    return {"$class": path}


def _write_method(method: MethodType, place: Place) -> JsonValue:
    methods = place.writer.names.methods
    if methods is None:
        raise place.refusal("a method could not be restored without a spider")
    return {"$method": _at(place, methods.name_of, method)}


def _write_request(request: Request, place: Place) -> JsonValue:
    requests = place.writer.names.requests
    if requests is None:
        raise place.refusal("a Request could not be restored without a spider")
    return {"$request": requests.write_part(request, place)}


def _write_enum(member: Enum, place: Place) -> JsonValue:
    cls = type(member)
    path = _class_path(cls, place)
    if cls._member_map_.get(member.name) is member:
        return {"$enum": [path, member.name]}
    if isinstance(member, Flag) and cls(member.value) == member:
        return {"$enum": [path, part(member.value, place, "value", 2)]}
    raise place.refusal(f"{type_name(member)} has no such member")


def _write_url(url: Any, place: Place) -> JsonValue:
    cls, text = type(url), str(url)
    path = _class_path(cls, place)
    if not is_unicode(text) or _at(place, cls, text) != url:
        raise place.refusal(f"the {type_name(url)} would not be the same when restored")
    return {"$url": [path, text]}


def _is_numpy_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def _write_numpy_scalar(value: Any, place: Place) -> JsonValue:
    item = value.item()
    if value.dtype.kind not in _NUMPY_KINDS or type(item) not in _PYTHON:
        raise place.refusal(f"Python has no type for a {type_name(value)}")
    return part(item, place, "item()", 0)


# Items


def _write_item(item: Any, place: Place) -> JsonValue:
    if not place.writer.is_checked:
        return _write_fields(item, place)
    unchecked = place.writer._replace(is_checked=False)
    try:
        data = _write_fields(item, place.written_by(unchecked))
        _check_item(item, data, place)
    except CodecError:
        if not place.writer.names.is_plain(type(item)):
            raise
        try:  # without its constructor
            return _write_object(item, place)
        except CodecError:
            pass
        raise
    return data


def _check_item(item: Any, data: JsonValue, place: Place) -> None:
    try:
        restored = decode(data, place.writer.names, place.depth)
    except CodecError as error:
        raise place.refusal(f"the {type_name(item)} could not be restored: {error}") from error
    as_state = place.written_by(place.writer._replace(write_other=_write_state, is_checked=False))
    if json.dumps(_write_state(item, as_state)) != json.dumps(_write_state(restored, as_state)):
        raise place.refusal(f"the {type_name(item)} would not be the same when restored")


def _write_fields(item: Any, place: Place) -> JsonValue:
    payload: list[JsonValue] = [_item_class_path(item, place)]
    try:
        arguments, attributes = run(split, item)
    except CodecError as error:
        raise place.refusal(f"the {type_name(item)} cannot be read: {error}") from error
    payload.append(_field_pairs(arguments, place, 4))
    if attributes:
        payload.append(_field_pairs(attributes, place, 4))
    return {"$item": payload}


def _write_state(value: Any, place: Place) -> JsonValue:
    """Write all attributes, declared or not, to compare two items. Nobody reads this form."""
    if not is_item_class(type(value)):
        return write_other(value, place)
    return [
        _item_class_path(value, place),
        _field_pairs(dict(sorted(state(value).items())), place, 3),
    ]


def _field_pairs(fields: dict[str, Any], place: Place, levels: int) -> list[JsonValue]:
    for name in fields:
        if not is_unicode(name):  # a field of an Item or an extra one of pydantic has any name
            raise place.refusal(f"the name of field {name!r} cannot be written as JSON")
    return [[name, part(value, place, name, levels)] for name, value in fields.items()]


def _item_class_path(item: Any, place: Place) -> str:
    if builtin_bases(type(item)):
        raise place.refusal(f"{type_name(item)} is an item class with a built-in base")
    return _class_path(type(item), place)


# Other objects


def _write_object(value: Any, place: Place) -> JsonValue:
    cls = type(value)
    base = base_of(cls) if place.writer.names.is_plain(cls) else None
    if base is None:
        raise place.refusal(
            f"a value of type {type_name(value)} cannot be written as JSON without loss"
        )
    content = None if base is object else BASES[base].read(value)
    _at(place, new_object, cls, base, content)  # some C types only say so when asked
    payload: list[JsonValue] = [
        _class_path(cls, place),
        _field_pairs(_at(place, state, value), place, 4),
    ]
    if base is not object:
        payload.append(part(content, place, base.__name__, 2))
    return {"$object": payload}
