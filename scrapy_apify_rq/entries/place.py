"""Where in a value the encoder is: it has to say which part cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import JsonValue

from scrapy_apify_rq.entries.names import Names, short, type_name
from scrapy_apify_rq.errors import CodecError


class Writer(NamedTuple):
    """How everything inside of a value is written."""

    names: Names
    write_other: Callable[[Any, Place], JsonValue]
    """Writes what is not of a built-in type."""
    is_checked: bool
    """A part that may not come back the same is read back at once, to see whether it does.

    Only the outermost such part is, and with it those inside: to check each of them would double
    the work at each level."""
    left: list[int]
    """One number, which all share: how many parts may still be written. A part that lies in a value
    at several places is written at each, and so are those inside of it: ten such levels make a
    thousand, thirty a billion."""


class Place:
    """One part of a value. ``depth`` counts levels of the JSON: parsers of JSON have limits."""

    __slots__ = ("depth", "key", "parent", "writer")

    def __init__(self, parent: Place | None, key: object, depth: int, writer: Writer) -> None:
        self.parent = parent
        self.key = key
        self.depth = depth
        self.writer = writer

    def __str__(self) -> str:
        steps: list[str] = []
        place = self
        while place.parent is not None:
            readable = type(place.key) in (str, bool, float, type(None)) or _is_short_int(place.key)
            steps.append(f"[{place.key!r}]" if readable else f"[<{type_name(place.key)}>]")
            place = place.parent
        return short("".join([str(place.key), *reversed(steps)]))

    def refusal(self, reason: str) -> CodecError:
        return CodecError(f"{self}: {reason}")

    def written_by(self, writer: Writer) -> Place:
        return Place(self.parent, self.key, self.depth, writer)


def _is_short_int(key: object) -> bool:
    return type(key) is int and abs(key) <= 2**53
