"""Whole crawls, from the start of the process to its end, compared with plain Scrapy.

They are crawls of several sizes, on a site that answers at once and on one that takes a while, and
with several round trips to the API. A second table shows what comes before the first page, and what
after the last one. See README.md in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import report
from benchmarks.compare import (
    STOCK,
    Results,
    Run,
    add_options,
    column,
    compare,
    more,
    of,
    pages_per_second,
    print_results,
    session,
    speed,
)
from benchmarks.contestants import Contestant, contestant
from benchmarks.track import Track

_CONTESTANTS = ("stock", "embedded", "api")
_ROUND_TRIPS = (0, 0.05, 0.2)
_ENDS = (
    column("first page s", of("first_page")),
    more("more than stock", of("first_page")),
    column("last page to end s", of("end")),
    more("more than stock", of("end")),
)


def crawl(
    place: Track, contestants: Sequence[Contestant], pages: int, delay: float, rounds: int
) -> Results:
    def run(each: Contestant) -> Run:
        place.set_site(pages=pages, delay=delay)
        found = place.run(each, "/to/p/0")
        if found["pages"] != pages + 1:
            raise RuntimeError(f"{each.name}: {found['pages']} pages instead of {pages + 1}")
        return found

    at = f"{delay * 1000:g} ms" if delay else "at once"
    return compare(f"{pages:,} pages, site {at}", contestants, rounds, run)


def print_wholes(crawls: Sequence[Results], *, markdown: bool) -> None:
    """A row for each crawl, a column for each contestant."""
    others = [name for name in crawls[0].runs if name != STOCK]
    rows = [
        (
            results.title,
            f"{results.median(STOCK, of('whole')):.2f}",
            f"{results.median(STOCK, pages_per_second):.0f}",
            *(
                f"{results.ratio(name, speed):.2f} ({results.ratio(name, pages_per_second):.2f})"
                for name in others
            ),
        )
        for results in crawls
    ]
    title = "Speed of the whole crawl as a ratio to Scrapy (in brackets: from first page to last)"
    header = ("crawl", "Scrapy s", "pages/s", *(contestant(name).title for name in others))
    report.print_table(title, header, rows, markdown=markdown)


def print_ends(crawls: Sequence[Results], *, markdown: bool) -> None:
    """Of all crawls together: their sizes do not matter for it."""
    names = crawls[0].runs
    together = Results(
        "Start and end",
        {name: [run for results in crawls for run in results.runs[name]] for name in names},
    )
    print_results(together, _ENDS, markdown=markdown)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--pages", type=int, nargs="+", default=[200, 2000])
    found.add_argument(
        "--rounds",
        type=int,
        nargs="+",
        default=[5, 3, 1],
        help="for each number of pages: a long crawl needs fewer (default: 5 3 1)",
    )
    found.add_argument(
        "--delay", type=float, nargs="+", default=[0, 0.05], help="the site's delay in seconds"
    )
    add_options(found, _CONTESTANTS, round_trips=_ROUND_TRIPS)
    return found


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.contestants, options.pages = ["embedded"], [20]
        options.rounds, options.delay = [1], [0]
    crawls: list[Results] = []
    with session(options) as (place, contestants, figures):
        for number, pages in enumerate(options.pages):
            rounds = options.rounds[min(number, len(options.rounds) - 1)]
            crawls += [crawl(place, contestants, pages, delay, rounds) for delay in options.delay]
        figures["crawls"] = list(map(vars, crawls))
    print_wholes(crawls, markdown=options.markdown)
    print_ends(crawls, markdown=options.markdown)


if __name__ == "__main__":
    main()
