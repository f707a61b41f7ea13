"""List the benchmarks, or, with ``--quick``, try them all with tiny numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class Program(NamedTuple):
    shows: str
    table: str | None = None
    """The heading in docs/speed.md above the tables that it makes."""


PROGRAMS = {
    "whole": Program("whole crawls of several sizes, and their start and end", "Whole crawls"),
    "speed": Program(
        "speed, memory and stalls, compared with other queues", "Compared with other queues"
    ),
    "cpu": Program("the CPU time of a page, with and without saved items", "CPU"),
    "hosts": Program("crawls of 10 to 1,000 hosts (needs Linux)", "Many hosts"),
    "workers": Program("several workers on one queue, and one that is killed", "Several workers"),
    "scale": Program("the embedded queue with a million entries", "A million requests"),
    "kills": Program("what feeds hold after crawls that were killed again and again"),
    "http_transport": Program("why API calls use httpx2 with aiohttp's connections"),
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run all, with tiny numbers")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write all figures to a folder")
    options = parser.parse_args(words)
    if options.quick:
        for name in PROGRAMS:
            try_out(name, options.json)
        return
    for name, program in PROGRAMS.items():
        place = f"docs/speed.md, {program.table}" if program.table else "no table there"
        print(f"python -m benchmarks.{name:15}{program.shows} ({place})")
    print("All have --help and --quick. python -m benchmarks --quick runs all of them.")


def try_out(name: str, folder: Path | None) -> None:
    print(f"\n{name}\n")
    words = ["--quick", "--markdown"]
    if folder is not None:
        words += ["--json", str(folder / f"{name}.json")]
    if failure := import_module(f"benchmarks.{name}").main(words):
        raise SystemExit(f"benchmarks.{name} has failed: {failure}")


if __name__ == "__main__":
    main()
