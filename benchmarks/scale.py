"""A million pending entries in the embedded queue, and a million known ids.

The benchmark fills a file for each size, and a crawl of a few hundred pages resumes it. Then
another process times claim, add and ack on one size after the other, several times, so that a
machine that is slow for a minute is slow for all sizes. Before each time, the file is filled up
again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from scrapy import Request, Spider
from scrapy.crawler import Crawler
from scrapy.dupefilters import RFPDupeFilter
from scrapy.http import Response
from scrapy.statscollectors import MemoryStatsCollector
from scrapy.utils.request import RequestFingerprinter

from benchmarks import plots, report
from benchmarks.contestants import Place, contestant
from benchmarks.meter import peak_memory
from benchmarks.track import Track, finish, track
from scrapy_apify_rq.backends.sqlite.queue import SqliteBackend
from scrapy_apify_rq.entries.converter import RequestConverter
from scrapy_apify_rq.entries.models import Entry
from scrapy_apify_rq.entries.unique_keys import request_id
from scrapy_apify_rq.frontier.frontier import Frontier

_QUEUE = "scale"
_BATCH = 25
_WINDOW = 1000
_MEMORY = 16 * 1024 * 1024
_FILL = 1000


class _Links(Spider):
    name = "links"

    def parse(self, response: Response) -> None: ...


def entries(first: int, count: int, site: str) -> Iterator[Entry]:
    """Make entries as the scheduler would write them."""
    spider = _Links()
    converter = RequestConverter(spider)
    for n in range(first, first + count):
        request = Request(f"{site}/leaf/0?n={n}", spider.parse, meta={"depth": 1})
        yield converter.encode(request, hashlib.sha1(str(n).encode()).hexdigest())


async def fill(folder: Path, site: str, size: int) -> None:
    """Add entries until ``size`` are pending."""
    backend = SqliteBackend(folder, name=_QUEUE)
    await backend.open()
    try:
        info = await backend.info()
        missing = size - info.pending
        for first in range(info.total, info.total + missing, _FILL):
            count = min(_FILL, info.total + missing - first)
            await backend.add(list(entries(first, count, site)), forefront=False)
    finally:
        await backend.close()


# Measured in a separate process


async def time_calls(folder: Path, site: str, rounds: int) -> dict[str, float]:
    """Milliseconds per call: the median of each kind of call, and the longest write."""
    backend = SqliteBackend(folder, name=_QUEUE)
    opening = time.perf_counter()
    await backend.open()
    await backend.info()
    times: dict[str, list[float]] = {"open": [time.perf_counter() - opening]}

    async def timed(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        start = time.perf_counter()
        result = await call()
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    total = (await backend.info()).total
    gc.freeze()  # so that garbage collection does not visit the imported modules during a call
    for n in range(rounds):
        claim = await timed("claim", partial(backend.claim, _WINDOW, (), _MEMORY))
        new = list(entries(total + n * _BATCH, _BATCH, site))
        await timed("add", partial(backend.add, new, forefront=False))
        acked = [claimed.entry for claimed in claim.entries[:_BATCH]]
        for entry in acked:
            entry.handled_at = datetime.now(UTC)
        await timed("ack", partial(backend.update, acked, forefront=False))
    await backend.close()
    medians = {name: median(each) * 1000 for name, each in times.items()}
    return {**medians, "longest": max(*times["add"], *times["ack"]) * 1000}


def remember(count: int, scheduler: str) -> dict[str, float]:
    """The memory that ``count`` known requests take, in bytes."""
    fingerprinter = RequestFingerprinter()
    if scheduler == "stock":
        seen: Callable[[Request], object] = RFPDupeFilter(fingerprinter=fingerprinter).request_seen
    else:
        frontier = _frontier()

        def seen(request: Request) -> None:
            frontier.remember(request_id(fingerprinter.fingerprint(request).hex()))

    seen(Request("http://localhost/"))
    before = peak_memory()
    for n in range(count):
        seen(Request(f"http://localhost/{n}"))
    return {"memory": peak_memory() - before}


def _frontier() -> Frontier:
    nobody: Any = SimpleNamespace(wake=None)  # no listener is needed to remember ids
    return Frontier(
        SqliteBackend(Path()),
        nobody,
        stats=MemoryStatsCollector(Crawler(_Links)),
        window=_WINDOW,
        outbox=_WINDOW,
    )


def _in_a_process(place: Track, *arguments: object) -> dict[str, float]:
    found: dict[str, float] = place.measure("benchmarks.scale", "--measure", *map(str, arguments))
    return found


# The benchmark


def resume(place: Track, folder: Path, queue: str, pages: int) -> dict[str, float]:
    """Open the queue and crawl some of its pages: the time to the first page, and the memory."""
    embedded = contestant("embedded")
    where = Place(folder, queue, "", "", "")
    settings = {"CLOSESPIDER_PAGECOUNT": pages}
    crawl = finish(place.start(embedded, where, f"/many/{pages}", settings))
    return {"opening": crawl["opening"], "memory": crawl["memory"]}


def measure(place: Track, folder: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    rows = []
    for size in options.sizes:
        asyncio.run(fill(folder / str(size), place.site, size))
        empty = resume(place, folder / str(size), "empty", options.pages)
        full = resume(place, folder / str(size), _QUEUE, options.pages)
        rows.append(
            {
                "size": size,
                "opening": full["opening"],
                "opening_empty": empty["opening"],
                "memory": full["memory"] - empty["memory"],
            }
        )
    times: dict[int, list[dict[str, float]]] = {size: [] for size in options.sizes}
    for _ in range(options.repeat):
        for size, found in times.items():
            asyncio.run(fill(folder / str(size), place.site, size))
            where = (folder / str(size), place.site, options.rounds)
            found.append(_in_a_process(place, "calls", *where))
    for row, found in zip(rows, times.values(), strict=True):
        row |= {name: median(each[name] for each in found) for name in found[0]}
    return rows


def print_sizes(rows: list[dict[str, float]], *, markdown: bool) -> None:
    table = [
        (
            f"{row['size']:,}",
            f"{row['open']:.1f}",
            f"{row['opening']:.2f}",
            f"{row['opening_empty']:.2f}",
            f"{row['memory'] / 1e6:+.1f}",
            f"{row['claim']:.2f}",
            f"{row['add']:.3f}",
            f"{row['ack']:.3f}",
            f"{row['longest']:.1f}",
        )
        for row in rows
    ]
    header = ("pending", "open ms", "first page s", "if empty s", "MB over empty")
    calls = (f"claim {_WINDOW} ms", f"add {_BATCH} ms", f"ack {_BATCH} ms", "longest write ms")
    report.print_table("The embedded queue", (*header, *calls), table, markdown=markdown)


def draw(file: Path, rows: list[dict[str, float]]) -> None:
    def curve(name: str, scale: float = 1) -> list[tuple[float, float]]:
        return [(row["size"], row[name] * scale) for row in rows]

    batches = {f"{name} of {_BATCH}": curve(name) for name in ("add", "ack")}
    panels = [
        ("One call", "ms", batches),
        ("One call", "ms", {f"claim of {_WINDOW}": curve("claim")}),
        ("Memory over an empty queue", "MB", {"crawl": curve("memory", 1e-6)}),
    ]
    plots.curves(file, panels)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000]
    )
    parser.add_argument("--known", type=int, default=1_000_000, help="how many known requests")
    parser.add_argument("--pages", type=int, default=300, help="crawled of a resumed queue")
    parser.add_argument("--rounds", type=int, default=100, help="timed calls in a row")
    parser.add_argument("--repeat", type=int, default=5, help="how often to repeat the rounds")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    report.add_options(parser)
    return parser


def _measure(what: str, *arguments: str) -> dict[str, float]:
    if what == "calls":
        folder, site, rounds = arguments
        return asyncio.run(time_calls(Path(folder), site, int(rounds)))
    count, scheduler = arguments
    return remember(int(count), scheduler)


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.sizes, options.known, options.pages = [500], 10_000, 5
        options.rounds, options.repeat = 5, 1
    if options.measure:
        print(json.dumps(_measure(*options.measure)))
        return
    machine = report.machine()
    report.print_machine(machine)
    with (
        tempfile.TemporaryDirectory() as folder,
        track(Path(folder), pin=True, fork=options.quick) as place,
    ):
        rows = measure(place, Path(folder) / "scale", options)
        known = {
            name: _in_a_process(place, "known", options.known, name) for name in ("stock", "ours")
        }
    print_sizes(rows, markdown=options.markdown)
    titles = {"stock": "Scrapy's RFPDupeFilter", "ours": "scrapy-apify-rq"}
    table = [(titles[name], f"{each['memory'] / 1e6:.1f}") for name, each in known.items()]
    title = f"{options.known:,} known requests"
    report.print_table(title, ("", "MB"), table, markdown=options.markdown)
    figures = {"machine": machine, "options": vars(options), "sizes": rows, "known": known}
    report.write_json(options.json, figures)
    if options.plot is not None:
        draw(options.plot, rows)


if __name__ == "__main__":
    main()
