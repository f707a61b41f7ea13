"""Parts of JSON that Python does not read as a whole: it is nested too deeply, or has a number with
too many digits.

Someone may have written such an entry on purpose. It must not cost the entries that come in the
same answer, and what it is itself must be known, so that it can be marked as handled. Only the
structure is looked at: whether it is complete, and not more. Raises ValueError if it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

# A text, with a colon if it is a key; or what changes the depth. Possessive, so that a text of
# megabytes leaves nothing to come back to for each of its characters.
_TOKEN: Final = re.compile(r'("(?:[^"\\]++|\\.)*+")(\s*+:)?|[{}\[\]]', re.DOTALL)


def texts_at(text: str, depth: int) -> dict[str, str]:
    """Return the texts among the values of the objects at this depth, 1 being the outermost."""
    found: dict[str, str] = {}
    key: str | None = None
    for token, now in _tokens(text):
        if now != depth or token[1] is None:
            key = None
        elif token[2]:
            key = token[1]
        elif key is not None:
            found[json.loads(key)] = json.loads(token[1])
            key = None
    return found


def objects_at(text: str, depth: int) -> Iterator[str]:
    """Yield the objects that begin at this depth, each as JSON."""
    start = None
    for token, now in _tokens(text):
        if now == depth and token[0] == "{":
            start = token.start()
        elif now == depth and token[0] == "}" and start is not None:
            yield text[start : token.end()]


def _tokens(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yield each token with its depth; an opening or closing one has that of what it encloses."""
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "{[":
            depth += 1
            yield token, depth
        elif token[0] in "}]":
            yield token, depth
            depth -= 1
        else:
            yield token, depth
    if depth != 0:
        raise ValueError("not complete")
