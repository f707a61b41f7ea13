"""The records of a queue, in a key-value store: that of its run, or one that is named after it.

The store may hold what others want to keep, so the keys of our records begin with a prefix.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import quote, unquote

from scrapy_apify_rq.backends.apify.http import Refused
from scrapy_apify_rq.backends.apify.parallel import run_all
from scrapy_apify_rq.backends.apify.storages import Stores

logger = logging.getLogger(__name__)

_PREFIX: Final = "scrapy-rq."
# Calls at a time.
_PARALLEL: Final = 32


class Records:
    """Call ``use`` first."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._is_alone = False
        self._ref = ""
        self._is_created = False
        self._creating = asyncio.Lock()
        self._kept: dict[str, bytes] | None = None
        self.is_usable = True
        """False once it is known that the token may not use the store."""

    def use(self, ref: str, *, is_alone: bool) -> None:
        """``is_alone``: nobody else saves records of the queue, so they are read once and kept."""
        self._ref = ref
        # One without an id is created when there is something to save.
        self._is_created = not ref.startswith("~")
        self._is_alone = is_alone
        self._kept = None

    async def read_ahead(self) -> None:
        """Read now what would be kept anyway."""
        if self._is_alone:
            await self.load("")

    async def load(self, prefix: str) -> dict[str, bytes]:
        """Return the texts of all records whose names begin so."""
        if not self.is_usable:
            return {}
        if self._is_alone and self._kept is None:
            self._kept = await self._read("")
        if self._kept is None:
            return await self._read(prefix)
        return {name: text for name, text in self._kept.items() if name.startswith(prefix)}

    async def _read(self, prefix: str) -> dict[str, bytes]:
        try:
            found = await self._stores.keys(self._ref, key_of(prefix))
        except Refused as error:
            self.is_usable = False
            logger.warning(
                "Neither items nor the state of the crawl can be saved: APIFY_TOKEN may not use the"
                " key-value store %s (%s). Give the token the permission to read and write it",
                self._ref,
                error,
            )
            return {}
        self._is_created = self._is_created or found is not None
        keys = found or []
        texts: list[bytes | None] = []
        for start in range(0, len(keys), _PARALLEL):
            part = keys[start : start + _PARALLEL]
            texts += await run_all(self._stores.get(self._ref, key) for key in part)
        pairs = zip(keys, texts, strict=True)
        return {name_of(key): text for key, text in pairs if text is not None}

    async def save(self, texts: Mapping[str, bytes | None]) -> None:
        """Store each text under its name; None deletes what was there."""
        if not (texts and self.is_usable):
            return
        async with self._creating:
            if not self._is_created:
                self._ref = (await self._stores.get_or_create(self._ref.removeprefix("~"))).id
                self._is_created = True
        pairs = list(texts.items())
        for start in range(0, len(pairs), _PARALLEL):
            await run_all(self._put(*pair) for pair in pairs[start : start + _PARALLEL])

    async def _put(self, name: str, text: bytes | None) -> None:
        if text is None:
            await self._stores.drop(self._ref, key_of(name))
        else:
            await self._stores.put(self._ref, key_of(name), text)
        if self._kept is not None:
            self._kept.pop(name, None)
            if text is not None:
                self._kept[name] = text

    async def clear(self, *, but: Collection[str]) -> None:
        """Delete all records ``but`` these."""
        names = await self.load("")
        await self.save(dict.fromkeys(names.keys() - set(but)))


def key_of(name: str) -> str:
    """The key of a record. The platform takes letters, digits and !-_.'()"""
    return _PREFIX + quote(name, safe="").replace("~", "%7E").replace("%", "!")


def name_of(key: str) -> str:
    return unquote(key.removeprefix(_PREFIX).replace("!", "%"))
