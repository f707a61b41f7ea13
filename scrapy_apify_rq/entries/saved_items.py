"""Scraped items as JSON: what the exporters would see of them, and their class for its filters.

A plain dict is written as ``values`` writes it. Any other item is

    {"$saved": [class path, [[field, value], ...]]}

and is restored without its constructor, which may change or refuse what pipelines have made of it.
A part that ``values`` refuses because it is of a subclass of a built-in type or has a time zone of
others, or an item that is no longer what its constructor would make, is written as the plain value
that it is to an exporter.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import attr
from itemadapter import ItemAdapter
from pydantic import BaseModel, JsonValue
from scrapy import Item

from scrapy_apify_rq.entries.names import NOTHING, Names, run, short, type_name
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError

TAG: Final = "$saved"
# Python's own methods: those of a subclass may return anything.
_PLAIN: Final[tuple[tuple[type, Callable[[Any], object]], ...]] = (
    (str, str.__str__),
    (int, int.__index__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
)


class ItemCodec:
    """Writes and reads items. ``names`` finds their classes."""

    def __init__(self, names: Names = NOTHING) -> None:
        self._names = names
        self._paths: dict[type, str] = {}
        """Of the classes whose items have been read back once."""

    def write(self, item: Any) -> str:
        """Raises CodecError if the item would not come back as the exporters see it."""
        try:
            text = _dump(self._encode(item))
        except CodecError:
            raise
        except Exception as error:  # of a property of the item, say
            raise CodecError(f"{type(error).__name__}: {short(str(error))}") from error
        if type(item) is not dict and type(item) not in self._paths:
            self._check(item, text)
        return text

    def _encode(self, item: Any) -> JsonValue:
        cls = type(item)
        if cls is dict:
            return self._value(item)
        path = self._paths.get(cls) or self._names.path_of_class(cls)
        fields = dict.items(item) if isinstance(item, dict) else ItemAdapter(item).items()
        return {TAG: [path, [[self._value(name), self._value(value)] for name, value in fields]]}

    def _value(self, value: Any) -> JsonValue:
        try:
            return encode(value, names=self._names)
        except CodecError:
            return encode(_plain(value), names=self._names)

    def _check(self, item: Any, text: str) -> None:
        """Once for each class: find out whether it can be restored."""
        restored = self.read(text)
        if type(restored) is not type(item) or _dump(self._encode(restored)) != text:
            raise CodecError(f"the {type_name(item)} would not be the same when restored")
        self._paths[type(item)] = self._names.path_of_class(type(item))

    def read(self, text: str) -> Any:
        """Raises CodecError if the class is missing, or the text is none of ours."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise CodecError(f"the saved item is not JSON: {short(str(error))}") from error
        if not isinstance(data, dict):
            raise CodecError("the saved item is not a JSON object")
        if data.keys() != {TAG}:
            return decode(data, self._names)
        try:
            path, pairs = data[TAG]
            cls = self._names.find_class(path)
            fields = {
                decode(name, self._names): decode(value, self._names) for name, value in pairs
            }
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, CodecError):
                raise
            raise CodecError(f"the saved item is malformed: {short(str(error))}") from error
        return run(_restore, cls, fields)


def _dump(data: JsonValue) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """The value as an exporter sees it, with built-in types in the place of their subclasses."""
    for kind, convert in _PLAIN:
        if isinstance(value, kind):
            return value if type(value) in (kind, bool) else convert(value)
    if isinstance(value, dt.datetime):
        return _plain_datetime(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in dict.items(value)}
    if isinstance(value, tuple):
        return tuple(map(_plain, tuple.__iter__(value)))
    if isinstance(value, list):
        return list(map(_plain, list.__iter__(value)))
    if isinstance(value, (set, frozenset)):
        return type(value)(map(_plain, value)) if type(value) in (set, frozenset) else set(value)
    if ItemAdapter.is_item(value):
        return {name: _plain(part) for name, part in ItemAdapter(value).items()}
    return value


def _plain_datetime(value: dt.datetime) -> dt.datetime:
    """Without a class or a time zone of others, such as those of dateutil and pytz."""
    offset, name = value.utcoffset(), value.tzname()
    zone = None
    if offset is not None:
        zone = dt.timezone(offset) if name is None else dt.timezone(offset, name)
    day, time = (value.year, value.month, value.day), (value.hour, value.minute, value.second)
    plain = dt.datetime(*day, *time, value.microsecond, zone)
    return plain if str(plain) == str(value) else value  # it may have nanoseconds


def _restore(cls: Any, fields: dict[Any, Any]) -> Any:
    """Make an item of these fields, without its constructor."""
    if issubclass(cls, dict):
        item = cls.__new__(cls)
        set_field = (OrderedDict if issubclass(cls, OrderedDict) else dict).__setitem__
        for name, value in fields.items():
            set_field(item, name, value)
        return item
    if issubclass(cls, Item):
        item = cls.__new__(cls)
        Item.__init__(item)
        for name, value in fields.items():
            Item.__setitem__(item, name, value)
        return item
    if issubclass(cls, BaseModel):
        return _restore_model(cls, fields)
    if not (attr.has(cls) or hasattr(cls, "__dataclass_fields__")):
        raise CodecError(f"{short(cls.__qualname__)} is not an item class that can be restored")
    item = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(item, name, value)  # frozen classes forbid setattr()
    return item


def _restore_model(cls: type[BaseModel], fields: dict[str, Any]) -> BaseModel:
    # Not model_construct(), which runs model_post_init().
    item = cls.__new__(cls)
    declared = {name: value for name, value in fields.items() if name in cls.model_fields}
    extra = {name: value for name, value in fields.items() if name not in declared}
    takes_extra = cls.model_config.get("extra") == "allow"
    for name, value in (
        ("__dict__", declared),
        ("__pydantic_fields_set__", set(declared)),
        ("__pydantic_extra__", extra if takes_extra else None),
        ("__pydantic_private__", None),
    ):
        object.__setattr__(item, name, value)
    return item
