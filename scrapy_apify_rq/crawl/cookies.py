"""The cookie jars of Scrapy's ``CookiesMiddleware``: a record for each jar.

A jar is saved again only if one of its cookies has changed, since to write a thousand jars takes
0.4 seconds. All jars are compared with what was saved of them, because spiders change them, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from http.cookiejar import Cookie
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scrapy.http.cookies import CookieJar

from scrapy_apify_rq.entries.records import from_text, to_text
from scrapy_apify_rq.errors import CodecError

if TYPE_CHECKING:
    from scrapy_apify_rq.entries.converter import RequestConverter

# What a cookie is made of. It keeps each as an attribute of this name, but for "rest".
_ARGUMENTS: Final = tuple(inspect.signature(Cookie).parameters)
# Seconds for which jars may be compared before other work gets its turn.
_TURN: Final = 0.005

_Attributes = dict[str, Any]


class _Saved(NamedTuple):
    name: str
    """Of its record."""
    cookies: list[_Attributes]


class Cookies:
    """Their records have names that begin with ``prefix``. ``report`` is told of what cannot be
    saved or restored. Texts for people never hold a cookie's value.
    """

    def __init__(
        self,
        jars: MutableMapping[Any, CookieJar],
        prefix: str,
        converter: RequestConverter,
        report: Callable[[str], None],
    ) -> None:
        self._jars = jars
        self._prefix = prefix
        self._converter = converter
        self._report = report
        self._saved: dict[Any, _Saved] = {}
        """By the key of the jar."""

    def restore(self, records: Mapping[str, bytes]) -> int:
        """Put what was saved into the jars. Return how many cookies there were."""
        count = 0
        for name, text in records.items():
            try:
                key, cookies = self._read(text)
                jar = self._jars[key]
            except (CodecError, TypeError) as error:  # TypeError: the key is a list
                self._report(f"A cookie jar cannot be restored: {error}")
                continue
            for cookie in cookies:
                jar.set_cookie(cookie)
            self._saved[key] = _Saved(name, [vars(cookie).copy() for cookie in cookies])
            count += len(cookies)
        return count

    async def collect(self, changes: dict[str, bytes | None]) -> None:
        """Add the records that have to be written, or deleted, since the last call."""
        turn_ends = time.monotonic() + _TURN
        for key, jar in list(self._jars.items()):
            if time.monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.monotonic() + _TURN
            saved = self._saved.get(key)
            cookies = [vars(cookie) for cookie in jar]
            if cookies != (saved.cookies if saved else []):
                self._collect_jar(key, [cookie.copy() for cookie in cookies], changes)
        for key in self._saved.keys() - self._jars.keys():
            changes[self._saved.pop(key).name] = None

    def _collect_jar(
        self, key: Any, cookies: list[_Attributes], changes: dict[str, bytes | None]
    ) -> None:
        try:
            stored_key = self._converter.write_value(key, "the key of a jar of cookies")
        except CodecError as error:
            self._report(f"The cookies of a jar are not saved: {error}")
            return
        digest = hashlib.sha256(to_text(stored_key)).hexdigest()[:32]
        name = self._prefix + digest
        stored = list(self._write(cookies))
        changes[name] = to_text({"key": stored_key, "cookies": stored}) if stored else None
        self._saved[key] = _Saved(name, cookies)

    def _write(self, cookies: Iterable[_Attributes]) -> Iterable[Any]:
        for cookie in cookies:
            values = {name: cookie["_rest" if name == "rest" else name] for name in _ARGUMENTS}
            try:
                yield self._converter.write_value(values, f"the cookie {cookie['name']}")
            except CodecError as error:
                self._report(f"Not saved: {error}")

    def _read(self, text: bytes) -> tuple[Any, list[Cookie]]:
        record = from_text(text)
        if type(record) is not dict or record.keys() != {"key", "cookies"}:
            raise CodecError("the record does not hold a jar")
        key = self._converter.read_value(record["key"])
        stored = record["cookies"]
        if type(stored) is not list:
            raise CodecError("the record holds no list of cookies")
        return key, [self._cookie(self._converter.read_value(values)) for values in stored]

    def _cookie(self, values: Any) -> Cookie:
        try:
            return Cookie(**values)
        except (AttributeError, TypeError, ValueError) as error:
            raise CodecError(f"{type(error).__name__} in a cookie") from None
