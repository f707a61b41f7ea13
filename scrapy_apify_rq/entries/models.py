"""The Apify request schema as pydantic models: wire names by alias, Python names in code.

Source: https://docs.apify.com/api/v2/request-queue-requests-get and the OpenAPI description behind
it. Absent and null mean the same, so nulls are not written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic.alias_generators import to_camel


def wire_date(value: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and Z, as the API writes dates."""
    utc = value.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='milliseconds')}Z"


def read_date(text: str) -> datetime:
    """A date of the API, in UTC unless it says otherwise; raises ValueError if it is none."""
    # Python 3.10 does not know the Z.
    date = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _null_is(make: Callable[[], Any]) -> BeforeValidator:
    """The API's own examples show null where its clients leave a field out."""
    return BeforeValidator(lambda value: make() if value is None else value)


class Entry(BaseModel):
    """A request as the queue stores it: the API's Request object."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    id: str
    unique_key: str
    url: str
    method: Annotated[str, _null_is(lambda: "GET")] = "GET"
    payload: str | dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    user_data: Annotated[dict[str, Any], _null_is(dict)] = Field(default_factory=dict)
    retry_count: Annotated[int, _null_is(int)] = 0
    no_retry: bool | None = None
    error_messages: Annotated[list[str], _null_is(list)] = Field(default_factory=list)
    loaded_url: str | None = None
    handled_at: Annotated[datetime, PlainSerializer(wire_date)] | None = None
    broken: str | None = Field(default=None, exclude=True)
    """Why this entry does not follow the schema; never written."""

    @property
    def is_handled(self) -> bool:
        return self.handled_at is not None

    @property
    def size(self) -> int:
        """Bytes of its JSON, about."""
        return 200 + 2 * len(self.url) + _size((self.payload, self.headers, self.user_data))

    @property
    def failed(self) -> bool:
        """Apify's rule: the last error, the one that caused no retry, is counted nowhere.

        Source: https://docs.apify.com/academy/api/retry-failed-requests
        """
        return self.is_handled and len(self.error_messages) > self.retry_count

    @property
    def state(self) -> Literal["pending", "handled", "failed"]:
        """As far as the entry itself tells: not whether it is locked."""
        if self.failed:
            return "failed"
        return "handled" if self.is_handled else "pending"

    def to_json(self, *, with_id: bool = True) -> str:
        exclude = None if with_id else {"id"}
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude=exclude)

    @classmethod
    def from_json(cls, id: str, text: str | bytes) -> Entry:
        """Read the stored entry of this id; one that breaks the schema comes back with ``broken``
        set.

        It must come back, with all it holds: an entry that could not even be claimed could never
        be reported.
        """
        try:
            entry = cls.model_validate_json(text)
        except ValidationError as error:
            entry = cls._from_broken(text, error)
        entry.id = id  # under any other, an ack would miss it
        return entry

    @classmethod
    def _from_broken(cls, text: str | bytes, error: ValidationError) -> Entry:
        """Keep the fields that follow the schema, and the rest as text in the user data."""
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the entry"
        fields, rest = _split(text, error)
        entry = cls.model_validate({"id": "", "uniqueKey": "", "url": "", **fields})
        entry.user_data["unreadable"] = rest
        entry.broken = f"{where}: {problem['msg']}"
        return entry


def _size(value: object) -> int:
    if isinstance(value, str):
        return len(value) + 3
    if isinstance(value, dict):
        return sum(len(key) + 4 + _size(each) for key, each in value.items())
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 6


def _split(text: str | bytes, error: ValidationError) -> tuple[dict[str, Any], str]:
    """The fields of a broken entry that are valid, and the others as text."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    fields = raw if isinstance(raw, dict) else {}
    if wrong := {problem["loc"][0] for problem in error.errors() if problem["loc"]}:
        known = {field.alias for field in Entry.model_fields.values()}
        kept = {name: fields[name] for name in fields.keys() & known - wrong}
        return kept, json.dumps({name: fields[name] for name in fields if name not in kept})
    # Not JSON, or nested more deeply than pydantic reads and writes: only plain texts are safe.
    plain = {name: fields[name] for name in ("uniqueKey", "url") if _is_plain(fields.get(name))}
    return plain, text.decode(errors="replace") if isinstance(text, bytes) else text


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()
