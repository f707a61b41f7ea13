"""What of the project an entry may name, and how it is found. This is the one place that decides.

An entry names a class or a function as "module:Qual.Name", and a method of the spider by its name.
Three circles of trust:

    the project's own   packages of SPIDER_MODULES and of the spider, and what
                        APIFY_RQ_TRUSTED_MODULES names. An entry may have their modules imported,
                        and hold any of their classes, their objects and their functions
    plugins             packages of the components in the project's settings: the same, but for
                        functions
    all other modules   if they are loaded: Request subclasses, items, enums, named tuples and the
                        URLs of pydantic. Of other classes, only those in ``PLAIN`` and ``_VALUES``

A class or function belongs to the module that defines it. One that merely imports ``os.system``
does not hand it out.
"""

from __future__ import annotations

import datetime as dt
import importlib
import re
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from uuid import UUID

from itemadapter import ItemAdapter
from pydantic import JsonValue
from scrapy import Request
from scrapy.http import Headers
from scrapy.link import Link

from scrapy_apify_rq.errors import CodecError, MissingError

if TYPE_CHECKING:
    from scrapy_apify_rq.entries.callbacks import SpiderMethods
    from scrapy_apify_rq.entries.place import Place

# What vars() returns, even where a module or a metaclass has its own __getattribute__.
_MODULE_DICT: Final[Any] = vars(ModuleType)["__dict__"]
_CLASS_DICT: Final[Any] = vars(type)["__dict__"]
_QUALNAME: Final[Any] = vars(type)["__qualname__"]
# Objects of these classes consist of their attributes, and harm nobody.
PLAIN: Final = frozenset((Link, Headers, Fraction, IPv4Address, IPv6Address))
# Classes of others that may be values themselves, for example as the factory of a defaultdict.
_VALUES: Final = PLAIN | {
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, object),
    *(dt.datetime, dt.date, dt.time, dt.timedelta, type(None), range, re.Pattern),
    *(Decimal, UUID, OrderedDict, Counter, deque, Path),
}

_T = TypeVar("_T")


class Requests(Protocol):
    """Who writes and reads a Request that is part of a value."""

    def write_part(self, request: Request, place: Place) -> JsonValue: ...

    def read_part(self, data: Any, depth: int) -> Request: ...


class Names:
    """What the entries of one crawl may name. Collections are names of packages or modules."""

    def __init__(
        self,
        own: Collection[str] = (),
        plugins: Collection[str] = (),
        methods: SpiderMethods | None = None,
        requests: Requests | None = None,
    ) -> None:
        self._own = own
        self._plugins = plugins
        self.methods = methods
        self.requests = requests

    # From a name to what it names.

    def find_class(self, path: str) -> type:
        """Return the class at "module:Qual.Name". No code runs, unless a trusted module is
        imported.

        Raises MissingError if there is nothing of this name, and CodecError if it is no class.
        """
        found = self._find(path)
        if not _is_class(found):
            raise CodecError(f"there is no class {short(path)}")
        return found  # type: ignore[no-any-return]

    def find_function(self, path: str) -> FunctionType:
        found = self._find(path)
        if type(found) is not FunctionType or not self.is_own_function(found):
            raise CodecError(f"{short(path)} is not a function of the project")
        return found

    def _find(self, path: str) -> Any:
        module_name, _, qualname = path.partition(":")
        if not all(part.isidentifier() for part in f"{module_name}.{qualname}".split(".")):
            raise CodecError(f"{short(path)} is not the name of a class or a function")
        module = sys.modules.get(module_name)
        if module is None:
            module = self._import(module_name, path)
        if not issubclass(type(module), ModuleType):
            raise CodecError(f"{short(module_name)} is not a module")
        found: Any = module
        namespace: Any = _MODULE_DICT.__get__(module)
        for name in qualname.split("."):
            if namespace is None:
                raise CodecError(f"there is no class {short(path)}")
            if name not in namespace:
                raise MissingError(
                    f"there is no {short(path)}", "give the new one the old name, too"
                )
            found = namespace[name]
            namespace = _CLASS_DICT.__get__(found) if _is_class(found) else None
        return found

    def _import(self, name: str, path: str) -> ModuleType:
        if not (_is_in(name, self._own) or _is_in(name, self._plugins)):
            raise MissingError(
                f"{short(path)} is not in a loaded module",
                "if data from the queue may import its module, add it to APIFY_RQ_TRUSTED_MODULES",
            )
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a script ends itself when it is imported
            raise MissingError(
                f"{short(path)} is in a module that cannot be imported",
                short(f"{type(error).__name__}: {error}"),
            ) from error

    # And back.

    def path_of_class(self, cls: type) -> str:
        """Return "module:Qual.Name"; raise CodecError unless it leads to this class."""
        return self._path(cls, cls.__module__, cls.__qualname__)

    def path_of_function(self, function: FunctionType) -> str:
        if not self.is_own_function(function):
            raise CodecError(f"{function!r} is not a function at the top level of a trusted module")
        return self._path(function, function.__module__, function.__qualname__)

    def _path(self, thing: object, module: str, qualname: str) -> str:
        path = f"{module}:{qualname}"
        try:
            found = self._find(path)
        except CodecError:
            found = None
        if found is not thing or not path.isprintable():
            raise CodecError(
                f"{short(path)} cannot be found again by this name: "
                "define it at the top level of a module"
            )
        return path

    # What is trusted.

    def is_own_function(self, function: FunctionType) -> bool:
        return "." not in function.__qualname__ and _is_in(function.__module__, self._own)

    def is_plain(self, cls: type) -> bool:
        """Objects of this class may be made of their attributes, without its constructor."""
        return cls in PLAIN or self._is_trusted(cls)

    def is_value(self, cls: type) -> bool:
        """The class itself may be a value."""
        return (
            cls in _VALUES
            or self._is_trusted(cls)
            or issubclass(cls, (Request, Enum))
            or is_item_class(cls)
        )

    def _is_trusted(self, cls: type) -> bool:
        module = _CLASS_DICT.__get__(cls).get("__module__")
        return (
            isinstance(module, str)
            and (_is_in(module, self._own) or _is_in(module, self._plugins))
            and self._defines(cls, module)
        )

    def _defines(self, cls: type, module: str) -> bool:
        try:
            return self._find(f"{module}:{_QUALNAME.__get__(cls)}") is cls
        except CodecError:
            return False


NOTHING: Final = Names()
"""No project: what is in loaded modules, as far as everybody may name it."""


def _is_class(thing: object) -> bool:
    # Not isinstance(thing, type): it would ask the object for its __class__.
    return issubclass(type(thing), type)


def _is_in(module: str, names: Collection[str]) -> bool:
    """The module is one of these, or below one."""
    return any(f"{module}.".startswith(f"{name}.") for name in names)


def is_item_class(cls: type) -> bool:
    return not issubclass(cls, dict) and ItemAdapter.is_item_class(cls)


def type_name(value: object) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def short(text: str) -> str:
    """Cut a text from the queue for a message."""
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-60:]}"


def run(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call what may run code of the project: a constructor, a property, a __hash__."""
    try:
        return function(*arguments)
    except CodecError:
        raise
    except Exception as error:
        reason = short(" ".join(str(error).split()))
        raise CodecError(f"{type(error).__name__}: {reason}") from error
