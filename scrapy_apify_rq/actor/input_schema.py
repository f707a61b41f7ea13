"""The input schema of a spider: which input an Actor takes, as the platform shows it to people.

https://docs.apify.com/platform/actors/development/actor-definition/input-schema/specification/v1
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Final, Literal, Union, get_args, get_origin

from scrapy import Spider

from scrapy_apify_rq.actor.input_fields import START_URLS

_TEXT: Final = {"type": "string", "editor": "textfield"}
# The first that fits.
_TYPES: Final[tuple[tuple[tuple[Any, ...], dict[str, str]], ...]] = (
    ((bool,), {"type": "boolean"}),
    ((int,), {"type": "integer"}),
    ((float,), {"type": "number"}),
    ((str,), _TEXT),
    ((Mapping,), {"type": "object", "editor": "json"}),
    ((Sequence, AbstractSet), {"type": "array", "editor": "json"}),
)
_PYTHON: Final[Mapping[str, Any]] = {
    "boolean": bool,
    "integer": int,
    "number": int | float,
    "string": str,
    "object": dict,
    "array": list,
}
_TEXTS: Final = {"type": "array", "editor": "stringList"}
_FIELDS: Final = {
    "maxRequestsPerCrawl": {
        "title": "Most pages",
        "type": "integer",
        "description": "The crawl stops after so many pages; 0 is no limit.",
        "minimum": 0,
    },
    "maxConcurrency": {
        "title": "Requests at a time",
        "type": "integer",
        "description": "How many pages to fetch at the same time, at most.",
        "minimum": 1,
    },
    "maxRequestRetries": {
        "title": "Retries",
        "type": "integer",
        "description": "How many times to try a page again that could not be fetched.",
        "minimum": 0,
    },
    "proxyConfiguration": {
        "title": "Proxy",
        "type": "object",
        "description": "The proxies through which to fetch pages.",
        "editor": "proxy",
    },
}


def input_schema(spidercls: type[Spider], title: str) -> dict[str, Any]:
    """Describe the arguments of ``__init__`` by their type hints; one without is a text."""
    properties: dict[str, Any] = {}
    required = []
    if spidercls.start is Spider.start or hasattr(spidercls, "start_urls"):
        properties[START_URLS] = _start_urls(spidercls)
    for parameter, hint in _parameters(spidercls):
        name = parameter.name
        if name == "start_urls":
            name, properties[START_URLS] = START_URLS, _start_urls(spidercls)
        else:
            properties[name] = _property(name, hint, parameter.default)
        if parameter.default is parameter.empty:
            required.append(name)
    properties |= {name: field for name, field in _FIELDS.items() if name not in properties}
    schema = {"title": title, "type": "object", "schemaVersion": 1, "properties": properties}
    return schema | ({"required": required} if required else {})


def _parameters(spidercls: type[Spider]) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Those of each ``__init__`` that passes others on to its parent, but not those of Scrapy."""
    seen = set()
    for cls in spidercls.__mro__:
        init = vars(cls).get("__init__")
        if cls.__module__.startswith("scrapy.") or init is None:
            continue
        try:
            hints = typing.get_type_hints(init)
        except Exception:  # a name that only type checkers know
            hints = {}
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if is_named and parameter.name not in seen:
                seen.add(parameter.name)
                yield parameter, hints.get(parameter.name, str)
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            return


def _property(name: str, hint: Any, default: Any) -> dict[str, Any]:
    words = name.replace("_", " ")
    found = {
        "title": words[:1].upper() + words[1:],
        "description": f"The spider's argument {name}.",
        **_type(hint),
    }
    if default is None or type(None) in get_args(hint):
        found["nullable"] = True
    # Another default is left to the spider.
    is_bool = isinstance(default, bool)
    if isinstance(default, _PYTHON[found["type"]]) and is_bool == (found["type"] == "boolean"):
        with suppress(TypeError, ValueError):  # JSON cannot hold it
            json.dumps(default, allow_nan=False)
            found["default"] = default
    return found


def _type(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        (first, *others) = [one for one in arguments if one is not type(None)]
        return _TEXT if others else _type(first)
    if origin is Literal and all(isinstance(one, str) for one in arguments):
        return {"type": "string", "editor": "select", "enum": list(arguments)}
    if not inspect.isclass(origin):
        return _TEXT
    for bases, found in _TYPES:
        if issubclass(origin, bases):
            is_texts = found["type"] == "array" and arguments[:1] == (str,)
            return _TEXTS if is_texts else found
    return _TEXT


def _start_urls(spidercls: type[Spider]) -> dict[str, Any]:
    urls = getattr(spidercls, "start_urls", None) or []
    found = {
        "title": "Start URLs",
        "type": "array",
        "description": "The pages with which the crawl begins.",
        "editor": "requestListSources",
    }
    return found | ({"prefill": [{"url": str(url)} for url in urls]} if urls else {})
