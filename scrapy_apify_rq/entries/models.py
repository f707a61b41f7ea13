"""Apify's request schema as a pydantic model: wire names by alias, Python names in code.

Source: https://docs.apify.com/api/v2/request-queue-requests-get and its OpenAPI description. Absent
and null mean the same, so nulls are not written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic.alias_generators import to_camel

# Bytes, about: of an entry with empty fields; of quotes and a comma; of a number, true or null.
_OVERHEAD: Final = 160
_PUNCTUATION: Final = 6
_NUMBER: Final = 4


def wire_date(value: datetime) -> str:
    """Write a date as the API does: ISO 8601 in UTC, with milliseconds and Z."""
    utc = value.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='milliseconds')}Z"


def read_date(text: str) -> datetime:
    """Read a date of the API, in UTC unless it names an offset; raises ValueError if it cannot."""
    date = datetime.fromisoformat(text.upper())  # Python refuses a small z
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _null_is(make: Callable[[], Any]) -> BeforeValidator:
    """Read null as an absent field: the API's own examples show it so."""
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
    def failed(self) -> bool:
        """Apify's rule: each retry left an error message, and the last error caused no retry.

        Source: https://docs.apify.com/academy/api/retry-failed-requests
        """
        return self.is_handled and len(self.error_messages) > self.retry_count

    @property
    def state(self) -> Literal["pending", "handled", "failed"]:
        """What the entry itself shows. It does not show whether it is locked."""
        if self.failed:
            return "failed"
        return "handled" if self.is_handled else "pending"

    @property
    def size(self) -> int:
        """About how many bytes its JSON has; cheap, for limits of memory."""
        size = _OVERHEAD + len(self.url) + len(self.unique_key) + _size(self.user_data)
        if self.payload:
            size += _size({"": self.payload})
        for name, value in (self.headers or {}).items():
            size += len(name) + len(value) + _PUNCTUATION
        for message in self.error_messages:
            size += len(message) + _PUNCTUATION
        return size

    def to_json(self, *, with_id: bool = True) -> str:
        exclude = None if with_id else {"id"}
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude=exclude)

    @classmethod
    def from_json(cls, id: str, text: str | bytes) -> Entry:
        """Read the stored entry of this id. If it breaks the schema, ``broken`` says how.

        Such an entry has to come back too, with all it holds: one that nobody can claim could never
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


def _size(root: dict[str, Any]) -> int:
    """Return about how many bytes the JSON of this value has."""
    size = 0
    containers: list[Any] = [root]
    for container in containers:  # grows while we walk it: a recursion costs more
        size += _PUNCTUATION * len(container)
        if type(container) is dict:
            for name in container:
                size += len(name)
            container = container.values()
        for value in container:
            if isinstance(value, str):
                size += len(value) if value.isascii() else 2 * len(value)
            elif type(value) is dict or type(value) is list:
                containers.append(value)
            else:
                size += _NUMBER
    return size


def _split(text: str | bytes, error: ValidationError) -> tuple[dict[str, Any], str]:
    """Return the valid fields of a broken entry, and the others as text."""
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
