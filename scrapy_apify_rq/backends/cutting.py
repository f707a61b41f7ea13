"""Cuts many texts into parts of limited size: rows of a file, bodies of calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

_Text = TypeVar("_Text", str, bytes)


def cut(texts: Iterable[_Text], limit: int, *, separator: int = 0) -> Iterator[list[_Text]]:
    """Yield lists of texts that have this size at most, each with a separator of its size. A text
    that is longer is alone.
    """
    part: list[_Text] = []
    size = 0
    for text in texts:
        length = len(text) + separator
        if part and size + length > limit:
            yield part
            part, size = [], 0
        part.append(text)
        size += length
    if part:
        yield part
