"""Item classes, and how a class is found by its name.

An entry names a class as "module:Qual.Name". ``find_class`` looks it up in loaded modules, and
imports a module only if APIFY_RQ_TRUSTED_MODULES names it: an entry that someone else wrote must
not be able to run code.

Items of all four kinds (Item, dataclass, attrs, pydantic) are taken apart into the fields that the
constructor takes and those that are set afterwards, and are built from them again.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Collection
from types import MemberDescriptorType, ModuleType
from typing import Any, Final, TypeVar

import attr
from itemadapter import ItemAdapter
from pydantic import AliasChoices, BaseModel
from scrapy import Item

from scrapy_apify_rq.errors import CodecError, MissingError

# The type flag of classes that are not static C types (CPython's Py_TPFLAGS_HEAPTYPE).
_HEAP_TYPE: Final = 1 << 9
# What vars() returns, even where a module or a metaclass has its own __getattribute__.
_MODULE_DICT: Final[Any] = vars(ModuleType)["__dict__"]
_CLASS_DICT: Final[Any] = vars(type)["__dict__"]

_T = TypeVar("_T")


# Classes and their names


def class_path(cls: type) -> str:
    """Return "module:Qual.Name"; raise CodecError unless ``find_class`` finds this class by it."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    try:
        found = find_class(path)
    except CodecError:
        found = None
    if found is not cls or not path.isprintable():
        raise CodecError(
            f"the class {short(path)} cannot be found again by this name: "
            "define it at the top level of a module"
        )
    return path


def find_class(path: str, trusted: Collection[str] = ()) -> type:
    """Return the class at "module:Qual.Name". No code runs, unless a trusted module is imported.

    Raises MissingError if there is nothing of this name, and CodecError if it is no class.
    """
    module_name, _, qualname = path.partition(":")
    if not all(part.isidentifier() for part in f"{module_name}.{qualname}".split(".")):
        raise CodecError(f"{short(path)} is not the name of a class")
    module = sys.modules.get(module_name)
    if module is None:
        module = _import(module_name, path, trusted)
    if not issubclass(type(module), ModuleType):
        raise CodecError(f"{short(module_name)} is not a module")
    found: Any = module
    namespace: Any = _MODULE_DICT.__get__(module)
    for name in qualname.split("."):
        if name not in namespace:
            raise MissingError(
                f"there is no class {short(path)}", "give the new class the old name, too"
            )
        found = namespace[name]
        # Not isinstance(found, type): it would ask the object for its __class__.
        if not issubclass(type(found), type):
            raise CodecError(f"there is no class {short(path)}")
        namespace = _CLASS_DICT.__get__(found)
    return found  # type: ignore[no-any-return]


def _import(name: str, path: str, trusted: Collection[str]) -> ModuleType:
    if not any(f"{name}.".startswith(f"{above}.") for above in trusted):
        raise MissingError(
            f"the class {short(path)} is not in a loaded module",
            "if data from the queue may import its module, add it to APIFY_RQ_TRUSTED_MODULES",
        )
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise MissingError(
            f"the class {short(path)} is in a module that cannot be imported",
            short(f"{type(error).__name__}: {error}"),
        ) from error


def type_name(value: object) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def short(text: str) -> str:
    """Cut a text from the queue for a message."""
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"


def run(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call what may run code of the project: a constructor, a property, a __hash__, an import."""
    try:
        return function(*arguments)
    except CodecError:
        raise
    except Exception as error:
        reason = short(" ".join(str(error).split()))
        raise CodecError(f"{type(error).__name__}: {reason}") from error


# Items


def is_item_class(cls: type) -> bool:
    return not issubclass(cls, dict) and ItemAdapter.is_item_class(cls)


def has_builtin_base(cls: type) -> bool:
    """Return True for a list or an exception that is also a dataclass.

    It holds values that its attributes do not show.
    """
    return any(not base.__flags__ & _HEAP_TYPE for base in cls.__mro__ if base is not object)


def state(item: Any) -> dict[str, Any]:
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
