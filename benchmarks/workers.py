"""Several workers on one queue in shared access, compared with one worker.

Each worker is a process with few connections to a slow site, so that the site is the limit and not
the machine's CPU. The time is measured from the first page that the site receives a request for to
the last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.contestants import TOKEN, Contestant, Place, contestant
from benchmarks.track import Track, finish, track


def run(place: Track, queue: Contestant, workers: int, options: argparse.Namespace) -> Any:
    """Crawl with so many workers, and return what that took: seconds, writes, calls, ..."""
    place.set_site(pages=options.pages, links=options.links, delay=options.delay)
    where = place.new_place(queue.latency)
    settings = {
        "APIFY_RQ_ACCESS": "shared",
        "CONCURRENT_REQUESTS": options.connections,
        "CONCURRENT_REQUESTS_PER_DOMAIN": options.connections,
    }
    # A start request is not filtered, so a link to its page would have it crawled twice.
    start_path = "/to/p/0" if options.dense else "/t/0"
    start = time.time()
    crawls = [place.start(queue, where, start_path, settings) for _ in range(workers)]
    reports = [finish(crawl) for crawl in crawls]
    seen = place.hits()
    pages = len(seen["hits"])
    if pages != options.pages + options.dense:
        raise RuntimeError(f"{pages} pages crawled instead of {options.pages + options.dense}")
    return {
        "workers": workers,
        "seconds": seen["last"] - seen["first"],
        "all_seconds": time.time() - start,
        "pages": pages,
        "repeated": sum(seen["hits"].values()) - pages,
        "writes": _writes(where) if queue.kind.remote else None,
        "shares": sorted(each["pages"] for each in reports),
        "calls": place.server.calls.operations,
        "outcomes": place.server.calls.outcomes,
    }


def _writes(where: Place) -> int:
    call = urllib.request.Request(
        f"{where.api}/v2/request-queues/{where.queue_id}",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    with urllib.request.urlopen(call, timeout=30) as answer:
        writes: int = json.load(answer)["data"]["stats"]["writeCount"]
    return writes


def print_runs(runs: dict[int, list[Any]], options: argparse.Namespace) -> None:
    alone = runs[1]
    rows = []
    for workers, group in runs.items():
        speeds = [run["pages"] / run["seconds"] for run in group]
        pairs = zip(alone, group, strict=True)
        writes = [run["writes"] / run["pages"] for run in group if run["writes"] is not None]
        rows.append(
            (
                workers,
                f"{median(speeds):.1f}",
                f"{median(one['seconds'] / many['seconds'] for one, many in pairs):.2f}",
                f"{median(writes):.3f}" if writes else "",
                f"{median(sum(run['calls'].values()) / run['pages'] for run in group):.3f}",
                max(run["repeated"] for run in group),
                f"{median(min(run['shares']) for run in group):.0f}",
                f"{median(max(run['shares']) for run in group):.0f}",
            )
        )
    header = ("workers", "pages/s", "times as fast", "writes/page", "calls/page", "pages repeated")
    site = "each linked from many others" if options.dense else "a tree"
    title = (
        f"{options.queue}, {options.pages:,} pages, {site}, {options.connections} connections each,"
        f" the site answers after {options.delay * 1000:g} ms"
    )
    report.print_table(
        title, (*header, "least pages", "most pages"), rows, markdown=options.markdown
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[4], help="numbers of workers to compare with one"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--queue", default="api@50", help="embedded, or api@ and the round trip in milliseconds"
    )
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--links", type=int, default=10, help="on each page")
    parser.add_argument("--delay", type=float, default=0.2, help="the site's delay in seconds")
    parser.add_argument("--connections", type=int, default=4, help="of each worker")
    parser.add_argument("--dense", action="store_true", help="link each page from many others")
    report.add_options(parser, plot=False)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.pages, options.workers = 1, 40, [2]
    return options


def main() -> None:
    options = _options()
    queue = contestant(options.queue)
    machine = report.machine()
    report.print_machine(machine)
    runs: dict[int, list[Any]] = {workers: [] for workers in (1, *options.workers)}
    with tempfile.TemporaryDirectory() as folder, track(Path(folder), pin=False) as place:
        for _ in range(options.rounds):
            for workers, group in runs.items():
                group.append(run(place, queue, workers, options))
    print_runs(runs, options)
    report.write_json(options.json, {"machine": machine, "options": vars(options), "runs": runs})


if __name__ == "__main__":
    main()
