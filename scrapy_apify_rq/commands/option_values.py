"""Read the values of options, for argparse. An ArgumentTypeError says what to write instead."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a regular expression: {error}"
        ) from error


def positive(text: str) -> int:
    return int(_number(text, int, 1, math.inf, "a whole number of at least 1"))


def port(text: str) -> int:
    return int(_number(text, int, 0, 65_535, "a number between 0 and 65535"))


def seconds(text: str) -> float:
    return _number(text, float, 0.1, 86_400, "a number between 0.1 and 86400")


def _number(text: str, read: Callable[[str], float], least: float, most: float, what: str) -> float:
    with suppress(ValueError):
        if least <= (number := read(text)) <= most:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not {what}")


def moment(text: str) -> datetime:
    """Read an age, such as "7d", or a date, whose time zone is that of this machine by default."""
    try:
        if age := re.fullmatch(r"(\d+)([mhdw])", text, re.ASCII):
            return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an age, as 30m, 12h, 7d or 2w, nor a date, as 2026-11-26 or"
            " 2026-11-26T18:30"
        ) from None
