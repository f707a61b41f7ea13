"""Requests to entries and back.

What Apify's schema has a field for is written there, so that other tools can read it. The rest lies
in ``userData.scrapy``, an object with a version, and only where it differs from Scrapy's default:

    v               1
    callback, errback, class        names; a class as "module:QualName"
    priority, dont_filter, encoding, method (one that the schema does not know)
    meta, cb_kwargs, cookies, flags, attributes (those of a Request subclass)   written by codec
    body            base64, for a body that is no UTF-8 text and cannot be the ``payload``
    spider_errors   how many times the request was requeued because its callback raised
    headers         [[name, [value, ...]], ...], for headers that have no exact form as texts

``userData.label`` is the name of the callback. Entries made by others hold no such object; those of
``apify.scrapy`` 4.x hold ``userData.scrapy_request``, a JSON text whose form is read here, too.
No code read from an entry is ever executed. Names are looked up: callbacks among the methods of the
spider, classes of requests and items in modules that are loaded, or else in those that
APIFY_RQ_TRUSTED_MODULES names, which are imported. Only constructors of these classes are called.
"""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from scrapy import Request, Spider

from scrapy_apify_rq.entries.item_classes import class_path, find_class
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError, ConfigError
from scrapy_apify_rq.limits import METHODS

if TYPE_CHECKING:
    from typing import Self

    from scrapy.http import Headers

    from scrapy_apify_rq.config import Config

VERSION: Final = 1
# What is wrong with an entry may be as long as the entry; it goes into the log.
_REASON_LIMIT: Final = 500
_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "method": str,
    "priority": int,
    "dont_filter": bool,
    "encoding": str,
    "meta": dict,
    "cb_kwargs": dict,
    "cookies": (dict, list, tuple),
    "flags": list,
    "attributes": dict,
}
_DESCRIPTORS: Final = (property, classmethod, staticmethod)


def target(request: Request) -> tuple[str, str, bytes]:
    """What a request asks for: by this a copy that a middleware has made is known."""
    return request.method, request.url, request.body


def stored_priority(entry: Entry) -> int:
    """``Request.priority`` of an entry, without decoding all of it."""
    return _stored_number(entry, "priority")


def stored_spider_errors(entry: Entry) -> int:
    return _stored_number(entry, "spider_errors")


def store_spider_errors(entry: Entry, count: int) -> None:
    """Add the count, which no request holds, to an entry that ``encode`` has made."""
    if count:
        entry.user_data["scrapy"]["spider_errors"] = count


def reset(entry: Entry, priority_adjust: int) -> None:
    """Make a handled entry pending again as if it had never been tried.

    ``priority_adjust`` is what each retry added to its priority: Scrapy's RETRY_PRIORITY_ADJUST.
    """
    entry.handled_at = entry.loaded_url = None
    entry.retry_count = 0
    entry.error_messages = []
    blob = entry.user_data.get("scrapy")
    if isinstance(blob, dict):
        blob.pop("spider_errors", None)
        if times := _forget_retries(blob):
            blob["priority"] = stored_priority(entry) - times * priority_adjust
    elif isinstance(text := entry.user_data.get("scrapy_request"), str):
        entry.user_data["scrapy_request"] = _without_retries(text)


def _forget_retries(stored: dict[str, Any]) -> int:
    """Set ``retry_times``, by which RetryMiddleware gives up, to 0 in the meta of a stored request;
    what it was."""
    meta = stored.get("meta")
    pairs = meta.get("$dict") if isinstance(meta, dict) else None
    times: Any = 0
    if isinstance(pairs, list):  # how codec writes a dict with keys that JSON lacks
        for pair in pairs:
            if isinstance(pair, list) and len(pair) == 2 and pair[0] == "retry_times":
                times, pair[1] = pair[1], 0
    elif isinstance(meta, dict) and "retry_times" in meta:
        times, meta["retry_times"] = meta["retry_times"], 0
    return times if isinstance(times, int) else 0


