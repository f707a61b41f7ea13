"""Read the values of options, for argparse. An ArgumentTypeError says what to write instead."""

from __future__ import annotations

import argparse
import re
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
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def port(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 65535")
    return number


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0.1 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0.1 and 86400")
    return number


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
