"""The ``Retry-After`` header, of a site or of the API: a number of seconds, or a date.

https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime


def seconds(header: str, now: float) -> float:
    """How many seconds after ``now``, a Unix time, the header asks for; 0 if it asks for none."""
    text = header.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        return max(date.timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
