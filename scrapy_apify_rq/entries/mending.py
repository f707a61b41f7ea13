"""Values of other programs, brought into the form of the API's schema.

JSON that JavaScript wrote can hold lone surrogates, which UTF-8 cannot; each becomes U+FFFD, as it
does where JavaScript itself writes UTF-8. And the API takes headers and more of any type. A value
whose meaning is plain is put into the schema's form here; others are left for ``models`` to judge.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

_WORDS: Final = {"Infinity": "1e999", "-Infinity": "-1e999", "NaN": "null"}
# Possessive, so that a text of megabytes leaves nothing to come back to for each of its characters.
_TEXT_OR_WORD: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"|-?Infinity|NaN', re.DOTALL)


def well_formed(text: str) -> str:
    """Put U+FFFD in the place of lone surrogates."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def well_formed_json(text: str | bytes | bytearray) -> str:
    """Return the same JSON without lone surrogates. Raises ValueError or RecursionError.

    NaN and Infinity, which are JSON to Python only, are read and written.
    """
    return well_formed(json.dumps(json.loads(text), ensure_ascii=False))


def strict_json(text: str | bytes) -> str:
    """Do the same with what comes from outside, where these are refused. Raises ValueError."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        return without_words(well_formed(json.dumps(value, ensure_ascii=False)))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def without_words(text: str) -> str:
    """Write numbers beyond Python's as numbers. JSON knows 1e999, which Python reads as infinity
    and would write as a word that JSON does not know.
    """
    if "Infinity" in text or "NaN" in text:
        return _TEXT_OR_WORD.sub(lambda found: _WORDS.get(found[0], found[0]), text)
    return text


def in_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an entry, as far as possible with values of the schema's types."""
    mended = dict(fields)
    for name, mend in (
        ("headers", header_texts),
        ("payload", _payload),
        ("errorMessages", _messages),
    ):
        if mended.get(name) is not None:
            mended[name] = mend(mended[name])
    return mended


def header_texts(headers: Any) -> Any:
    """Write the values of headers as texts.

    A list is joined as HTTP joins the values of repeated headers. Without a value there is no
    header: null, or a list of nothing else.
    """
    if not isinstance(headers, dict):
        return headers
    texts = {name: _header_text(name, value) for name, value in headers.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _header_text(name: str, value: Any) -> str | None:
    values = value if isinstance(value, list) else [value]
    texts = [_text(one) for one in values if one is not None]
    if not texts:
        return None
    return ("; " if name.lower() == "cookie" else ", ").join(texts)


def _payload(payload: Any) -> Any:
    return payload if isinstance(payload, dict) else _text(payload)


def _messages(messages: Any) -> list[str]:
    """One message may stand alone. None is left out, since their number counts."""
    if not isinstance(messages, list):
        messages = [messages] if messages else []
    return [_text(message) for message in messages]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return without_words(json.dumps(value, ensure_ascii=False))
