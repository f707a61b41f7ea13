"""Broad crawls: many hosts, whose links are found host by host, compared with plain Scrapy.

Few pages of a host are fetched at a time, so the crawl is only as fast as it keeps hosts busy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.contestants import contestant
from benchmarks.track import Track, track


def run(place: Track, name: str, hosts: int, options: argparse.Namespace) -> dict[str, Any]:
    place.set_site(delay=options.delay)
    settings = {
        "CONCURRENT_REQUESTS": options.connections,
        "CONCURRENT_REQUESTS_PER_DOMAIN": options.per_host,
        "APIFY_RQ_WINDOW": options.window,
    }
    # Plain Scrapy does not know our settings, and does not mind them.
    found = place.run(contestant(name), f"/hosts/{hosts}/{options.pages // hosts}", **settings)
    assert found["pages"] == options.pages // hosts * hosts + 1, found["pages"]
    return found


def print_runs(hosts: int, runs: dict[str, list[Any]], options: argparse.Namespace) -> None:
    rows = []
    for name, group in runs.items():
        ratios = [
            stock["seconds"] / own["seconds"]
            for stock, own in zip(runs["stock"], group, strict=True)
        ]
        calls = [sum(one["calls"].values()) / one["pages"] for one in group]
        speed = median(one["pages"] / one["seconds"] for one in group)
        values = (f"{speed:.1f}", f"{median(ratios):.2f}", f"{median(calls):.2f}")
        rows.append((contestant(name).title, *values))
    title = (
        f"{hosts} hosts, {options.pages:,} pages, {options.connections} connections,"
        f" {options.per_host} for each host; a page takes {options.delay * 1000:g} ms"
    )
    header = ("", "pages/s", "ratio to stock", "calls/page")
    report.print_table(title, header, rows, markdown=options.markdown)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestants", nargs="+", default=["embedded", "api@50"])
    parser.add_argument("--hosts", type=int, nargs="+", default=[6, 100])
    parser.add_argument("--pages", type=int, default=1200, help="of all hosts together")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--per-host", type=int, default=2)
    parser.add_argument("--delay", type=float, default=0.1, help="the site's delay in seconds")
    parser.add_argument("--window", type=int, default=1000, help="APIFY_RQ_WINDOW")
    parser.add_argument("--rounds", type=int, default=3)
    report.add_options(parser, plot=False)
    options = parser.parse_args()
    if options.quick:
        options.contestants, options.hosts = ["embedded"], [6]
        options.pages, options.rounds = 48, 1
    return options


def main() -> None:
    options = _options()
    machine = report.machine()
    report.print_machine(machine)
    figures = {}
    most = max(options.hosts)
    with (
        tempfile.TemporaryDirectory() as folder,
        track(Path(folder), pin=True, hosts=most) as place,
    ):
        for hosts in options.hosts:
            runs: dict[str, list[Any]] = {name: [] for name in ("stock", *options.contestants)}
            for _ in range(options.rounds):
                for name, group in runs.items():
                    group.append(run(place, name, hosts, options))
            print_runs(hosts, runs, options)
            figures[hosts] = runs
    report.write_json(options.json, {"machine": machine, "options": vars(options), "runs": figures})


if __name__ == "__main__":
    main()