def _without_retries(scrapy_request: str) -> str:
    try:
        stored = json.loads(scrapy_request)
    except ValueError:  # a pickle, say: decode() tells what is wrong with it
        return scrapy_request
    changed = isinstance(stored, dict) and _forget_retries(stored)
    return json.dumps(stored) if changed else scrapy_request


def _stored_number(entry: Entry, name: str) -> int:
    blob = entry.user_data.get("scrapy")
    number = blob.get(name, 0) if isinstance(blob, dict) else 0
    return number if isinstance(number, int) else 0


def apify_start_key(entry: Entry) -> str | None:
    """The key of a start request of ``apify.scrapy`` 4.x, less the random text that it puts before
    the key of a request that is not to be filtered; None for all other entries."""
    try:
        stored = json.loads(entry.user_data["scrapy_request"])
        meta = stored.get("meta", {})
        is_start = meta.get("is_start_request") and stored.get("dont_filter")
        # What became of a start request later is an entry of its own, and inherits its meta.
        is_first = not (meta.get("retry_times") or meta.get("redirect_times"))
    except (KeyError, ValueError, TypeError, AttributeError):  # made by others, or broken
        return None
    return entry.unique_key.partition("|")[2] if is_start and is_first else None


class RequestConverter:
    """Writes the requests of one spider as entries and reads them back.

    ``callbacks`` names the spider method for each label of an entry made by others; ``trusted``
    names modules that may be imported to find a class.
    """

    def __init__(
        self,
        spider: Spider,
        callbacks: Mapping[str, str] | None = None,
        trusted: Collection[str] = (),
    ) -> None:
        self._spider = spider
        self._callbacks = callbacks or {}
        self._trusted = trusted
        self._names: dict[Callable[..., Any], str | None] = {}
        self._classes: dict[type[Request], str | None] = {}
        for label, name in self._callbacks.items():
            try:
                self._method(name)
            except CodecError as error:
                raise ConfigError(f"APIFY_RQ_CALLBACKS[{label!r}]: {error}") from error

    @classmethod
    def from_config(cls, spider: Spider, config: Config) -> Self:
        return cls(spider, config.callbacks, config.trusted_modules)

    def encode(self, request: Request, unique_key: str, replaced: Entry | None = None) -> Entry:
        """Write a request; raises CodecError, and only that, if it would not come back the same.

        ``replaced`` is the entry whose ``userData`` of other origin is kept.
        """
        entry = self._encode(request, unique_key, replaced)
        self._check_class(request, entry)
        return entry

    def _encode(self, request: Request, unique_key: str, replaced: Entry | None) -> Entry:
        try:
            return self._entry(request, unique_key, replaced)
        except CodecError:
            raise
        except Exception as error:  # a subclass of Request may compute its attributes
            raise CodecError(_reason(error)) from error

    def _entry(self, request: Request, unique_key: str, replaced: Entry | None) -> Entry:
        blob = self._blob(request)
        user_data = dict(replaced.user_data) if replaced is not None else {}
        if "callback" in blob and ("scrapy" in user_data or "label" not in user_data):
            user_data["label"] = blob["callback"]
        user_data["scrapy"] = blob
        if request.method not in METHODS:
            blob["method"] = request.method
        # Headers and noRetry are written even where there are none: the Apify SDK 4.1 cannot open
        # a queue that has an entry without them.
        return Entry(
            id=request_id(unique_key),
            unique_key=unique_key,
            url=request.url,
            method=request.method if request.method in METHODS else "GET",
            payload=_payload(request.body, blob),
            headers=_wire_headers(request.headers, blob),
            user_data=user_data,
            no_retry=bool(request.meta.get("dont_retry")),
        )

    def _blob(self, request: Request) -> dict[str, Any]:
        blob: dict[str, Any] = {"v": VERSION}
        if request.callback is not None:
            blob["callback"] = self._name(request.callback)
        if request.errback is not None:
            blob["errback"] = self._name(request.errback)
        if request.priority:
            blob["priority"] = request.priority
        if request.dont_filter:
            blob["dont_filter"] = True
        if request.encoding != "utf-8":
            blob["encoding"] = request.encoding
        for name in ("meta", "cb_kwargs", "cookies", "flags"):
            if value := getattr(request, name):
                blob[name] = encode(value, name)
        if type(request) is not Request:
            blob["class"] = class_path(type(request))
            blob["attributes"] = {
                name: encode(getattr(request, name), name)
                for name in request.attributes
                if name not in Request.attributes
            }
        return blob

    def _check_class(self, request: Request, entry: Entry) -> None:
        """Try once for each class whether its constructor gives the same request again."""
        cls = type(request)
        if cls is Request:
            return
        if cls not in self._classes:
            self._classes[cls] = self._loss(entry)
        if (loss := self._classes[cls]) is not None:
            raise CodecError(f"{cls.__qualname__} {loss}")

    def _loss(self, entry: Entry) -> str | None:
        """Why a request is not the same when it is read back; None if it is."""
        try:
            again = self._encode(self.decode(entry), entry.unique_key, replaced=entry)
        except CodecError as error:
            return f"cannot be made again: {error}"
        # The written forms are compared, because values in meta may not know that they are equal.
        before, after = _flat(entry), _flat(again)
        lost = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        return f"does not restore its {', '.join(lost)}" if lost else None

    def _name(self, function: Callable[..., Any]) -> str:
        """The name under which the spider has this method."""
        key = getattr(function, "__func__", None)
        if key is None or getattr(function, "__self__", None) is not self._spider:
            name = self._find_name(function)
        else:
            if key not in self._names:
                self._names[key] = self._find_name(function)
            name = self._names[key]
        if name is None:
            raise CodecError(f"{function!r} is not a method of spider {self._spider.name!r}")
        return name

    def _find_name(self, function: Callable[..., Any]) -> str | None:
        if not inspect.ismethod(function):  # a lambda: made anew, and looked for, at each request
            return None
        own_name = getattr(function, "__name__", "")
        # The attribute differs from __name__ for private methods and for aliases.
        for name in (own_name, *vars(self._spider), *dir(type(self._spider))):
            try:
                if self._method(name) == function:
                    return name
            except CodecError:
                continue
        return None

    def _method(self, name: object) -> Callable[..., Any]:
        # Looked up statically first, so that naming a property does not run it.
        static = inspect.getattr_static(self._spider, str(name), None)
        if callable(static) and not isinstance(static, _DESCRIPTORS):
            method = getattr(self._spider, str(name))
            if inspect.ismethod(method) and not str(name).startswith("__"):
                return method
        raise CodecError(f"spider {self._spider.name!r} has no method {name!r}")

    def decode(self, entry: Entry) -> Request:
        """Read an entry; raises CodecError with the reason if it is no request."""
        blob = entry.user_data.get("scrapy")
        try:
            if entry.broken is not None:
                raise CodecError(entry.broken)
            if isinstance(blob, dict) and "v" in blob:
                request = self._decode_own(entry, blob)
            elif "scrapy_request" in entry.user_data:
                request = self._decode_apify(entry)
            else:
                request = self._decode_foreign(entry)
        except CodecError as error:
            raise CodecError(str(error)[:_REASON_LIMIT]) from error
        except Exception as error:  # any constructor may object to what a stranger has written
            raise CodecError(_reason(error)) from error
        if entry.no_retry not in (None, bool(request.meta.get("dont_retry"))):
            request.meta["dont_retry"] = entry.no_retry
        return request

    def _decode_own(self, entry: Entry, blob: dict[str, Any]) -> Request:
        if blob["v"] != VERSION:
            raise CodecError(
                f"userData.scrapy has version {blob['v']!r}, this scrapy-apify-rq reads {VERSION}"
            )
        cls = self._request_class(blob["class"]) if "class" in blob else Request
        values: dict[str, Any] = {
            name: decode(blob[name], self._trusted)
            for name in ("meta", "cb_kwargs", "cookies", "flags")
            if name in blob
        }
        for name in set(cls.attributes) & set(blob.get("attributes", ())):
            values[name] = decode(blob["attributes"][name], self._trusted)
        for name, types in _TYPES.items():
            value = values.get(name, blob.get(name))
            if name in blob and not isinstance(value, types):
                raise CodecError(f"userData.scrapy.{name} is a {type(value).__name__}")
        return cls(
            url=entry.url,
            method=blob.get("method", entry.method),
            headers=_read_headers(entry, blob),
            body=_read_body(entry, blob),
            callback=self._method(blob["callback"]) if "callback" in blob else None,
            errback=self._method(blob["errback"]) if "errback" in blob else None,
            priority=blob.get("priority", 0),
            dont_filter=blob.get("dont_filter", False),
            encoding=blob.get("encoding", "utf-8"),
            **values,
        )

    def _request_class(self, path: str) -> type[Request]:
        cls = find_class(path, self._trusted)
        if not issubclass(cls, Request):
            raise CodecError(f"{path} is not a subclass of scrapy.Request")
        return cls

    def _decode_foreign(self, entry: Entry) -> Request:
        label = entry.user_data.get("label")
        name = self._callbacks.get(label) if isinstance(label, str) else None
        return Request(
            url=entry.url,
            method=entry.method,
            headers=entry.headers,
            body=_read_body(entry, {}),
            callback=None if name is None else self._method(name),
            meta={"userData": dict(entry.user_data)} if entry.user_data else None,
        )

    def _decode_apify(self, entry: Entry) -> Request:
        """Read what ``apify.scrapy`` 4.x wrote: ``Request.to_dict()`` with base64 for bytes."""
        text = entry.user_data["scrapy_request"]
        if not isinstance(text, str) or not text.startswith("{"):
            raise CodecError(
                "userData.scrapy_request is no JSON object; pickles, which apify.scrapy wrote"
                " before version 4, are refused because reading one can run any code"
            )
        stored = json.loads(text)
        cls = Request
        if path := stored.get("_class"):
            module, _, name = path.rpartition(".")
            cls = self._request_class(f"{module}:{name}")
        values = {name: stored[name] for name in cls.attributes if name in stored}
        values["headers"] = {
            name: [base64.b64decode(value) for value in stored_values]
            for name, stored_values in stored.get("headers", {}).items()
        }
        values["body"] = base64.b64decode(stored.get("body", ""))
        for name in ("callback", "errback"):
            values[name] = self._method(stored[name]) if stored.get(name) else None
        others = {k: v for k, v in entry.user_data.items() if k != "scrapy_request"}
        values["meta"] = {**values.get("meta", {}), **({"userData": others} if others else {})}
        return cls(**values)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON_LIMIT]


