"""The CPU time of a page, with and without saved items and state, compared with plain Scrapy.

In one table the crawls have neither items nor feeds. In the other each page yields an item into a
feed, and changes the spider's state. It is counted from the first response to the end of the crawl,
in all threads. The garbage collector works as in any Python program, except in the rows that say
``gc.freeze()``. With ``--instructions`` the processor's instructions are counted instead, which no
other program can disturb. See README.md in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.compare import (
    Results,
    Run,
    add_options,
    column,
    compare,
    cpu_per_page,
    instructions_per_page,
    of,
    print_results,
    ratio,
    session,
)
from benchmarks.contestants import Contestant
from benchmarks.track import Track

_CONTESTANTS = (
    *("stock", "stock-frozen", "jobdir", "jobdir-sqlite"),
    *("embedded", "embedded-unsaved", "embedded-frozen", "api", "api-unsaved", "api-frozen"),
)


def crawl(
    place: Track, contestants: Sequence[Contestant], item: int, options: argparse.Namespace
) -> Results:
    """Crawl a site that answers at once."""

    def run(each: Contestant) -> Run:
        place.set_site(pages=options.slow_pages if each.is_slow else options.pages, delay=0)
        feed = {str(place.new_file()): {"format": "jsonlines"}}
        more = {"FEEDS": feed, "BENCHMARK_ITEM": item} if item else {}
        return place.run(each, "/to/p/0", **more)

    title = f"with an item of {item:,} bytes a page, and state" if item else "no items, no state"
    what = "Instructions" if options.instructions else "CPU"
    return compare(f"{what}, {title}", contestants, options.rounds, run)


_CPU = (
    column("CPU ms/page", cpu_per_page),
    ratio(cpu_per_page),
    column("bytes stored/page", lambda run: run["stored"] / run["pages"], ",.0f"),
    column("peak MB", of("memory", 1e-6), ".0f"),
)
_INSTRUCTIONS = (
    column("million instructions/page", instructions_per_page),
    ratio(instructions_per_page),
)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--pages", type=int, default=1000)
    found.add_argument(
        "--slow-pages",
        type=int,
        default=40,
        help="pages for contestants that wait for their queue",
    )
    found.add_argument(
        "--item", type=int, nargs="+", default=[0, 1000], help="bytes of each item; 0: no items"
    )
    found.add_argument(
        "--instructions",
        action="store_true",
        help="count them with valgrind, in which crawls are 40 times slower",
    )
    add_options(found, _CONTESTANTS)
    return found


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.contestants, options.item = ["embedded"], [1000]
        options.rounds, options.pages = 1, 20
    tables = []
    columns = _INSTRUCTIONS if options.instructions else _CPU
    with session(options, instructions=options.instructions) as (place, contestants, figures):
        for item in options.item:
            # Without items there is nothing to save.
            some = [each for each in contestants if item or "unsaved" not in each.name]
            tables.append(results := crawl(place, some, item, options))
            print_results(results, columns, markdown=options.markdown)
        figures["tables"] = list(map(vars, tables))


if __name__ == "__main__":
    main()
