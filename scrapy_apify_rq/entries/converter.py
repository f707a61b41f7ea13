"""Requests to entries and back.

A value for which Apify's schema has a field is written there, so that other tools can read it. The
rest goes into ``userData.scrapy``, a versioned object that holds only what differs from Scrapy's
default:

    v               1
    callback, errback, class        names; a class as "module:QualName"
    priority, dont_filter, encoding, method (if the schema does not know it)
    meta, cb_kwargs, cookies, flags, attributes (those of a Request subclass)   see ``values``
    body            base64, for a body that is not UTF-8 text and cannot be the ``payload``
    spider_errors   how many times the request was requeued because its callback raised
    headers         [[name, [value, ...]], ...], for headers that texts cannot hold exactly

``userData.label`` is the name of the callback. Entries that other programs wrote have no such
object; ``foreign`` reads them.

Code from an entry is never executed. An entry holds names: of callbacks, which are looked up among
the spider's methods, and of classes and functions; ``names`` says which. Only the constructors of
requests and items are called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from pydantic import JsonValue
from scrapy import Request, Spider

from scrapy_apify_rq.entries.builtin_values import part
from scrapy_apify_rq.entries.callbacks import SpiderMethods
from scrapy_apify_rq.entries.foreign import read_apify, read_plain
from scrapy_apify_rq.entries.mending import without_words
from scrapy_apify_rq.entries.models import TURNS, Entry
from scrapy_apify_rq.entries.names import Names, type_name
from scrapy_apify_rq.entries.place import Place
from scrapy_apify_rq.entries.request_classes import (
    Parts,
    find_request_class,
    is_certain,
    known_base,
    unlisted,
)
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.entries.wire_fields import (
    read_body,
    read_headers,
    read_url,
    write_body,
    write_headers,
)
from scrapy_apify_rq.errors import CodecError, ConfigError, MissingError
from scrapy_apify_rq.limits import METHODS

if TYPE_CHECKING:
    from typing import Self

    from scrapy.http import Headers

    from scrapy_apify_rq.config import Config

VERSION: Final = 1
_VALUES: Final = ("meta", "cb_kwargs", "cookies", "flags")
# What Scrapy's spider middlewares add to the meta of a start request.
_OF_START: Final = frozenset(("depth", "is_start_request"))
_SAME_CONTENT: Final = frozenset(("v", "priority", "dont_filter", "encoding"))
# An error message goes into the log, and may quote all of an entry.
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


class RequestConverter:
    """Writes the requests of one spider as entries and reads them back.

    ``callbacks`` names the spider method for each label of a foreign entry; ``trusted`` and
    ``plugins`` name packages of the project and of its components, see ``names``; ``schemes`` are
    those of the URLs that may be fetched, or None for all.
    """

    def __init__(
        self,
        spider: Spider,
        callbacks: Mapping[str, str] | None = None,
        trusted: Collection[str] = (),
        plugins: Collection[str] = (),
        schemes: Collection[str] | None = None,
    ) -> None:
        self._methods = SpiderMethods(spider)
        self._callbacks = callbacks or {}
        self.names = Names(trusted, plugins, self._methods, requests=self)
        self._schemes = schemes
        self._known_bases: dict[type[Request], type[Request] | None] = {}
        self.stored_form: Callable[[Request], tuple[Headers, dict[str, Any], Any] | None]
        """Headers, meta and cookies to write of a request that is part of a value, and that a crawl
        may have sent, in place of its own. None: its own."""
        self.stored_form = lambda request: None
        for label, name in self._callbacks.items():
            try:
                self._methods.get(name)
            except CodecError as error:
                raise ConfigError(f"APIFY_RQ_CALLBACKS[{label!r}]: {error}") from error

    @classmethod
    def from_config(cls, spider: Spider, config: Config) -> Self:
        # The embedded file is the user's own; a queue of the API may be written by others.
        schemes = config.schemes if config.backend == "apify" else None
        # The code of the project runs anyway.
        own = {*config.project_packages, type(spider).__module__.partition(".")[0]} - {"scrapy"}
        trusted = {*config.trusted_modules, *own}
        return cls(spider, config.callbacks, trusted, config.plugin_packages, schemes)

    # Values that a crawl keeps beside its requests

    def write_value(self, value: object, where: str) -> JsonValue:
        """Raises CodecError, which says ``where``, for what would not come back the same."""
        return encode(value, where, self.names)

    def read_value(self, data: JsonValue) -> Any:
        """Raises CodecError for what ``write_value`` would not have written."""
        return decode(data, self.names)

    # Writing

    def encode(
        self,
        request: Request,
        unique_key: str,
        *,
        replaced: Entry | None = None,
        headers: Headers | None = None,
        meta: dict[str, Any] | None = None,
        cookies: dict[str, Any] | list[Any] | None = None,
    ) -> Entry:
        """Write a request. Raises CodecError, and nothing else, if it would not come back the same.

        ``replaced`` is the entry whose ``userData`` from other programs is kept. ``headers``,
        ``meta`` and ``cookies`` are written in place of the request's own.
        """
        try:
            self._check_scheme(request.url)
            parts = _parts(request, headers, meta, cookies)
            entry = self._write(parts, unique_key, replaced)
            if not (unique_key.isascii() and self._is_certain(parts, replaced)):
                self._check(entry, request)
        except CodecError:
            raise
        except Exception as error:  # a subclass of Request may compute its attributes
            raise CodecError(_reason(error)) from error
        return entry

    def content(
        self,
        request: Request,
        *,
        headers: Headers | None = None,
        meta: dict[str, Any] | None = None,
        cookies: dict[str, Any] | list[Any] | None = None,
    ) -> str:
        """Return a short text that differs where requests with one fingerprint differ.

        It is "" for a request as ``start_urls`` makes it. ``headers``, ``meta`` and ``cookies`` are
        as for ``encode``. The priority makes no difference, nor do values that cannot be written.
        """
        try:
            parts = _parts(request, headers, meta, cookies)
            own = {name: value for name, value in parts.meta.items() if name not in _OF_START}
            blob = self._blob(parts._replace(meta=own))
            written = write_headers(parts.headers, blob)
            differences = {name: blob[name] for name in blob if name not in _SAME_CONTENT}
            if fragment := request.url.partition("#")[2]:  # a browser may make two pages of it
                differences["fragment"] = fragment
            if not (differences or written):
                return ""
            text = json.dumps([differences, written], sort_keys=True)
        except Exception:  # encode() says what is wrong
            return "unwritable"
        return sha256(text.encode("ascii")).hexdigest()[:16]

    def _write(self, parts: Parts, unique_key: str, replaced: Entry | None) -> Entry:
        request = parts.request
        blob = self._blob(parts)
        user_data = dict(replaced.user_data) if replaced is not None else {}
        if "callback" in blob and ("scrapy" in user_data or "label" not in user_data):
            user_data["label"] = blob["callback"]
        user_data["scrapy"] = blob
        # Headers and noRetry are written even if empty or false: the Apify SDK 4.1 cannot open a
        # queue with an entry that lacks them.
        return Entry(
            id=request_id(unique_key),
            unique_key=unique_key,
            url=request.url,
            method=request.method if request.method in METHODS else "GET",
            payload=write_body(request.body, blob),
            headers=write_headers(parts.headers, blob),
            user_data=user_data,
            no_retry=bool(parts.meta.get("dont_retry")),
        )

    def _blob(self, parts: Parts, place: Place | None = None) -> dict[str, Any]:
        """Write what the schema has no fields for. ``place`` is that of a request in a value."""

        def write(value: object, name: str) -> JsonValue:
            if place is not None:
                return part(value, place, name, 3)
            return encode(value, name, self.names)

        request, cls = parts.request, type(parts.request)
        blob: dict[str, Any] = {"v": VERSION}
        if request.callback is not None:
            blob["callback"] = self._methods.name_of(request.callback)
        if request.errback is not None:
            blob["errback"] = self._methods.name_of(request.errback)
        if request.priority:
            blob["priority"] = request.priority
        if request.dont_filter:
            blob["dont_filter"] = True
        if request.encoding != "utf-8":
            blob["encoding"] = request.encoding
        values = (parts.meta, request.cb_kwargs, parts.cookies, request.flags)
        for name, value in zip(_VALUES, values, strict=True):
            if value:
                blob[name] = write(value, name)
        if cls is not Request:
            blob["class"] = self.names.path_of_class(cls)
            blob["attributes"] = {
                name: write(getattr(request, name), name)
                for name in cls.attributes
                if name not in Request.attributes
            }
        if request.method not in METHODS:
            blob["method"] = request.method
        return blob

    def _is_certain(self, parts: Parts, replaced: Entry | None) -> bool:
        """Return True if the entry needs no check: what was written comes back the same."""
        cls = type(parts.request)
        if cls not in self._known_bases:
            self._known_bases[cls] = known_base(cls)
        base = self._known_bases[cls]
        if base is None or not is_certain(parts, base):
            return False
        return replaced is None or replaced.user_data.keys() <= {"label", "scrapy", TURNS}

    def _check(self, entry: Entry, request: Request) -> None:
        """Raise CodecError unless the entry can be stored and the same request read from it."""
        name = type(request).__qualname__
        try:
            stored = Entry.from_json(entry.id, entry.to_json())
        except ValueError as error:
            raise CodecError(
                f"{name} cannot be written as JSON: {error}"[:_REASON_LIMIT]
            ) from error
        try:
            restored = self.decode(stored)
        except CodecError as error:
            raise CodecError(f"{name} cannot be restored: {error}") from error
        again = self._write(_parts(restored, None, None, None), entry.unique_key, stored)
        # The written forms are compared, because values in meta may not know that they are equal.
        before, after = _flat(entry), _flat(again)
        if lost := [
            field for field in {**before, **after} if before.get(field) != after.get(field)
        ]:
            raise CodecError(f"{name} does not restore its {', '.join(lost)}")
        if lost := self._lost(request, restored):
            raise CodecError(
                f"{name} does not restore its {', '.join(lost)}: list what its constructor takes in"
                " the attributes of the class"
            )

    def _lost(self, request: Request, restored: Request) -> list[str]:
        """Name what the restored request lacks of what its class does not list."""
        after = unlisted(restored)
        return [
            name
            for name, value in unlisted(request).items()
            if name not in after or self._form(value) != self._form(after[name])
        ]

    def _form(self, value: object) -> JsonValue:
        """Values without a written form, such as locks, count by their types."""
        try:
            return encode(value, "", self.names)
        except CodecError:
            return type_name(value)

    # A request that is part of a value: see ``names.Requests``.

    def write_part(self, request: Request, place: Place) -> JsonValue:
        """Write it, and read it back if it may not come back the same."""
        parts = _parts(request, *(self.stored_form(request) or (None, None, None)))
        if not place.writer.is_checked or self._is_certain(parts, None):
            return self._write_part(parts, place)
        inner = place.written_by(place.writer._replace(is_checked=False))
        data = self._write_part(parts, inner)
        restored = self.read_part(data, place.depth)
        again = self._write_part(_parts(restored, None, None, None), inner)
        if data != again or self._lost(request, restored):
            raise place.refusal(f"the {type(request).__qualname__} would not be the same")
        return data

    def _write_part(self, parts: Parts, place: Place) -> JsonValue:
        request, blob = parts.request, self._blob(parts, place)
        method = request.method if request.method in METHODS else "GET"
        payload = write_body(request.body, blob)
        return [request.url, method, payload, dict(write_headers(parts.headers, blob)), blob]

    def read_part(self, data: Any, depth: int) -> Request:
        url, method, payload, headers, blob = data
        try:
            entry = Entry(
                id="", unique_key="", url=url, method=method, payload=payload, headers=headers
            )
            request = self._decode_own(entry, blob, depth + 3)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(_reason(error)) from error
        self._check_scheme(request.url)
        return request

    def _check_scheme(self, url: str) -> None:
        scheme = url.partition(":")[0].lower()
        if self._schemes is not None and scheme not in self._schemes:
            raise CodecError(
                f"{scheme}: is not among the schemes that a queue of the API may ask for; if it is"
                f" meant to, add {scheme!r} to APIFY_RQ_SCHEMES"
            )

    # Reading

    def decode(self, entry: Entry) -> Request:
        """Read an entry. Raises CodecError with the reason if it is not a request, and MissingError
        if another version of the project may know better.
        """
        blob, no_retry = entry.user_data.get("scrapy"), entry.no_retry
        try:
            if entry.broken is not None:
                raise CodecError(entry.broken)
            if isinstance(blob, dict) and "v" in blob:
                request = self._decode_own(entry, blob)
            elif "scrapy_request" in entry.user_data:
                request = read_apify(entry, self._methods, self.names)
                no_retry = no_retry or None  # false is all that ``apify.scrapy`` writes
            else:
                request = read_plain(entry, self._methods, self._callbacks)
        except MissingError:
            raise
        except CodecError as error:
            raise CodecError(str(error)[:_REASON_LIMIT]) from error
        except Exception as error:  # a constructor may reject what a stranger wrote in any way
            raise CodecError(_reason(error)) from error
        self._check_scheme(request.url)
        if no_retry not in (None, bool(request.meta.get("dont_retry"))):
            request.meta["dont_retry"] = no_retry
        return request

    def _decode_own(self, entry: Entry, blob: dict[str, Any], depth: int = 0) -> Request:
        if blob["v"] != VERSION:
            raise CodecError(
                f"userData.scrapy has version {blob['v']!r}, and this scrapy-apify-rq reads"
                f" {VERSION}: upgrade it, and retry the entry"
            )
        cls = find_request_class(blob["class"], self.names) if "class" in blob else Request
        values: dict[str, Any] = {
            name: decode(blob[name], self.names, depth) for name in _VALUES if name in blob
        }
        for name in set(cls.attributes) & set(blob.get("attributes", ())):
            values[name] = decode(blob["attributes"][name], self.names, depth)
        for name, types in _TYPES.items():
            value = values.get(name, blob.get(name))
            if name in blob and not isinstance(value, types):
                raise CodecError(f"userData.scrapy.{name} is a {type(value).__name__}")
        request = cls(
            url=read_url(entry.url),
            method=blob.get("method", entry.method),
            headers=read_headers(entry, blob),
            body=read_body(entry, blob),
            callback=self._methods.get(blob["callback"]) if "callback" in blob else None,
            errback=self._methods.get(blob["errback"]) if "errback" in blob else None,
            priority=blob.get("priority", 0),
            dont_filter=blob.get("dont_filter", False),
            encoding=blob.get("encoding", "utf-8"),
            **values,
        )
        if cls is not Request and (meta := values.get("meta", {})) != request.meta:
            request.meta.clear()  # of what the constructor has made of it, with its own defaults
            request.meta.update(meta)
        return request


def _parts(
    request: Request,
    headers: Headers | None,
    meta: dict[str, Any] | None,
    cookies: dict[str, Any] | list[Any] | None,
) -> Parts:
    """Return what is to be written of a request."""
    return Parts(
        request,
        request.headers if headers is None else headers,
        request.meta if meta is None else meta,
        request.cookies if cookies is None else cookies,
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON_LIMIT]


def _flat(entry: Entry) -> dict[str, Any]:
    """Return all values that were written of a request in one dict."""
    blob = entry.user_data["scrapy"]
    fields = {name: getattr(entry, name) for name in ("url", "method", "headers")}
    # Under the name of Request, since a subclass may have a payload of its own.
    fields["body"] = entry.payload
    return {**fields, **blob, **blob.get("attributes", {}), "attributes": None}


# What is read and changed of an entry without decoding it


def stored_priority(entry: Entry) -> int:
    """Return the ``Request.priority`` of an entry without decoding all of it."""
    return _stored_number(entry, "priority")


def stored_spider_errors(entry: Entry) -> int:
    return _stored_number(entry, "spider_errors")


def store_spider_errors(entry: Entry, count: int) -> None:
    """Add the count to an entry that ``encode`` made; a request does not hold it."""
    if count:
        entry.user_data["scrapy"]["spider_errors"] = count


def reset(entry: Entry, priority_adjust: int) -> None:
    """Make a handled entry pending again as if it had never been tried.

    ``priority_adjust`` is Scrapy's RETRY_PRIORITY_ADJUST, which each retry added to its priority.
    """
    entry.handled_at = entry.loaded_url = None
    entry.retry_count = 0
    entry.error_messages = []
    blob = entry.user_data.get("scrapy")
    if isinstance(blob, dict) and blob.get("v") == VERSION:
        blob.pop("spider_errors", None)
        if times := _forget_retries(blob):
            blob["priority"] = stored_priority(entry) - times * priority_adjust
    elif isinstance(text := entry.user_data.get("scrapy_request"), str):
        entry.user_data["scrapy_request"] = _without_retries(text)


def _forget_retries(stored: dict[str, Any]) -> int:
    """Set ``retry_times`` to 0 in the meta of a stored request, and return what it was.

    RetryMiddleware gives up when it reaches RETRY_TIMES.
    """
    meta = stored.get("meta")
    pairs = meta.get("$dict") if isinstance(meta, dict) else None
    times: Any = 0
    if isinstance(pairs, list):  # how a dict with keys that JSON lacks is written
        for pair in pairs:
            if isinstance(pair, list) and len(pair) == 2 and pair[0] == "retry_times":
                times, pair[1] = pair[1], 0
    elif isinstance(meta, dict) and "retry_times" in meta:
        times, meta["retry_times"] = meta["retry_times"], 0
    return times if isinstance(times, int) else 0


def _without_retries(scrapy_request: str) -> str:
    try:
        stored = json.loads(scrapy_request)
    except (ValueError, RecursionError):  # decode() says what is wrong: a pickle, perhaps
        return scrapy_request
    changed = isinstance(stored, dict) and _forget_retries(stored)
    return without_words(json.dumps(stored)) if changed else scrapy_request


def _stored_number(entry: Entry, name: str) -> int:
    blob = entry.user_data.get("scrapy")
    number = blob.get(name, 0) if isinstance(blob, dict) else 0
    return number if isinstance(number, int) else 0
