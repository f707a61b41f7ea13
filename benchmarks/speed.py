"""What the queue costs a crawl, compared with plain Scrapy and with other queues.

Each contestant crawls the same site, in a new process and with a new queue. In each round every
contestant runs once; the next round has the opposite order. The table shows medians over the
rounds, of the figures and of their ratios to stock Scrapy in the same round. See README.md in this
folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import plots, report
from benchmarks.contestants import (
    DEFAULT,
    KINDS,
    QUICK,
    WITH_ITEMS,
    Contestant,
    contestant,
)
from benchmarks.track import Track, track

Run = dict[str, Any]
_STOCK = "stock"
_FEW_PAGES = 30


@dataclass
class Results:
    """The runs of each contestant on one kind of site, one run per round."""

    title: str
    runs: dict[str, list[Run]]

    def medians(self, figure: Callable[[Run], float]) -> dict[str, float]:
        return {name: median(map(figure, runs)) for name, runs in self.runs.items()}

    def ratios(self, figure: Callable[[Run], float]) -> dict[str, float]:
        """Ratios to stock Scrapy in the same round."""
        stock = list(map(figure, self.runs[_STOCK]))
        return {
            name: median(figure(run) / base for run, base in zip(runs, stock, strict=True))
            for name, runs in self.runs.items()
        }


def pages_per_second(run: Run) -> float:
    return float(run["pages"] / run["seconds"])


def cpu_per_page(run: Run) -> float:
    return float(run["cpu"] / run["pages"])


def calls_per_page(run: Run) -> float:
    return float(sum(run["calls"].values()) / run["pages"])


def rounds(contestants: Sequence[Contestant], count: int) -> Iterator[Contestant]:
    for number in range(count):
        yield from contestants if number % 2 == 0 else contestants[::-1]


def crawl(
    place: Track, contestants: Sequence[Contestant], delay: float, options: argparse.Namespace
) -> Results:
    """Crawl a site that answers after ``delay`` seconds."""
    runs: dict[str, list[Run]] = {each.name: [] for each in contestants}
    for each in rounds(contestants, options.rounds):
        pages = options.slow_pages if each.is_slow else options.pages
        place.set_site(pages=pages, links=options.links, delay=delay)
        runs[each.name].append(place.run(each, "/p/0"))
    limit = f"the site answers after {delay * 1000:g} ms" if delay else "the site answers at once"
    return Results(f"Pages with {options.links} links each, {limit}", runs)


def stalls(
    place: Track, contestants: Sequence[Contestant], links: int, options: argparse.Namespace
) -> Results:
    """Crawl one page with many links. The linked pages are empty, so that page stalls longest."""
    runs: dict[str, list[Run]] = {each.name: [] for each in contestants}
    place.set_site(delay=0)
    for each in rounds(contestants, options.rounds):
        pages = _FEW_PAGES if each.is_slow else min(links, 300)
        run = place.run(each, f"/to/many/{links}", CLOSESPIDER_PAGECOUNT=pages)
        runs[each.name].append(run)
    return Results(f"One page that yields {links:,} links", runs)


def with_items(place: Track, options: argparse.Namespace, folder: Path) -> Results:
    """Crawl a site that answers at once, into a feed."""
    contestants = list(map(contestant, WITH_ITEMS))
    runs: dict[str, list[Run]] = {each.name: [] for each in contestants}
    for number, each in enumerate(rounds(contestants, options.rounds)):
        place.set_site(pages=options.pages, links=options.links, delay=0)
        feed = {str(folder / f"{number}.jl"): {"format": "jsonlines"}}
        run = place.run(each, "/p/0", FEEDS=feed, BENCHMARK_ITEM=options.item)
        runs[each.name].append(run)
    return Results(f"Pages with an item of {options.item:,} bytes each, into a feed", runs)


def print_items(results: Results, *, markdown: bool) -> None:
    costs, ratios = results.medians(cpu_per_page), results.ratios(cpu_per_page)
    stored = results.medians(lambda run: run["stored"] / run["pages"])
    rows = [
        (
            contestant(name).title,
            f"{costs[name] * 1000:.2f}",
            f"{ratios[name]:.2f}",
            f"{stored[name]:,.0f}",
        )
        for name in results.runs
    ]
    header = ("", "CPU ms/page", "ratio", "bytes stored/page")
    report.print_table(results.title, header, rows, markdown=markdown)


def print_results(results: Results, titles: dict[str, str], *, markdown: bool) -> None:
    names = ("stall", "stall_wall", "first_page", "opening", "closing")
    speeds, speed_ratios = results.medians(pages_per_second), results.ratios(pages_per_second)
    costs, cost_ratios = results.medians(cpu_per_page), results.ratios(cpu_per_page)
    memory, own, wall, *times = (results.medians(itemgetter(name)) for name in ("memory", *names))
    rows = [
        (
            titles[name],
            f"{median(run['pages'] for run in results.runs[name]):,.0f}",
            f"{speeds[name]:.1f}",
            f"{speed_ratios[name]:.2f}",
            f"{costs[name] * 1000:.2f}",
            f"{cost_ratios[name]:.2f}",
            f"{memory[name] / 1e6:.0f}",
            f"{own[name] * 1000:.0f}",
            f"{wall[name] * 1000:.0f}",
            *(f"{each[name]:.2f}" for each in times),
        )
        for name in results.runs
    ]
    header = ("", "pages", "pages/s", "ratio", "CPU ms/page", "ratio", "peak MB", "stall ms")
    columns = (*header, "wall ms", "first page s", "opening s", "closing s")
    report.print_table(results.title, columns, rows, markdown=markdown)


def print_calls(results: Results, titles: dict[str, str], *, markdown: bool) -> None:
    """Print API calls per page by endpoint, for the contestants that make any."""
    calls = {name: runs for name, runs in results.runs.items() if runs[0]["calls"]}
    endpoints = sorted({name for runs in calls.values() for run in runs for name in run["calls"]})
    rows = []
    for name, runs in calls.items():
        row = [titles[name], f"{median(map(calls_per_page, runs)):.3f}"]
        for endpoint in endpoints:
            count = median(run["calls"].get(endpoint, 0) / run["pages"] for run in runs)
            row.append(f"{count:.3f}" if count else "")
        share = median(run["outcomes"].get("429", 0) / sum(run["calls"].values()) for run in runs)
        rows.append([*row, f"{share * 100:.1f} %"])
    if rows:
        header = ("", "all", *endpoints, "429s")
        title = f"API calls per page; {results.title}"
        report.print_table(title, header, rows, markdown=markdown)


def print_stalls(results: Results, titles: dict[str, str], *, markdown: bool) -> None:
    clocks = ("stall", "collection", "stall_cpu", "stall_wall")
    own, *others = (results.medians(itemgetter(clock)) for clock in clocks)
    rows = [
        (
            titles[name],
            f"{own[name] * 1000:.0f}",
            f"{(own[name] - own[_STOCK]) * 1000:+.0f}",
            *(f"{each[name] * 1000:.0f}" for each in others),
        )
        for name in results.runs
    ]
    header = ("", "stall ms", "more than stock", "GC ms", "CPU ms", "wall ms")
    report.print_table(results.title, header, rows, markdown=markdown)


def draw(file: Path, crawls: Sequence[Results], titles: dict[str, str]) -> None:
    panels = []
    for results in crawls:
        ratios = results.ratios(pages_per_second)
        speeds = results.medians(pages_per_second)
        values = {titles[name]: speed for name, speed in speeds.items()}
        texts = {titles[name]: f"{ratio:.2f}" for name, ratio in ratios.items()}
        panels.append((results.title, values, texts))
    plots.bars(file, panels, "pages/s; the numbers are ratios to Scrapy in memory")


def _contestants(names: Sequence[str]) -> list[Contestant]:
    """The contestants that can run here, stock Scrapy first."""
    able = []
    for each in map(contestant, dict.fromkeys((_STOCK, *names))):
        if reason := each.kind.missing():
            print(f"{each.name} is left out: {reason}")
        else:
            able.append(each)
    return able


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        metavar="NAME[@MS]",
        help=f"some of {', '.join(KINDS)}; MS is the round trip to the queue"
        f" (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--links", type=int, default=10, help="on each page")
    parser.add_argument(
        "--delay", type=float, nargs="+", default=[0, 0.05], help="the site's delay in seconds"
    )
    parser.add_argument(
        "--slow-pages",
        type=int,
        default=40,
        help="pages for contestants that wait for their queue",
    )
    parser.add_argument(
        "--many",
        type=int,
        nargs="*",
        default=[200, 5000],
        help="links on the page whose stall is measured",
    )
    parser.add_argument(
        "--item", type=int, default=1000, help="bytes of the items whose cost is measured; 0: none"
    )
    parser.add_argument(
        "--no-pin", action="store_true", help="let crawls and servers share all cores"
    )
    report.add_options(parser)
    options = parser.parse_args()
    options.contestants = options.contestants or (QUICK if options.quick else DEFAULT)
    if options.quick:
        options.rounds, options.pages, options.slow_pages = 1, 100, 10
        options.delay, options.many = [0], [20]
    return options


def main() -> None:
    options = _options()
    contestants = _contestants(options.contestants)
    titles = {each.name: each.title for each in contestants}
    machine = report.machine()
    report.print_machine(machine)
    figures: dict[str, Any] = {"machine": machine, "options": vars(options), "titles": titles}
    with (
        tempfile.TemporaryDirectory() as folder,
        track(Path(folder), pin=not options.no_pin) as place,
    ):
        place.start_redis_for(contestants)
        crawls = []
        for delay in options.delay:
            crawls.append(results := crawl(place, contestants, delay, options))
            print_results(results, titles, markdown=options.markdown)
            print_calls(results, titles, markdown=options.markdown)
        many = []
        for links in options.many:
            able = [each for each in contestants if links <= 200 or not each.is_slow]
            many.append(results := stalls(place, able, links, options))
            print_stalls(results, titles, markdown=options.markdown)
        if options.item:
            items = with_items(place, options, Path(folder))
            print_items(items, markdown=options.markdown)
            figures["items"] = vars(items)
    figures |= {"crawls": [vars(each) for each in crawls], "stalls": [vars(each) for each in many]}
    report.write_json(options.json, figures)
    if options.plot is not None:
        draw(options.plot, crawls, titles)


if __name__ == "__main__":
    main()
