"""The Apify request schema as pydantic models: wire names by alias, Python names in code.

Source: https://docs.apify.com/api/v2/request-queue-requests-get and the OpenAPI description behind
it. Absent and null mean the same, so nulls are not written.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel


def _wire_date(value: object) -> str:
    """ISO 8601 in UTC with milliseconds and Z, as the API writes dates."""
    if not isinstance(value, datetime):  # an entry kept although it breaks the schema
        return str(value)
    return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


class Entry(BaseModel):
    """A request as the queue stores it: the API's Request object."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    id: str
    unique_key: str
    url: str
    method: str = "GET"
    payload: str | dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    user_data: dict[str, Any] = Field(default_factory=dict)
    retry_count: int = 0
    no_retry: bool | None = None
    error_messages: list[str] = Field(default_factory=list)
    loaded_url: str | None = None
    handled_at: Annotated[datetime, PlainSerializer(_wire_date)] | None = None
    broken: str | None = Field(default=None, exclude=True)
    """Why this entry does not follow the schema; never written."""

    @property
    def failed(self) -> bool:
        """Apify's rule: the last error, the one that caused no retry, is counted nowhere.

        Source: https://docs.apify.com/academy/api/retry-failed-requests
        """
        return self.handled_at is not None and len(self.error_messages) > self.retry_count

    def to_json(self, *, with_id: bool = True) -> str:
        exclude = None if with_id else {"id"}
        return self.model_dump_json(
            by_alias=True, exclude_none=True, exclude=exclude, warnings=False
        )

    @classmethod
    def from_json(cls, id: str, text: str) -> Entry:
        """Read a stored entry; one that breaks the schema comes back with ``broken`` set.

        It must come back, with all it holds: an entry that could not even be claimed could never
        be reported.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the entry"
            return cls._from_broken(id, text, f"{where}: {problem['msg']}")

    @classmethod
    def _from_broken(cls, id: str, text: str, broken: str) -> Entry:
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raw = {"userData": {"unreadable": text}}
        names = {field.alias or name: name for name, field in cls.model_fields.items()}
        known: dict[str, Any] = {names[key]: raw[key] for key in raw.keys() & names.keys()}
        messages = known.get("error_messages")
        known |= {
            "id": id,
            "broken": broken,
            "handled_at": None,
            "error_messages": messages if isinstance(messages, list) else [],
            "retry_count": known["retry_count"] if isinstance(known.get("retry_count"), int) else 0,
        }
        return cls.model_construct(**{"unique_key": "", "url": "", **known})
