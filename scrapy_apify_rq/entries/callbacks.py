"""Callbacks and errbacks are stored as names of the spider's methods, and found by them again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from scrapy import Spider

from scrapy_apify_rq.entries.names import short
from scrapy_apify_rq.errors import CodecError, MissingError

_DESCRIPTORS: Final = (property, classmethod, staticmethod)
# Scrapy calls these itself. Whoever can write to the queue must not be able to.
_OF_SCRAPY: Final = frozenset((*dir(Spider), "closed", "start_requests")) - {"parse"}


class SpiderMethods:
    """The methods of one spider, by name. Nothing else can be a callback of a stored request.

    Nor can a method that Scrapy's ``Spider`` has, but for ``parse``, or one that Scrapy calls.
    """

    def __init__(self, spider: Spider) -> None:
        self._spider = spider
        # A spider may set its name in __init__, which "scrapy rq" does not call.
        self._title = repr(getattr(spider, "name", type(spider).__name__))
        self._names: dict[Callable[..., Any], str | None] = {}

    def get(self, name: object) -> Callable[..., Any]:
        """Return the method of this name, or raise CodecError; MissingError if there may be one in
        another version of the spider.
        """
        # Looked up statically first, so that naming a property does not run it.
        static = inspect.getattr_static(self._spider, str(name), None)
        if callable(static) and not isinstance(static, _DESCRIPTORS):
            method = getattr(self._spider, str(name))
            if inspect.ismethod(method) and not str(name).startswith("__"):
                if name in _OF_SCRAPY:
                    raise CodecError(f"{name!r} is a method for Scrapy to call, not a callback")
                return method
        if static is None and _may_be_a_callback(name):
            raise MissingError(
                f"spider {self._title} has no method {short(repr(name))}",
                "give the new method the old name, too (old_name = new_name in the class)",
            )
        raise CodecError(f"spider {self._title} has no method {name!r}")

    def name_of(self, function: Callable[..., Any]) -> str:
        """Return the name by which ``get`` finds this method, or raise CodecError."""
        key = getattr(function, "__func__", None)
        if key is None or getattr(function, "__self__", None) is not self._spider:
            name = self._find_name(function)
        else:
            if key not in self._names:
                self._names[key] = self._find_name(function)
            name = self._names[key]
        if name is None:
            raise CodecError(f"{function!r} is not a method of spider {self._title}")
        return name

    def _find_name(self, function: Callable[..., Any]) -> str | None:
        if not inspect.ismethod(function):  # a lambda, perhaps a new one for each request
            return None
        own_name = getattr(function, "__name__", "")
        # The attribute differs from __name__ for private methods and for aliases.
        for name in (own_name, *vars(self._spider), *dir(type(self._spider))):
            if name.isidentifier() and self._is(name, function):
                return name
        return None

    def _is(self, name: str, function: Callable[..., Any]) -> bool:
        try:
            return self.get(name) == function
        except CodecError:
            return False


def _may_be_a_callback(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.isidentifier()
        and not name.startswith("__")
        and name not in _OF_SCRAPY
    )
