"""Compare contestants: rounds, medians, and ratios to stock Scrapy in the same round.

In each round every contestant runs once; the next round has the opposite order. So a machine that
is slow for a minute is slow for all of them, and a ratio hardly depends on it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.contestants import KINDS, Contestant, contestant, with_round_trips
from benchmarks.track import Track, track

STOCK = "stock"
Run = dict[str, Any]
Figure = Callable[[Run], float]


@dataclass
class Results:
    """The runs of each contestant under the same conditions, one run per round."""

    title: str
    runs: dict[str, list[Run]]

    def median(self, name: str, figure: Figure) -> float:
        return median(map(figure, self.runs[name]))

    def ratio(self, name: str, figure: Figure) -> float:
        """To stock Scrapy in the same round."""
        pairs = zip(self.runs[name], self.runs[STOCK], strict=True)
        return median(figure(own) / figure(stock) for own, stock in pairs)

    def more(self, name: str, figure: Figure) -> float:
        """Than stock Scrapy in the same round."""
        pairs = zip(self.runs[name], self.runs[STOCK], strict=True)
        return median(figure(own) - figure(stock) for own, stock in pairs)


def compare(
    title: str, contestants: Sequence[Contestant], rounds: int, run: Callable[[Contestant], Run]
) -> Results:
    runs: dict[str, list[Run]] = {each.name: [] for each in contestants}
    for number in range(rounds):
        for each in contestants if number % 2 == 0 else contestants[::-1]:
            runs[each.name].append(found := run(each))
            print(f"{title}: {each.title}: {found['whole']:.1f} s", file=sys.stderr)
    return Results(title, runs)


# Figures of one run


def of(name: str, scale: float = 1) -> Figure:
    return lambda run: float(run[name] * scale)


def pages_per_second(run: Run) -> float:
    """Between the first response and the last."""
    return float((run["pages"] - 1) / run["seconds"])


def speed(run: Run) -> float:
    """Of the whole crawl, from the start of its process to its end."""
    return float(1 / run["whole"])


def cpu_per_page(run: Run) -> float:
    """Milliseconds."""
    return float(run["cpu"] / run["pages"] * 1000)


def instructions_per_page(run: Run) -> float:
    """Millions."""
    return float(run["instructions"] / run["pages"] / 1e6)


def calls_per_page(run: Run) -> float:
    return float(sum(run["calls"].values()) / run["pages"])


def refused(run: Run) -> float:
    """The share of calls that were answered with 429, in percent."""
    return float(100 * run["outcomes"].get("429", 0) / max(1, sum(run["calls"].values())))


# Tables


class Column(NamedTuple):
    header: str
    cell: Callable[[Results, str], str]


def column(header: str, figure: Figure, form: str = ".2f") -> Column:
    return Column(header, lambda results, name: format(results.median(name, figure), form))


def ratio(figure: Figure, header: str = "ratio") -> Column:
    return Column(header, lambda results, name: f"{results.ratio(name, figure):.2f}")


def more(header: str, figure: Figure, form: str = "+.2f") -> Column:
    return Column(header, lambda results, name: format(results.more(name, figure), form))


def print_results(results: Results, columns: Sequence[Column], *, markdown: bool) -> None:
    rows = [
        (contestant(name).title, *(each.cell(results, name) for each in columns))
        for name in results.runs
    ]
    header = ("queue, round trip", *(each.header for each in columns))
    report.print_table(results.title, header, rows, markdown=markdown)


# The command line


def add_options(
    parser: argparse.ArgumentParser,
    contestants: Sequence[str],
    *,
    round_trips: Sequence[float] = (0.05,),
    plot: bool = False,
) -> None:
    parser.add_argument(
        "--contestants",
        nargs="+",
        type=_name,
        metavar="NAME[@MS]",
        default=contestants,
        help=f"some of {', '.join(KINDS)} (default: {' '.join(contestants)})",
    )
    parser.add_argument(
        "--round-trip",
        type=float,
        nargs="+",
        default=round_trips,
        metavar="SECONDS",
        help="to a queue behind a server, where its name has no @ and milliseconds"
        f" (default: {' '.join(map(str, round_trips))})",
    )
    parser.add_argument(
        "--no-pin", action="store_true", help="let crawls and servers share all cores"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="write a profile of each crawl to this folder; it slows them down",
    )
    report.add_options(parser, plot=plot)


def _name(text: str) -> str:
    try:
        contestant(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def able(names: Sequence[str], round_trips: Sequence[float]) -> list[Contestant]:
    """The contestants that can run here, stock Scrapy first."""
    found = []
    for each in map(contestant, dict.fromkeys((STOCK, *with_round_trips(names, round_trips)))):
        if reason := each.kind.missing():
            print(f"{each.name} is left out: {reason}")
        else:
            found.append(each)
    return found


class Session(NamedTuple):
    place: Track
    contestants: list[Contestant]
    figures: dict[str, Any]
    """What ``--json`` writes in the end."""


@contextmanager
def session(
    options: argparse.Namespace, *, hosts: int = 1, instructions: bool = False
) -> Iterator[Session]:
    contestants = able(options.contestants, options.round_trip)
    machine = report.machine()
    report.print_machine(machine)
    figures: dict[str, Any] = {"machine": machine, "options": vars(options)}
    figures["titles"] = {each.name: each.title for each in contestants}
    with (
        tempfile.TemporaryDirectory() as folder,
        track(
            Path(folder),
            contestants,
            pin=not options.no_pin,
            hosts=hosts,
            fork=options.quick,
            profiles=options.profile,
            instructions=instructions,
        ) as place,
    ):
        yield Session(place, contestants, figures)
    report.write_json(options.json, figures)
