"""``scrapy rq status``: how far the crawl of a queue has come."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from scrapy.settings import Settings

from scrapy_apify_rq.backends.base import Info, Operations
from scrapy_apify_rq.commands import output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.models import Entry

NAME = "status"
HELP = (
    "Show how far a queue is done. Over the API, failed and locked entries and those of --by are"
    " counted by reading the whole queue, which costs one read for each entry; --watch leaves them"
    " out there, unless --by asks for them"
)
EXAMPLE = "scrapy rq status --by host"
# Dollars for 1000 operations on the free plan. Of the two prices that Apify gives for writes, 0.01
# and 0.02, the higher: https://apify.com/pricing and
# https://docs.apify.com/platform/storage/usage#pricing
_READS_PRICE: Final = 0.004
_WRITES_PRICE: Final = 0.02
# Seconds over which the rate is taken.
_RATE_WINDOW: Final = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument(
        "--by", choices=("host", "label"), help="count the entries of each host or label, too"
    )
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=_seconds,
        const=2.0,
        help="look again every so many seconds (default: %(const)s) until Ctrl-C",
    )
    output.add_json_option(parser, "an object for each look")


def _seconds(text: str) -> float:
    if not 0.1 <= (seconds := float(text)) <= 86_400:
        raise argparse.ArgumentTypeError("from 0.1 to 86400 seconds are possible")
    return seconds


def run(settings: Settings, options: argparse.Namespace) -> None:
    if options.watch is None:
        queues.run(_show(settings, options))
        return
    with suppress(KeyboardInterrupt):  # the way to end it
        queues.run(_watch(settings, options))


@dataclass(slots=True)
class Counts:
    """Of entries that have something in common."""

    total: int = 0
    handled: int = 0
    failed: int = 0

    def add(self, entry: Entry) -> None:
        self.total += 1
        self.handled += entry.is_handled
        self.failed += entry.failed


@dataclass(slots=True)
class Look:
    """What was seen at one time; None is what was not counted."""

    info: Info
    location: str
    failed: int | None = None
    locked: int | None = None
    by: str | None = None
    groups: dict[str, Counts] = field(default_factory=dict)
    """By host or label."""
    rate: float | None = None
    """Pages in a minute."""

    @property
    def done(self) -> float:
        return self.info.handled / self.info.total if self.info.total else 0.0


async def _show(settings: Settings, options: argparse.Namespace) -> None:
    async with queues.opened(settings, options) as queue:
        look = await _look(queue, options)
    if options.json:
        output.print_json(_as_json(look))
    else:
        output.show(*_parts(look))


async def _watch(settings: Settings, options: argparse.Namespace) -> None:
    rate = _Rate()
    async with queues.opened(settings, options) as queue:
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                look = await _look(queue, options)
                look.rate = rate.per_minute(look.info.handled)
                if options.json:
                    output.print_json(_as_json(look))
                elif live.console.is_terminal:
                    live.update(Group(*_parts(look)), refresh=True)
                else:
                    output.show(*_parts(look))
                await asyncio.sleep(options.watch)


class _Rate:
    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def per_minute(self, handled: int) -> float | None:
        """Pages in a minute, of late; None as long as there is nothing to compare."""
        now = time.monotonic()
        self._seen.append((now, handled))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RATE_WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        return None if now == since else max(handled - before, 0) * 60 / (now - since)


async def _look(queue: Queue, options: argparse.Namespace) -> Look:
    info = await queue.backend.info()
    look = Look(info, queue.backend.location, by=options.by)
    is_cheap = not queue.backend.counts_reads
    if options.by or not (is_cheap or options.watch):
        await _count_all(queue, look, quiet=bool(options.watch))
    elif is_cheap:
        look.failed = await queue.backend.count("failed")
    if is_cheap or look.failed is not None:
        look.locked = await queue.backend.count("locked")
    return look


async def _count_all(queue: Queue, look: Look, *, quiet: bool) -> None:
    group_of = _GROUPS[look.by]
    look.failed = 0
    stored = queue.backend.list()
    async for entry in output.watched(stored, "counting", look.info.total, quiet=quiet):
        look.failed += entry.failed
        if look.by:
            look.groups.setdefault(group_of(entry), Counts()).add(entry)


def _label(entry: Entry) -> str:
    label = entry.user_data.get("label")
    return label if isinstance(label, str) else ""


def _host(entry: Entry) -> str:
    try:
        return urlsplit(entry.url).hostname or ""
    except ValueError:
        return ""


_GROUPS: Final[dict[str | None, Callable[[Entry], str]]] = {
    None: lambda entry: "",
    "host": _host,
    "label": _label,
}


# How it is shown


def _parts(look: Look) -> list[RenderableType]:
    info = look.info
    counts = (info.total, info.handled, info.pending, look.failed, look.locked)
    parts: list[RenderableType] = [
        Text(f"Request queue {info.title} in {look.location}"),
        output.table(
            ("TOTAL", "HANDLED", "PENDING", "FAILED", "LOCKED"),
            [["-" if count is None else count for count in counts]],
        ),
        _bar(look),
        Text(_progress(look)),
    ]
    if info.operations:
        parts.append(Text(_cost(info.operations)))
    if look.by:
        parts.append(
            output.table(
                (look.by.upper(), "TOTAL", "HANDLED", "PENDING", "FAILED"),
                [
                    (name or "(none)", one.total, one.handled, one.total - one.handled, one.failed)
                    for name, one in _ordered(look)
                ],
            )
        )
    return parts


def _bar(look: Look) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(look.info.total, 1), completed=look.info.handled, width=40)
    line.add_row(bar, f"{look.done:.1%} handled")
    return line


def _ordered(look: Look) -> list[tuple[str, Counts]]:
    return sorted(look.groups.items(), key=lambda group: -group[1].total)


def _progress(look: Look) -> str:
    texts = []
    if look.info.modified_at is not None:
        age = datetime.now(UTC) - look.info.modified_at
        texts.append(f"last change {_duration(max(age.total_seconds(), 0))} ago")
    if look.rate is not None:
        texts.append(f"{look.rate:,.0f} pages/min")
        if look.rate and look.info.pending:
            texts.append(f"about {_duration(look.info.pending * 60 / look.rate)} left")
    return ", ".join(texts)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _dollars(operations: Operations) -> float:
    return (operations.reads * _READS_PRICE + operations.writes * _WRITES_PRICE) / 1000


def _cost(operations: Operations) -> str:
    return (
        f"Operations so far: {operations.reads:,} reads, {operations.writes:,} writes; estimated"
        f" cost ${_dollars(operations):,.2f}, at ${_READS_PRICE} and ${_WRITES_PRICE} for 1000,"
        " storage not included"
    )


def _as_json(look: Look) -> dict[str, Any]:
    info = look.info
    value: dict[str, Any] = {
        "id": info.id,
        "name": info.name,
        "location": look.location,
        "total": info.total,
        "handled": info.handled,
        "pending": info.pending,
        "failed": look.failed,
        "locked": look.locked,
        "progress": round(look.done, 4),
        "modifiedAt": info.modified_at and info.modified_at.isoformat(timespec="milliseconds"),
        "pagesPerMinute": look.rate and round(look.rate, 1),
    }
    if info.operations:
        value["operations"] = info.operations._asdict()
        value["estimatedCostUsd"] = round(_dollars(info.operations), 4)
    if look.by:
        value[f"{look.by}s"] = {
            name: {
                "total": one.total,
                "handled": one.handled,
                "pending": one.total - one.handled,
                "failed": one.failed,
            }
            for name, one in _ordered(look)
        }
    return value
