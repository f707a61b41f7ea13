"""What the queue costs a crawl, compared with plain Scrapy and with other queues.

Each contestant crawls the same site, in a new process and with a new queue. Further tables show the
longest stall on one page with many links. See README.md in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.compare import (
    STOCK,
    Column,
    Results,
    Run,
    add_options,
    calls_per_page,
    column,
    compare,
    cpu_per_page,
    more,
    of,
    pages_per_second,
    print_results,
    ratio,
    refused,
    session,
    speed,
)
from benchmarks.contestants import Contestant, contestant
from benchmarks.track import Track

_CONTESTANTS = (
    *("stock", "jobdir", "jobdir-sqlite", "embedded", "api@0", "api@50"),
    *("apify-single@0", "apify-single@50", "apify-shared@50", "scrapy-redis@0", "scrapy-redis@50"),
)
_FEW_PAGES = 30


def _whole_ratio(results: Results, name: str) -> str:
    """Of crawls with as many pages as stock Scrapy's."""
    pages = {results.median(each, of("pages")) for each in (name, STOCK)}
    return f"{results.ratio(name, speed):.2f}" if len(pages) == 1 else ""


_COLUMNS = (
    column("pages", of("pages"), ",.0f"),
    column("pages/s", pages_per_second, ".1f"),
    ratio(pages_per_second),
    column("whole s", of("whole")),
    Column("ratio", _whole_ratio),
    column("CPU ms/page", cpu_per_page),
    ratio(cpu_per_page),
    column("peak MB", of("memory", 1e-6), ".0f"),
    column("calls/page", calls_per_page),
    column("429s %", refused, ".1f"),
    column("first page s", of("first_page")),
    column("end s", of("end")),
)
_STALLS = (
    column("stall ms", of("stall", 1000), ".0f"),
    more("more than stock", of("stall", 1000), "+.0f"),
    column("GC ms", of("collection", 1000), ".0f"),
    column("CPU ms", of("stall_cpu", 1000), ".0f"),
    column("wall ms", of("stall_wall", 1000), ".0f"),
)


def crawl(
    place: Track, contestants: Sequence[Contestant], delay: float, options: argparse.Namespace
) -> Results:
    """Crawl a site that answers after ``delay`` seconds."""

    def run(each: Contestant) -> Run:
        pages = options.slow_pages if each.is_slow else options.pages
        place.set_site(pages=pages, links=options.links, delay=delay)
        return place.run(each, "/to/p/0")

    limit = f"the site answers after {delay * 1000:g} ms" if delay else "the site answers at once"
    title = f"Pages with {options.links} links each, {limit}"
    return compare(title, contestants, options.rounds, run)


def stalls(
    place: Track, contestants: Sequence[Contestant], links: int, options: argparse.Namespace
) -> Results:
    """Crawl one page with many links. The linked pages are empty, so that page stalls longest."""
    place.set_site(delay=0)

    def run(each: Contestant) -> Run:
        pages = _FEW_PAGES if each.is_slow else min(links, 300)
        path = f"/to/many/{links}"
        return place.run(each, path, CLOSESPIDER_PAGECOUNT=pages, BENCHMARK_STALLS=True)

    return compare(f"One page that yields {links:,} links", contestants, options.rounds, run)


def draw(file: Path, crawls: Sequence[Results]) -> None:
    panels = []
    for results in crawls:
        values, texts = {}, {}
        for name in results.runs:
            title = contestant(name).title
            values[title] = results.median(name, pages_per_second)
            texts[title] = f"{results.ratio(name, pages_per_second):.2f}"
        panels.append((results.title, values, texts))
    plots.bars(file, panels, "pages/s; the numbers are ratios to Scrapy in memory")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--pages", type=int, default=2000)
    found.add_argument("--links", type=int, default=10, help="on each page")
    found.add_argument(
        "--delay", type=float, nargs="+", default=[0, 0.05], help="the site's delay in seconds"
    )
    found.add_argument(
        "--slow-pages",
        type=int,
        default=40,
        help="pages for contestants that wait for their queue",
    )
    found.add_argument(
        "--many",
        type=int,
        nargs="*",
        default=[200, 5000],
        help="links on the page whose stall is measured",
    )
    add_options(found, _CONTESTANTS, plot=True)
    return found


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.contestants, options.many = ["jobdir-sqlite"], [20]
        options.rounds, options.pages, options.delay = 1, 20, [0]
    crawls, many = [], []
    with session(options) as (place, contestants, figures):
        for delay in options.delay:
            crawls.append(results := crawl(place, contestants, delay, options))
            print_results(results, _COLUMNS, markdown=options.markdown)
        for links in options.many:
            able = [each for each in contestants if links <= 200 or not each.is_slow]
            able = able[:1] if options.quick else able
            many.append(results := stalls(place, able, links, options))
            print_results(results, _STALLS, markdown=options.markdown)
        figures |= {"crawls": list(map(vars, crawls)), "stalls": list(map(vars, many))}
    if options.plot is not None:
        draw(options.plot, crawls)


if __name__ == "__main__":
    main()
