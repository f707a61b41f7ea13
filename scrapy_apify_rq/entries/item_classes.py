"""Items of all four kinds (Item, dataclass, attrs, pydantic), and other objects, taken apart.

An item is taken apart into the fields that its constructor takes and those that are set afterwards,
and is built from them again. Any other object is taken apart into its attributes, and is restored
without its constructor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MemberDescriptorType
from typing import Any, Final, NamedTuple

import attr
from itemadapter import ItemAdapter
from pydantic import AliasChoices, AnyUrl, BaseModel, PostgresDsn
from pydantic_core import MultiHostUrl, Url
from scrapy import Item

from scrapy_apify_rq.entries.names import PLAIN, short
from scrapy_apify_rq.errors import CodecError, MissingError

# The type flag of classes that are not static C types (CPython's Py_TPFLAGS_HEAPTYPE).
_HEAP_TYPE: Final = 1 << 9

# Items


def builtin_bases(cls: type) -> list[type]:
    """The C types that a class derives from. They hold values that its attributes do not show."""
    return [base for base in cls.__mro__ if base is not object and not base.__flags__ & _HEAP_TYPE]


def state(item: Any) -> dict[str, Any]:
    """Return the attributes in the instance's __dict__ and in its slots, by name."""
    state = dict(getattr(item, "__dict__", {}))
    for name, slot in _slots(type(item)).items():
        if _is_filled(slot, item):
            state.setdefault(name, slot.__get__(item))
    return state


def _slots(cls: type) -> dict[str, MemberDescriptorType]:
    slots: dict[str, MemberDescriptorType] = {}
    for base in cls.__mro__:
        if "__slots__" in vars(base):
            for name, slot in vars(base).items():
                if isinstance(slot, MemberDescriptorType):
                    slots.setdefault(name, slot)
    return slots


def _is_filled(slot: MemberDescriptorType, item: Any) -> bool:
    try:
        slot.__get__(item)
    except AttributeError:
        return False
    return True


def split(item: Any) -> tuple[dict[str, Any], dict[str, Any]]:
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
    attributes = {name: value for name, value in state(item).items() if flags.get(name) is False}
    return arguments, attributes


def build(cls: Any, arguments: dict[str, Any], attributes: dict[str, Any]) -> Any:
    """Make an item of what ``split`` returned."""
    if issubclass(cls, Item):
        if attributes:
            raise CodecError("the stored value is malformed: an Item has no such attributes")
        return cls(arguments)
    names = _argument_names(cls)
    item = cls(**{names.get(field, field): value for field, value in arguments.items()})
    for field, value in attributes.items():
        if not _is_set_later(cls, field):
            raise CodecError(
                f"the stored value is malformed: {short(field)} is not set after construction"
            )
        # Frozen classes forbid setattr().
        object.__setattr__(item, field, value)
    return item


def _is_set_later(cls: Any, field: str) -> bool:
    if issubclass(cls, BaseModel):
        return field in cls.model_fields
    return _init_flags(cls).get(field) is False


def _init_flags(cls: Any) -> dict[str, bool]:
    """Return for each field whether the constructor takes it."""
    if dataclasses.is_dataclass(cls):
        return {field.name: field.init for field in dataclasses.fields(cls)}
    if attr.has(cls):
        return {field.name: field.init for field in attr.fields(cls)}
    return dict.fromkeys(ItemAdapter.get_field_names_from_class(cls) or (), True)


def _argument_names(cls: Any) -> dict[str, str]:
    """Return the constructor's names for fields that it calls by another name."""
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


# Other objects


class Base(NamedTuple):
    """A built-in type that classes of the project derive from."""

    read: Callable[[Any], Any]
    """What an object of such a class holds, as the built-in type itself."""
    fill: Callable[[Any, Any], object] | None = None
    """Puts that into a new object. None: the object gets it when it is made."""


BASES: Final[dict[type, Base]] = {
    str: Base(lambda value: str.__getitem__(value, slice(None))),
    bytes: Base(lambda value: bytes.__getitem__(value, slice(None))),
    int: Base(int.__int__),
    float: Base(float.__float__),
    tuple: Base(lambda value: tuple(tuple.__iter__(value))),
    frozenset: Base(lambda value: frozenset(frozenset.__iter__(value))),
    list: Base(lambda value: list(list.__iter__(value)), list.extend),
    set: Base(lambda value: set(set.__iter__(value)), set.update),
    dict: Base(lambda value: dict(dict.items(value)), dict.update),
}
_MORE_THAN_STATE: Final = ("__reduce__", "__reduce_ex__", "__del__")
# The URL types of pydantic, all of them where they are classes.
_URLS: Final = tuple(
    base
    for kind in (Url, MultiHostUrl, AnyUrl, PostgresDsn)
    if isinstance(kind, type)
    for base in kind.__mro__[:-1]
)


def is_url_class(cls: type) -> bool:
    return issubclass(cls, _URLS)


def is_namedtuple_class(cls: type) -> bool:
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def base_of(cls: type) -> type | None:
    """The built-in type that objects of a class extend, or ``object``.

    None if they are more than its value and their attributes, so that they could not be restored.
    """
    own = [base for base in cls.__mro__ if base.__flags__ & _HEAP_TYPE and base not in PLAIN]
    if any(name in vars(base) for base in own for name in _MORE_THAN_STATE):
        return None
    match builtin_bases(cls):
        case []:
            return object
        case [base] if base in BASES:
            return base
    return None


def new_object(cls: type, base: Any, content: Any) -> Any:
    """Make an object without its constructor, with the value of its built-in base."""
    if base is object:
        return object.__new__(cls)
    fill = BASES[base].fill
    if fill is None:
        return base.__new__(cls, content)
    made = base.__new__(cls)
    fill(made, content)
    return made


def set_state(thing: Any, attributes: dict[str, Any]) -> None:
    """Give a new object what ``state`` returned."""
    slots = _slots(type(thing))
    for name, value in attributes.items():
        if name in slots:
            slots[name].__set__(thing, value)
        elif hasattr(thing, "__dict__"):
            thing.__dict__[name] = value
        else:
            name = f"attribute {short(name)} of {type(thing).__qualname__}"
            raise MissingError(f"there is no {name}", "give the new one the old name, too")
