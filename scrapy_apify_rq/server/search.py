"""Finds entries for the page, in slices: a search of a million entries is many calls of a moment.

A slice ends when enough was found or its time is up, and says where the next one goes on. So no
call holds up the crawls that use the server, and the page can show how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from scrapy_apify_rq.backends.sqlite.survey import Survey, Which
from scrapy_apify_rq.backends.sqlite.table import Row
from scrapy_apify_rq.entries.models import Entry, wire_date
from scrapy_apify_rq.server.answers import date

NO_MESSAGE: Final = "(no message)"
# Seconds of a slice.
_SLICE: Final = 0.03
# Characters of a text in a list. The entry itself has the rest.
_SHOWN: Final = 300


# Where a walk has come to: what SQLite can hold.
Place = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Filter(BaseModel):
    """What entries have in common. Texts are parts, in any case; ``message`` is the whole one."""

    model_config = ConfigDict(alias_generator=to_camel)

    state: Which = "all"
    url: str = ""
    host: str = ""
    label: str = ""
    message: str | None = None
    after: Place | None = None

    def fits(self, entry: Shown) -> bool:
        return (
            _has(entry.url, self.url)
            and (not self.host or _has(entry.host, self.host))
            and _has(entry.label, self.label)
            and (self.message is None or entry.message == self.message)
        )


class _UserData(BaseModel):
    label: Any = None


class Shown(BaseModel):
    """The parts of an entry that a list shows. The rest is skipped, which is faster."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)

    url: str
    method: str = "GET"
    user_data: Annotated[
        _UserData,
        BeforeValidator(lambda value: value if isinstance(value, dict) else {}),
    ] = Field(default_factory=_UserData)
    retry_count: int = 0
    handled_at: Any = None
    error_messages: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, row: Row) -> Shown:
        try:
            return cls.model_validate_json(row.json)
        except ValidationError:  # another program wrote it
            return cls.model_validate(Entry.from_json(row.id, row.json))

    @property
    def label(self) -> str:
        label = self.user_data.label
        return "" if label is None else str(label)

    @property
    def host(self) -> str:
        """With its port."""
        return self.url.partition("://")[2].partition("/")[0].rpartition("@")[2]

    @property
    def handled_text(self) -> str | None:
        if isinstance(self.handled_at, datetime):
            return wire_date(self.handled_at)
        return self.handled_at if isinstance(self.handled_at, str) else None

    @property
    def message(self) -> str:
        return self.error_messages[-1] if self.error_messages else NO_MESSAGE

    @property
    def failed(self) -> bool:
        return self.handled_at is not None and len(self.error_messages) > self.retry_count


class Slice:
    """One slice of a walk over the entries that fit a filter."""

    def __init__(self, survey: Survey, key: int, wanted: Filter, limit: int | None) -> None:
        self._survey, self._key, self._wanted, self._limit = survey, key, wanted, limit
        self.scanned = 0
        self.next: int | None = None
        """Where to go on; None at the end."""

    def run(self, take: Callable[[Row, Shown], object]) -> None:
        wanted, found, self.scanned = self._wanted, 0, 0
        until = time.monotonic() + _SLICE
        for at, row in self._survey.walk(self._key, wanted.state, wanted.after):
            if row is not None:
                self.scanned += 1
                shown = Shown.of(row)
                if wanted.fits(shown):
                    take(row, shown)
                    found += 1
            if found == self._limit or time.monotonic() > until:
                self.next = at
                return
        self.next = None


def as_listed(row: Row, shown: Shown) -> dict[str, Any]:
    state = "handled" if row.position is None else "pending"
    if row.is_leased:
        state = "locked"
    elif state == "handled" and shown.failed:
        state = "failed"
    data = {
        "id": row.id,
        "url": shown.url[:_SHOWN],
        "method": shown.method[:_SHOWN],
        "label": shown.label[:_SHOWN],
        "host": shown.host[:_SHOWN],
        "retryCount": shown.retry_count,
        "handledAt": shown.handled_text,
        "state": state,
        "message": shown.message[:_SHOWN] if shown.error_messages else "",
    }
    if row.is_leased and row.lock_expires_at is not None:
        data |= {"lockByClient": row.lock_by or "", "lockExpiresAt": date(row.lock_expires_at)}
    return data


def _has(text: str, part: str) -> bool:
    return not part or part.lower() in text.lower()