def _flat(entry: Entry) -> dict[str, Any]:
    """All that was written of a request, in one dict."""
    blob = entry.user_data["scrapy"]
    fields = entry.model_dump(exclude={"user_data"})
    return {**fields, **blob, **blob.get("attributes", {}), "attributes": None}


def _payload(body: bytes, blob: dict[str, Any]) -> str | None:
    if not body:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        blob["body"] = base64.b64encode(body).decode()
        return None


def _read_body(entry: Entry, blob: dict[str, Any]) -> bytes:
    if "body" in blob:
        return base64.b64decode(blob["body"], validate=True)
    if isinstance(entry.payload, dict):  # Crawlee for JavaScript may store an object
        return json.dumps(entry.payload).encode()
    return (entry.payload or "").encode()


def _wire_headers(headers: Headers, blob: dict[str, Any]) -> dict[str, str]:
    wire: dict[str, str] = {}
    exact = True
    for name, values in headers.items():
        joined = b", ".join(values)
        try:
            wire[name.decode("ascii")] = joined.decode()
        except UnicodeDecodeError:
            wire[name.decode("latin-1")] = joined.decode("latin-1")
            exact = False
        exact = exact and len(values) == 1
    if not exact:
        blob["headers"] = [
            [encode(name), [encode(value) for value in values]] for name, values in headers.items()
        ]
    return wire


def _read_headers(entry: Entry, blob: dict[str, Any]) -> list[tuple[bytes, list[bytes]]]:
    if "headers" in blob:
        return [(decode(name), [decode(v) for v in values]) for name, values in blob["headers"]]
    return [(name.encode(), [value.encode()]) for name, value in (entry.headers or {}).items()]
