"""The endpoints of datasets, of key-value stores, and of runs: a method for each.

A queue keeps its items in the one and its records in the other. As in ``endpoints``, a refusal that
is no answer raises BackendError. Each dataset and each store has rates of its own.
Source: https://docs.apify.com/api/v2/storage-datasets,
https://docs.apify.com/api/v2/storage-key-value-stores
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from pydantic_core import from_json

from scrapy_apify_rq.backends.api_models import Model
from scrapy_apify_rq.backends.apify.answers import Reading, reading
from scrapy_apify_rq.backends.apify.http import AnswerTooLong, Client, Refused
from scrapy_apify_rq.backends.apify.wire import ABOUT_CONTENT, SPENT
from scrapy_apify_rq.entries.dataset_form import FIELD
from scrapy_apify_rq.errors import BackendError
from scrapy_apify_rq.limits import CRUD_RATE, OTHER_RATE

T = TypeVar("T")

_MISSING: Final = frozenset((HTTPStatus.NOT_FOUND,))
_NO_STORE: Final = frozenset((HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN))
_UNAUTHORIZED: Final = frozenset((HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN))
_CURES: Final = {
    "datasets": "Check APIFY_RQ_DATASET and what APIFY_TOKEN may use, or set APIFY_RQ_ITEMS = False"
    " to save no items.",
    "key-value-stores": "Check what APIFY_TOKEN may use.",
}


class Storage(Model):
    id: str
    item_count: int = 0
    """Of a dataset. Lags by some seconds."""


class Run(Model):
    default_dataset_id: str | None = None
    default_key_value_store_id: str | None = None


class _Key(Model):
    key: str


class Keys(Model):
    items: list[_Key]
    is_truncated: bool = False
    next_exclusive_start_key: str | None = None


_STORAGE: Final = reading(Storage)
_RUN: Final = reading(Run)
_KEYS: Final = reading(Keys)


class ItemPage(NamedTuple):
    """A part of the items of a dataset."""

    items: list[Any]
    size: int
    """Bytes of the answer."""


def _done(body: bytes | bytearray) -> None:
    """Read an answer that tells nothing: an empty object, or none."""
    if body and not isinstance(from_json(body), dict):
        raise ValueError("not the answer to a write")


def _items(body: bytes | bytearray) -> ItemPage:
    items = from_json(body)
    if not isinstance(items, list):
        raise ValueError("not a list of items")
    return ItemPage(items, len(body))


class _Storages:
    """All storages of one kind. ``ref`` is an id, ``username~name`` or ``~name``."""

    kind: Literal["datasets", "key-value-stores"]
    noun: str

    def __init__(self, client: Client) -> None:
        self._client = client

    async def find(self, ref: str) -> Storage | None:
        return await self._call_if_any("get", "GET", ref, "", _STORAGE)

    async def get_or_create(self, name: str) -> Storage:
        return await self._call("create", "POST", "", "", _STORAGE, query={"name": name})

    async def delete(self, ref: str) -> None:
        await self._call_if_any("delete", "DELETE", ref, "", _done)

    async def _call(
        self,
        name: str,
        method: str,
        ref: str,
        path: str,
        read: Reading[T],
        *,
        rate: int = OTHER_RATE,
        expected: Collection[int] = (),
        **options: Any,
    ) -> T:
        """Raises Refused for a status that is ``expected``, and BackendError for any other."""
        whole = "/".join(filter(None, (self.kind, quote(ref, safe="~"), path)))
        name = f"{self.noun}_{name}"
        try:
            answer = await self._client.call(
                name, method, whole, read=read, rate=rate, storage=f"{self.kind}/{ref}", **options
            )
        except Refused as error:
            if error.status in expected or isinstance(error, AnswerTooLong):
                raise
            reason = "apify_rq_items" if self.kind == "datasets" else "apify_rq_unavailable"
            cure = _CURES[self.kind]
            if error.status in _UNAUTHORIZED:
                reason = "apify_rq_unauthorized"
            elif error.status == HTTPStatus.PAYMENT_REQUIRED:
                reason, cure = SPENT
            what = f"{self.kind}/{ref or options['query']['name']}"
            raise BackendError(f"{what}: {error}. {cure}", reason) from None
        return answer.data

    async def _call_if_any(
        self, name: str, method: str, ref: str, path: str, read: Reading[T], **options: Any
    ) -> T | None:
        """Return None if the API says that the thing does not exist."""
        try:
            return await self._call(name, method, ref, path, read, expected=_MISSING, **options)
        except Refused as error:
            if error.status not in _MISSING:
                raise
            return None


class Datasets(_Storages):
    kind = "datasets"
    noun = "dataset"

    async def push(self, id: str, items: Iterable[bytes]) -> None:
        """Append items, given as JSON. Raises Refused if the API does not take one of them."""
        body = b"[" + b",".join(items) + b"]"
        await self._call(
            "push", "POST", id, "items", _done, rate=CRUD_RATE, expected=ABOUT_CONTENT, body=body
        )

    async def page(self, id: str, offset: int, limit: int, *, brief: bool) -> ItemPage:
        """Return items from ``offset`` on, or only what they say about themselves, if ``brief``.
        A dataset that does not exist has none.

        Raises AnswerTooLong if the page is too long to be read.
        """
        query: dict[str, int | str] = {"offset": offset, "limit": limit}
        if brief:
            query["fields"] = FIELD
        found = await self._call_if_any("list", "GET", id, "items", _items, query=query)
        return found or ItemPage([], 0)


class Stores(_Storages):
    kind = "key-value-stores"
    noun = "store"

    async def keys(self, ref: str, prefix: str) -> list[str] | None:
        """Return the keys that begin so; None if there is no such store.

        Raises Refused if the token may not use it.
        """
        found: list[str] = []
        query = {"prefix": prefix, "limit": 1000}
        while True:
            try:
                page = await self._call(
                    "keys", "GET", ref, "keys", _KEYS, query=query, expected=_NO_STORE
                )
            except Refused as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                return None
            # A server that does not know the parameter gives all keys.
            found += [item.key for item in page.items if item.key.startswith(prefix)]
            if not page.is_truncated or page.next_exclusive_start_key is None:
                return found
            query["exclusiveStartKey"] = page.next_exclusive_start_key

    async def get(self, ref: str, key: str) -> bytes | None:
        path = f"records/{quote(key, safe='')}"
        return await self._call_if_any(
            "record_get", "GET", ref, path, bytes, rate=CRUD_RATE, may_link=True
        )

    async def put(self, ref: str, key: str, text: bytes) -> None:
        path = f"records/{quote(key, safe='')}"
        await self._call("record_put", "PUT", ref, path, _done, rate=CRUD_RATE, body=text)

    async def drop(self, ref: str, key: str) -> None:
        path = f"records/{quote(key, safe='')}"
        await self._call_if_any("record_delete", "DELETE", ref, path, _done, rate=CRUD_RATE)


async def find_run(client: Client, id: str) -> Run | None:
    """Return what a run of an Actor has. None if it is unknown to us."""
    path = f"actor-runs/{quote(id, safe='')}"
    try:
        return (await client.call("run_get", "GET", path, read=_RUN, rate=OTHER_RATE)).data
    except Refused:
        return None
