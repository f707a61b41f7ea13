"""Broad crawls: many hosts, a few pages of each at a time, compared with plain Scrapy.

A crawl is only as fast as it keeps hosts busy, so the order of its queue matters. A row is a
scenario: how many hosts there are, whether their links come host by host or mixed, how many
connections each may have, and what slows them down. See README.md in this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import report
from benchmarks.compare import (
    STOCK,
    Results,
    Run,
    add_options,
    calls_per_page,
    compare,
    of,
    pages_per_second,
    session,
    speed,
)
from benchmarks.contestants import Contestant, contestant
from benchmarks.track import Track

_CONTESTANTS = ("stock", "embedded", "api", "api-shared")


@dataclass(frozen=True)
class Scenario:
    hosts: int
    links: str = "hosts"
    """The path of the page with all links; see site.py."""
    per_host: int = 2
    slow: int | None = None
    """The number of a host that takes 20 times as long."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Such as "100 hosts, mixed, 8 at a time, AutoThrottle"."""
        order = "mixed" if self.links == "mixed" else "grouped"
        parts = [f"{self.hosts:,} hosts", order, f"{self.per_host} at a time"]
        if "DOWNLOAD_DELAY" in self.settings:
            parts.append(f"DOWNLOAD_DELAY {self.settings['DOWNLOAD_DELAY']}")
        if "AUTOTHROTTLE_ENABLED" in self.settings:
            parts.append("AutoThrottle")
        if self.slow is not None:
            parts.append(f"the {'last' if self.slow else 'first'} host 20 times slower")
        return ", ".join(parts)


# The start delay is 5 s by default, in which these crawls would do nothing.
_THROTTLE = {
    "AUTOTHROTTLE_ENABLED": True,
    "AUTOTHROTTLE_START_DELAY": 0.2,
    "AUTOTHROTTLE_TARGET_CONCURRENCY": 2,
}
SCENARIOS = {
    "10": Scenario(10),
    "10-mixed": Scenario(10, "mixed"),
    "100": Scenario(100),
    "100-mixed": Scenario(100, "mixed"),
    "100-of-4": Scenario(100, per_host=4),
    "100-of-8": Scenario(100, per_host=8),
    "1000": Scenario(1000),
    "1000-mixed": Scenario(1000, "mixed"),
    "delay": Scenario(100, settings={"DOWNLOAD_DELAY": 0.5}),
    "throttle": Scenario(100, settings=_THROTTLE),
    "slow-first": Scenario(100, slow=0),
    "slow-last": Scenario(100, slow=99),
}


def crawl(
    place: Track, contestants: Sequence[Contestant], scenario: Scenario, options: argparse.Namespace
) -> Results:
    each_has = max(options.least, options.pages // scenario.hosts)
    settings = {
        "CONCURRENT_REQUESTS": options.connections,
        "CONCURRENT_REQUESTS_PER_DOMAIN": scenario.per_host,
        **scenario.settings,
    }

    def run(each: Contestant) -> Run:
        slow = {} if scenario.slow is None else {"slow": scenario.slow}
        place.set_site(delay=options.delay, **slow)
        found = place.run(each, f"/{scenario.links}/{scenario.hosts}/{each_has}", **settings)
        if found["pages"] != scenario.hosts * each_has + 1:
            raise RuntimeError(f"{each.name}: {found['pages']} pages of {scenario.title}")
        return found

    return compare(scenario.title, contestants, options.rounds, run)


def print_crawls(crawls: Sequence[Results], options: argparse.Namespace) -> None:
    """A row for each scenario, a column for each contestant."""
    others = [name for name in crawls[0].runs if name != STOCK]
    rows = [
        (
            results.title,
            f"{results.median(STOCK, of('pages')):,.0f}",
            f"{results.median(STOCK, pages_per_second):.0f}",
            *(
                f"{results.ratio(name, speed):.2f} ({results.ratio(name, pages_per_second):.2f})"
                for name in others
            ),
            *(f"{results.median(name, calls_per_page):.2f}" for name in others if "api" in name),
        )
        for results in crawls
    ]
    title = (
        "Speed of the whole crawl as a ratio to Scrapy (in brackets: from first page to last);"
        f" {options.connections} connections, a page takes {options.delay * 1000:g} ms"
    )
    header = ["crawl", "pages", "Scrapy pages/s", *(contestant(name).title for name in others)]
    header += [f"{contestant(name).title}: calls/page" for name in others if "api" in name]
    report.print_table(title, header, rows, markdown=options.markdown)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--scenarios",
        nargs="+",
        choices=SCENARIOS,
        default=list(SCENARIOS),
        metavar="NAME",
        help=f"some of {', '.join(SCENARIOS)}",
    )
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--pages", type=int, default=1200, help="of all hosts together")
    found.add_argument("--least", type=int, default=3, help="pages of each host")
    found.add_argument("--connections", type=int, default=16)
    found.add_argument("--delay", type=float, default=0.1, help="the site's delay in seconds")
    add_options(found, _CONTESTANTS)
    return found


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.contestants, options.scenarios = ["embedded"], ["slow-last"]
        options.rounds, options.pages, options.least, options.delay = 1, 100, 1, 0.02
    scenarios = [SCENARIOS[name] for name in options.scenarios]
    most = max(scenario.hosts for scenario in scenarios)
    with session(options, hosts=most) as (place, contestants, figures):
        crawls = [crawl(place, contestants, scenario, options) for scenario in scenarios]
        figures["crawls"] = list(map(vars, crawls))
    print_crawls(crawls, options)


if __name__ == "__main__":
    main()
