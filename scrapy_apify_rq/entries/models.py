"""Apify's request schema as a pydantic model: wire names by alias, Python names in code.

Source: https://docs.apify.com/api/v2/request-queue-requests-get and its OpenAPI description. Absent
and null mean the same, so nulls are not written.

**Values of odd types.** Other programs write what the schema does not expect. The rule: a value
whose meaning is plain is read as that (see ``mending``), and any other counts as absent, so that it
does not cost the page. Only an entry whose URL, unique key or headers mean nothing is ``broken``,
since another request would be sent in its place. The API takes back what the schema knows only, so
the original values are kept as text in ``userData.scrapy_unreadable``, with the reason why the
entry is broken, if it is: it stays so when it is read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticSerializationError

from scrapy_apify_rq.entries.deep_json import texts_at
from scrapy_apify_rq.entries.mending import in_schema, well_formed, well_formed_json, without_words

UNREADABLE: Final = "scrapy_unreadable"
"""The key in the user data of what the schema does not hold: an object of texts, ``original`` and,
if the entry is broken, ``why``."""
TURNS: Final = "scrapy_items"
"""The key in the user data of whose items count: see ``dataset_form``."""
# Without these an entry is another request.
_REQUIRED: Final = frozenset(("uniqueKey", "url", "headers"))

# Beyond it, a stranger's number is none to reckon with.
_MOST_RETRIES: Final = 2**53

# Bytes, about: of an entry with empty fields; of quotes and a comma; of a number, true or null.
_OVERHEAD: Final = 160
_PUNCTUATION: Final = 6
_NUMBER: Final = 4


def wire_date(value: datetime) -> str:
    """Write a date as the API does: ISO 8601 in UTC, with milliseconds and Z."""
    utc = in_utc(value).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='milliseconds')}Z"


def in_utc(date: datetime) -> datetime:
    """Read a date as UTC unless it names an offset, and never as local time.

    Raises ValueError where the year would have one digit too many, or none.
    """
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    try:
        return date.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


Date = Annotated[datetime, AfterValidator(in_utc), PlainSerializer(wire_date)]


def _null_is(make: Callable[[], Any]) -> BeforeValidator:
    """Read null as an absent field: the API's own examples show it so."""
    return BeforeValidator(lambda value: make() if value is None else value)


class Entry(BaseModel):
    """A request as the queue stores it: the API's Request object."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        ser_json_inf_nan="constants",
    )

    id: str
    unique_key: str
    url: str
    method: Annotated[str, _null_is(lambda: "GET")] = "GET"
    payload: str | dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    user_data: Annotated[dict[str, Any], _null_is(dict)] = Field(default_factory=dict)
    retry_count: Annotated[int, _null_is(int), Field(ge=-_MOST_RETRIES, le=_MOST_RETRIES)] = 0
    no_retry: bool | None = None
    error_messages: Annotated[list[str], _null_is(list)] = Field(default_factory=list)
    loaded_url: str | None = None
    handled_at: Date | None = None

    @property
    def broken(self) -> str | None:
        """Why this entry is none. An earlier reader may have found that."""
        return _kept(self.user_data).get("why")

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
        try:
            text = self.model_dump_json(by_alias=True, exclude_none=True, exclude=exclude)
        except PydanticSerializationError:  # lone surrogates, in a text that came from the crawl
            data = self.model_dump(by_alias=True, exclude_none=True, exclude=exclude)
            text = well_formed(json.dumps(data, ensure_ascii=False))
        return without_words(text)

    @classmethod
    def from_json(cls, id: str, text: str | bytes) -> Entry:
        """Read the stored entry of this id. If it is not one, ``broken`` says why.

        Such an entry has to come back too, with all it holds: one that nobody can claim could never
        be reported.
        """
        try:
            entry = cls.model_validate_json(text)
        except ValidationError as error:
            entry = cls._from_odd(id, text, error)
        entry.id = id  # under any other, an ack would miss it
        return entry

    @classmethod
    def _from_odd(cls, id: str, text: str | bytes, error: ValidationError) -> Entry:
        try:
            fields = json.loads(well_formed_json(text))
            entry = cls.from_fields({**fields, "id": id})
            cls.model_validate_json(entry.to_json())  # not nested too deeply, say
        except (ValueError, TypeError, RecursionError):
            return cls._without(_plain_fields(text), _whole(text), _problem(error))
        return entry

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Entry:
        """Read the fields of an entry as another program wrote them."""
        mended = in_schema(fields)
        try:
            return cls.model_validate(mended)
        except ValidationError as error:
            wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
            known = {field.alias for field in cls.model_fields.values()}
            kept = {name: mended[name] for name in mended.keys() & known - wrong}
            rest = {name: fields[name] for name in fields if name not in kept}
            why = _problem(error) if wrong & _REQUIRED else None
            return cls._without(kept, without_words(json.dumps(rest)), why)

    @classmethod
    def _without(cls, fields: dict[str, Any], original: str, why: str | None) -> Entry:
        """Make an entry of the fields that can be read; keep the rest as text in its user data."""
        entry = cls.model_validate({"id": "", "uniqueKey": "", "url": "", **fields})
        before = _kept(entry.user_data)
        if "original" in before:
            original = f"{before['original']}\n{original}"
        entry.user_data[UNREADABLE] = {"original": original}
        if why := before.get("why", why):
            entry.user_data[UNREADABLE]["why"] = why
        return entry


def _problem(error: ValidationError) -> str:
    """Say what is wrong, first of all with what an entry needs."""
    problems = error.errors(include_url=False, include_input=False)
    problem = min(problems, key=lambda one: not _REQUIRED.issuperset(one["loc"][:1]))
    where = ".".join(str(part) for part in problem["loc"]) or "the entry"
    return f"{where}: {problem['msg']}"


def _kept(user_data: dict[str, Any]) -> dict[str, str]:
    """Return what an earlier reader has kept of an entry that it could not read completely."""
    kept = user_data.get(UNREADABLE)
    if not isinstance(kept, dict):
        return {}
    return {name: text for name, text in kept.items() if isinstance(text, str)}


def _whole(text: str | bytes) -> str:
    return well_formed(text.decode(errors="replace") if isinstance(text, bytes) else text)


def _plain_fields(text: str | bytes) -> dict[str, str]:
    """Return key and URL of an entry that Python cannot read; nothing of one that is no JSON."""
    whole = _whole(text)
    try:
        json.loads(whole)
    except json.JSONDecodeError:
        return {}
    except (ValueError, RecursionError):
        pass  # nested too deeply, say
    try:
        fields = texts_at(whole, 1)
    except ValueError:
        return {}
    return {name: fields[name] for name in ("uniqueKey", "url") if _is_plain(fields.get(name))}


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


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()
