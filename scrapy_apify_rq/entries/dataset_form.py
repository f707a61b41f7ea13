"""Saved items as a dataset holds them: plain JSON for people, and a hidden field for us.

    {"name": "x", "price": 10, "#scrapy": {"queue": ID, "entry": ID, "number": 0, ...}}

People see what Scrapy's JSON exporter would show, about. What plain JSON cannot say is in the
hidden field (see ``About``), so that an item comes back exactly as ``saved_items`` has written it.
Apify leaves fields that begin with "#" out of clean exports.

An item is in the dataset before its entry is updated, which a kill may prevent. So the update names
the turn, the visit of the page, whose items it makes valid, by the ``retryCount`` of the try:

    userData.scrapy_items   {"0": "RUN:TURN", ...}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from scrapy_apify_rq.entries.models import TURNS, Entry
from scrapy_apify_rq.entries.saved_items import TAG
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.errors import CodecError

FIELD: Final = "#scrapy"


class About(BaseModel):
    """What the hidden field says. Everything with a default is left out where it is that."""

    model_config = ConfigDict(populate_by_name=True, frozen=True)

    queue: str
    """Id of the queue that the item belongs to."""
    run: str
    """Names the process that saved it."""
    client: str = ""
    """The client key of a worker in shared access."""
    entry: str | None = None
    """Id of the entry that it was scraped from."""
    retry: int = 0
    """The ``retryCount`` of the entry when it was scraped."""
    turn: int = 0
    """Counts, within the run, the requests whose items were saved."""
    done: int = 0
    """The updates of all earlier turns of the run were confirmed when the item was sent."""
    key: str | None = None
    """Names an item without an entry."""
    number: int = 0
    """Of the item, among those of one turn or key."""
    kind: str | None = Field(None, alias="class")
    """The path of its class."""
    tagged: dict[str, JsonValue] = {}
    """Its fields with values that JSON does not have, as ``values`` writes them."""
    text: str | None = None
    """All of it, where nothing else would do."""


def turn_name(run: str, turn: int) -> str:
    return f"{run}:{turn}"


def valid_turns(entry: Entry) -> dict[str, str]:
    """By try, the names of the turns whose items the entry's updates have made valid."""
    turns = entry.user_data.get(TURNS)
    return turns if isinstance(turns, dict) else {}


def make_valid(entry: Entry, retry: int, turn: str) -> None:
    """Let the entry's next update do that, instead of any other turn of this try."""
    turns = {**valid_turns(entry), str(retry): turn}
    # A retry shares what it has not changed with the entry before.
    entry.user_data = {**entry.user_data, TURNS: turns}


def to_dataset(text: str, about: About) -> bytes:
    """Write a saved item for a dataset."""
    # This is for each item that is scraped, and most need nothing more.
    if text.startswith("{") and '"$' not in text and FIELD not in text:
        body = text[1:-1].strip()
        return f'{{{body}{"," if body else ""}"{FIELD}":{_dumped(about)}}}'.encode()
    fields, changes = _split(json.loads(text))
    if fields is None or FIELD in fields:
        changes = {"text": json.dumps(json.loads(text), separators=(",", ":"))}
        fields = {name: value for name, value in (fields or {}).items() if name != FIELD}
    visible = {name: _plain(value) for name, value in fields.items()}
    visible[FIELD] = json.loads(_dumped(about.model_copy(update=changes)))
    return json.dumps(visible, ensure_ascii=False, separators=(",", ":")).encode()


def _dumped(about: About) -> str:
    return about.model_dump_json(by_alias=True, exclude_defaults=True)


def _split(item: JsonValue) -> tuple[dict[str, JsonValue] | None, dict[str, Any]]:
    """The fields of an item, and what must be said about it. None if it has no plain fields."""
    changes: dict[str, Any] = {}
    if not isinstance(item, dict):
        return None, changes
    if item.keys() == {TAG}:
        saved: Any = item[TAG]
        path, pairs = saved
        if not all(isinstance(name, str) for name, _ in pairs):
            return None, changes
        item, changes["kind"] = dict(pairs), path
    elif len(item) == 1 and next(iter(item)).startswith("$"):
        return None, changes
    tagged = {name: value for name, value in item.items() if _is_tagged(value)}
    return item, {**changes, "tagged": tagged} if tagged else changes


def _is_tagged(value: JsonValue) -> bool:
    if isinstance(value, list):
        return any(map(_is_tagged, value))
    if isinstance(value, dict):
        return _tag(value) is not None or any(map(_is_tagged, value.values()))
    return False


def _tag(value: Mapping[str, JsonValue]) -> str | None:
    tag = next(iter(value)) if len(value) == 1 else ""
    return tag if tag.startswith("$") else None


def about_item(item: Any) -> About | None:
    """What an item of a dataset says about itself; None if it was not saved by us."""
    try:
        return About.model_validate(item[FIELD])
    except (LookupError, TypeError, ValidationError):
        return None


def from_dataset(item: Mapping[str, JsonValue], about: About) -> str:
    """Return the text that was saved."""
    if about.text is not None:
        return about.text
    fields = {name: about.tagged.get(name, value) for name, value in item.items() if name != FIELD}
    saved: JsonValue = fields
    if about.kind is not None:
        saved = {TAG: [about.kind, [[name, value] for name, value in fields.items()]]}
    return json.dumps(saved, ensure_ascii=False, separators=(",", ":"))


# What people see of a value that JSON does not have.


def _plain(value: JsonValue) -> JsonValue:
    if isinstance(value, list):
        return list(map(_plain, value))
    if not isinstance(value, dict):
        return value
    if (tag := _tag(value)) is None:
        return {name: _plain(part) for name, part in value.items()}
    try:
        return _VIEWS.get(tag, _plain)(value[tag])
    except (CodecError, LookupError, TypeError, ValueError):
        return value


def _pairs(pairs: Any) -> JsonValue:
    return {_name(_plain(name)): _plain(value) for name, value in pairs}


def _name(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(tag: str, write: Callable[[Any], JsonValue]) -> Callable[[Any], JsonValue]:
    return lambda payload: write(decode({tag: payload}))


def _float(value: float) -> JsonValue:
    return value if abs(value) < float("inf") else None  # nor does JSON have nan


_VIEWS: Final[dict[str, Callable[[Any], JsonValue]]] = {
    "$str": _read("$str", lambda value: value.encode("utf-8", "replace").decode()),
    "$bytes": _read("$bytes", lambda value: value.decode("utf-8", "replace")),
    "$bytearray": _read("$bytearray", lambda value: value.decode("utf-8", "replace")),
    "$int": _read("$int", int),
    "$float": _read("$float", _float),
    "$datetime": _read("$datetime", lambda value: value.isoformat()),
    "$time": _read("$time", lambda value: value.isoformat()),
    "$timedelta": _read("$timedelta", lambda value: value.total_seconds()),
    "$dict": _pairs,
    "$ordereddict": _pairs,
    "$counter": _pairs,
    "$defaultdict": lambda payload: _pairs(payload[1]),
    "$deque": lambda payload: _plain(payload[0]),
    "$pattern": lambda payload: _plain(payload[0]),
    "$path": lambda payload: _plain(payload[1]),
    "$url": lambda payload: _plain(payload[1]),
    "$enum": lambda payload: _plain(payload[1]),
    "$namedtuple": lambda payload: _plain(payload[1]),
    "$item": lambda payload: _pairs(payload[1]),
    "$object": lambda payload: _pairs(payload[1]),
    "$request": lambda payload: _plain(payload[0]),
}
"""By tag. The payload of any other is what people can read."""
