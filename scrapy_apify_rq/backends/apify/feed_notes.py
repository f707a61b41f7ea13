"""What crawls note about their feeds, some notes to a record: see ``ItemStore.notes``.

    feeds/{owner}/{number}   {name: text, ...}

The owner is the client key of a worker, and empty in single access.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Final

from scrapy_apify_rq.backends.apify.records import Records
from scrapy_apify_rq.entries.records import owner_of
from scrapy_apify_rq.errors import BackendError

# Each change of one is written with all that are in the same record.
_NOTES: Final = 50


class FeedNotes:
    def __init__(self, records: Records, client: str) -> None:
        self._records = records
        self._prefix = f"feeds/{owner_of(client)}/"
        self._noted: list[dict[str, str]] | None = None
        """By the number of the record."""

    async def notes(self) -> dict[str, str]:
        return {name: text for part in await self._own() for name, text in part.items()}

    async def _own(self) -> list[dict[str, str]]:
        if self._noted is None:
            found = await self._records.load(self._prefix)
            numbers = sorted(int(name.removeprefix(self._prefix)) for name in found)
            self._noted = [_read(found[f"{self._prefix}{number}"]) for number in numbers]
        return self._noted

    async def note(self, texts: Mapping[str, str], *, anew: bool = False) -> None:
        parts = await self._own()
        changed: dict[str, bytes | None] = {}
        if anew:
            changed = {f"{self._prefix}{number}": None for number in range(len(parts))}
            parts.clear()
        for name, text in texts.items():
            number = next((n for n, part in enumerate(parts) if name in part), len(parts) - 1)
            if number < 0 or (name not in parts[number] and len(parts[number]) >= _NOTES):
                parts.append({})
                number = len(parts) - 1
            parts[number][name] = text
            changed[f"{self._prefix}{number}"] = b""
        await self._records.save(
            {
                name: text if text is None else json.dumps(parts[_number(name)]).encode()
                for name, text in changed.items()
            }
        )

    async def notes_of_others(self, names: Collection[str]) -> list[dict[str, str]]:
        """Those of other workers. The feeds of other queues of the account are not looked at."""
        notes: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for record, text in (await self._records.load("feeds/")).items():
            if not record.startswith(self._prefix):
                owner = record.rpartition("/")[0]
                notes[owner] |= {n: t for n, t in _read(text).items() if n in names}
        return [found for found in notes.values() if found]


def _number(record: str) -> int:
    return int(record.rpartition("/")[2])


def _read(text: bytes) -> dict[str, str]:
    try:
        return {str(name): str(note) for name, note in json.loads(text).items()}
    except (AttributeError, ValueError) as error:
        raise BackendError(
            f"Another program has changed what is noted about the feeds of this crawl ({error})."
            " scrapy rq items exports what is saved; after scrapy rq purge the crawl begins anew."
        ) from error
