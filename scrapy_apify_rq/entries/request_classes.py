"""Which requests are certain to come back from their entry as they were.

A request is restored by calling its class with the stored values as keyword arguments. Scrapy's own
constructors keep what they are given, under conditions that are cheap to check. ``is_certain``
checks them; any other request has to be restored once to see whether it is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from inspect import getattr_static
from typing import Any, Final, NamedTuple

from scrapy import FormRequest, Request
from scrapy.http import Headers, JsonRequest, XmlRpcRequest
from w3lib.url import safe_url_string

from scrapy_apify_rq.entries.item_classes import state
from scrapy_apify_rq.entries.names import Names
from scrapy_apify_rq.errors import CodecError
from scrapy_apify_rq.limits import METHODS

# The headers that a constructor adds where they are missing.
_DEFAULT_HEADERS: Final[Mapping[type[Request], tuple[str, ...]]] = {
    Request: (),
    FormRequest: (),
    JsonRequest: ("Content-Type", "Accept"),
    XmlRpcRequest: ("Content-Type",),
}
# A subclass that defines none of these names constructs its requests as its base class does.
_CONSTRUCTION: Final = (vars(Request).keys() | vars(object).keys() | {"__getattr__"}) - {
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__slots__",
    "__static_attributes__",
    "__weakref__",
    "attributes",
}
# What Scrapy's own requests consist of, besides what they list in ``attributes``.
_STATE: Final = frozenset().union(*(state(cls("https://a.b")) for cls in _DEFAULT_HEADERS))
_COOKIES: Final = (dict, list, tuple)
# Addresses that Scrapy's constructor is certain to leave alone, for a quick look.
_SAFE: Final = r"(?:[\w.~!$&()*+,/:;=@-]++|%[0-9A-Fa-f]{2})"
_PLAIN_URL: Final = re.compile(
    rf"https?://[a-z0-9.-]+(?::[1-9][0-9]{{0,3}})?/{_SAFE}*+(?:\?{_SAFE}++)?(?:#{_SAFE}++)?",
    re.ASCII,
)
# Beyond it, not every reader of JSON reads a number exactly.
_MAX_INT: Final = 2**53


class Parts(NamedTuple):
    """What is written of a request: its own values, or others in their place."""

    request: Request
    headers: Headers
    meta: dict[str, Any]
    cookies: object


def find_request_class(path: str, names: Names) -> type[Request]:
    cls = names.find_class(path)
    if not issubclass(cls, Request):
        raise CodecError(f"{path} is not a subclass of scrapy.Request")
    return cls


def known_base(cls: type[Request]) -> type[Request] | None:
    """Return the class of Scrapy that constructs the requests of this class; None if none does."""
    base = next(base for base in cls.__mro__ if base in _DEFAULT_HEADERS)
    if type(cls) is not type(base) or cls.attributes != base.attributes:
        return None
    own = [vars(one) for one in set(cls.__mro__) - set(base.__mro__)]
    if any(one.keys() & _CONSTRUCTION or one.get("__slots__") for one in own):
        return None
    return base


def unlisted(request: Request) -> dict[str, Any]:
    """Return what the request holds that its class does not list in ``attributes``.

    Its constructor may make the same again. A cached property is made when somebody asks for it.
    """
    cls = type(request)
    return {
        name: value
        for name, value in state(request).items()
        if name not in _STATE
        and name not in cls.attributes
        and not isinstance(getattr_static(cls, name, None), cached_property)
    }


def is_certain(parts: Parts, base: type[Request]) -> bool:
    """Return True if ``base`` restores a request with these values. False: it may or may not."""
    request = parts.request
    return (
        request.method in METHODS
        and type(request.priority) is int
        and -_MAX_INT <= request.priority <= _MAX_INT
        and type(request.flags) is list
        and type(parts.cookies) in _COOKIES
        and getattr(request, "__dict__", {}).keys() <= _STATE
        and _keeps_headers(parts, base)
        and _keeps_url(request.url, request.encoding, parts.meta)
    )


def _keeps_headers(parts: Parts, base: type[Request]) -> bool:
    headers = parts.headers
    # Scrapy's Headers writes each name in title case.
    if type(headers) is not Headers or not all(map(bytes.istitle, headers)):
        return False
    if base is JsonRequest and "sort_keys" not in parts.request.dumps_kwargs:  # type: ignore[attr-defined]
        return False
    defaults = _DEFAULT_HEADERS[base]
    return not defaults or all(name in headers for name in defaults)


def _keeps_url(url: str, encoding: str, meta: Mapping[str, Any]) -> bool:
    if encoding == "utf-8" and _PLAIN_URL.fullmatch(url):
        return True
    if not (type(encoding) is str and encoding.isascii() and url.isascii()):
        return False
    # Scrapy keeps an unsafe address if meta has "verbatim_url", which a middleware may then remove.
    return bool(meta.get("verbatim_url")) or safe_url_string(url, encoding) == url
