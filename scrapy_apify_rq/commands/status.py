"""``scrapy rq status``: show how far the crawl of a queue has got."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
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
from scrapy_apify_rq.commands import option_values, output, queues
from scrapy_apify_rq.commands.queues import Queue
from scrapy_apify_rq.entries.models import Entry

NAME = "status"
HELP = (
    "Show how much of a queue is handled. Over the API, counting failed entries, locked entries and"
    " the groups of --by means reading the whole queue, which costs one read per entry. For that"
    " reason --watch does not count them over the API, unless you add --by"
)
EXAMPLE = "scrapy rq status --by host"
# Dollars per 1000 operations on the free plan. Apify states two prices for writes, 0.01 and 0.02;
# this is the higher one. https://apify.com/pricing,
# https://docs.apify.com/platform/storage/usage#pricing
_READS_PRICE: Final = 0.004
_WRITES_PRICE: Final = 0.02
# Seconds over which the rate is averaged.
_RATE_WINDOW: Final = 60


def add_options(parser: argparse.ArgumentParser) -> None:
    queues.add_options(parser)
    parser.add_argument(
        "--by",
        choices=("host", "label"),
        help="also count the entries of each host, or of each label (the name of the callback)",
    )
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=option_values.seconds,
        const=2.0,
        help="repeat every so many seconds until Ctrl-C (default: every %(const)s seconds)",
    )
    output.add_json_option(parser, "one object; with --watch, one object each time")


def run(settings: Settings, options: argparse.Namespace) -> None:
    if options.watch is None:
        queues.run(_show(settings, options))
        return
    with suppress(KeyboardInterrupt):  # Ctrl-C is how to end it
        queues.run(_watch(settings, options))


@dataclass(slots=True)
class Counts:
    """Counts of the entries of one host or label."""

    total: int = 0
    handled: int = 0
    failed: int = 0

    @property
    def pending(self) -> int:
        return self.total - self.handled

    def add(self, entry: Entry) -> None:
        self.total += 1
        self.handled += entry.is_handled
        self.failed += entry.failed


@dataclass(slots=True)
class Snapshot:
    """The state of the queue at one moment. None means that something was not counted."""

    info: Info
    location: str
    failed: int | None = None
    locked: int | None = None
    items: int | None = None
    """How many are saved."""
    by: str | None = None
    groups: dict[str, Counts] = field(default_factory=dict)
    """By host or label, whichever ``by`` names."""
    rate: float | None = None
    """Pages per minute."""

    @property
    def done(self) -> float:
        return self.info.handled / self.info.total if self.info.total else 0.0


async def _show(settings: Settings, options: argparse.Namespace) -> None:
    async with queues.opened(settings, options, purpose="read") as queue:
        snapshot = await _take_snapshot(queue, options)
    if options.json:
        output.print_json(_as_json(snapshot))
    else:
        output.show(*_parts(snapshot))


async def _watch(settings: Settings, options: argparse.Namespace) -> None:
    rate = _Rate()
    snapshot = None
    # On a screen of its own. On the other, a window that gets narrower breaks the lines that are
    # there, and leaves some of them behind.
    live = Live(console=Console(highlight=False), auto_refresh=False, screen=True)
    is_live = live.console.is_terminal and not options.json
    try:
        async with queues.opened(settings, options, purpose="read") as queue:
            with live if is_live else nullcontext():
                while True:
                    snapshot = await _take_snapshot(queue, options)
                    snapshot.rate = rate.per_minute(snapshot.info.handled)
                    if options.json:
                        output.print_json(_as_json(snapshot))
                    elif is_live:
                        live.update(Group(*_parts(snapshot)), refresh=True)
                    else:
                        output.show(*_parts(snapshot))
                    sys.stdout.flush()  # whoever reads a pipe waits for it
                    await asyncio.sleep(options.watch)
    finally:
        if is_live and snapshot is not None:  # what the screen said last, to keep
            output.show(*_parts(snapshot))


class _Rate:
    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def per_minute(self, handled: int) -> float | None:
        """Return the recent rate in pages per minute. The first call returns None."""
        now = time.monotonic()
        self._seen.append((now, handled))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RATE_WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        return None if now == since else max(handled - before, 0) * 60 / (now - since)


async def _take_snapshot(queue: Queue, options: argparse.Namespace) -> Snapshot:
    info = await queue.backend.info()
    snapshot = Snapshot(info, queue.backend.location, by=options.by)
    is_cheap = not queue.backend.counts_reads
    if queue.backend.items is not None:
        snapshot.items = await queue.backend.items.count()
    if options.by or not (is_cheap or options.watch):
        await _count_all(queue, snapshot, quiet=bool(options.watch))
    elif is_cheap:
        snapshot.failed = await queue.backend.count("failed")
    if is_cheap or snapshot.failed is not None:
        snapshot.locked = await queue.backend.count("locked")
    return snapshot


async def _count_all(queue: Queue, snapshot: Snapshot, *, quiet: bool) -> None:
    group_of = _GROUP_OF[snapshot.by]
    snapshot.failed = 0
    stored = queue.backend.list()
    async for entry in output.with_progress(stored, "counting", snapshot.info.total, quiet=quiet):
        snapshot.failed += entry.failed
        if snapshot.by:
            snapshot.groups.setdefault(group_of(entry), Counts()).add(entry)


def _label(entry: Entry) -> str:
    label = entry.user_data.get("label")
    return label if isinstance(label, str) else ""


def _host(entry: Entry) -> str:
    try:
        return urlsplit(entry.url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


_GROUP_OF: Final[dict[str | None, Callable[[Entry], str]]] = {
    None: lambda entry: "",
    "host": _host,
    "label": _label,
}


# Output


def _parts(snapshot: Snapshot) -> list[RenderableType]:
    info = snapshot.info
    failed = None if snapshot.failed is None else output.failures(snapshot.failed)
    totals = (info.total, info.handled, info.pending, failed, snapshot.locked)
    parts: list[RenderableType] = [
        Text(f"Request queue {info.title} in {snapshot.location}"),
        output.table(
            ("TOTAL", "HANDLED", "PENDING", "FAILED", "LOCKED"),
            [["-" if total is None else total for total in totals]],
        ),
        _bar(snapshot),
        Text(_progress(snapshot)),
    ]
    if info.operations:
        parts.append(Text(_cost(info.operations)))
    if snapshot.by:
        parts.append(
            output.table(
                (snapshot.by.upper(), "TOTAL", "HANDLED", "PENDING", "FAILED"),
                [
                    (
                        name or "(none)",
                        counts.total,
                        counts.handled,
                        counts.pending,
                        output.failures(counts.failed),
                    )
                    for name, counts in _largest_first(snapshot)
                ],
            )
        )
    return parts


def _bar(snapshot: Snapshot) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(snapshot.info.total, 1), completed=snapshot.info.handled, width=40)
    line.add_row(bar, f"{snapshot.done:.1%} handled")
    return line


def _largest_first(snapshot: Snapshot) -> list[tuple[str, Counts]]:
    return sorted(snapshot.groups.items(), key=lambda group: -group[1].total)


def _progress(snapshot: Snapshot) -> str:
    texts = [f"{output.counted(snapshot.items, 'item')} saved"] if snapshot.items else []
    if snapshot.info.modified_at is not None:
        age = datetime.now(UTC) - snapshot.info.modified_at
        texts.append(f"last change {_duration(max(age.total_seconds(), 0))} ago")
    if snapshot.rate is not None:
        texts.append(f"{snapshot.rate:,.0f} pages/min")
        if snapshot.rate and snapshot.info.pending:
            texts.append(f"about {_duration(snapshot.info.pending * 60 / snapshot.rate)} left")
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
        f"Operations so far: {output.counted(operations.reads, 'read')},"
        f" {output.counted(operations.writes, 'write')}; estimated"
        f" cost ${_dollars(operations):,.2f}, at ${_READS_PRICE} and ${_WRITES_PRICE} per 1000,"
        " storage not included"
    )


def _as_json(snapshot: Snapshot) -> dict[str, Any]:
    info = snapshot.info
    value: dict[str, Any] = {
        "id": info.id,
        "name": info.name,
        "location": snapshot.location,
        "total": info.total,
        "handled": info.handled,
        "pending": info.pending,
        "failed": snapshot.failed,
        "locked": snapshot.locked,
        "items": snapshot.items,
        "progress": round(snapshot.done, 4),
        "modifiedAt": info.modified_at and info.modified_at.isoformat(timespec="milliseconds"),
        "pagesPerMinute": snapshot.rate and round(snapshot.rate, 1),
    }
    if info.operations:
        value["operations"] = info.operations._asdict()
        value["estimatedCostUsd"] = round(_dollars(info.operations), 4)
    if snapshot.by:
        value[f"{snapshot.by}s"] = {
            name: {
                "total": counts.total,
                "handled": counts.handled,
                "pending": counts.pending,
                "failed": counts.failed,
            }
            for name, counts in _largest_first(snapshot)
        }
    return value
