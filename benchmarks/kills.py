"""Kill crawls again and again, and compare what their feeds hold with stock Scrapy's.

Each crawl is killed at random moments, then runs to its end. Missing is what an uninterrupted crawl
with Scrapy's own scheduler has scraped and a feed lacks; twice is what it holds too often. The exit
status is 1 if there is any. With ``--one-file`` two crawls append to one file at the same time; of
its lines none may be missing or cut, but some come twice.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree

from benchmarks import programs, report
from benchmarks.killed import feeds
from benchmarks.track import running

WAYS: Final = ("kill", "int", "int-twice", "mixed")
_DELAY: Final = 0.02
_PATIENCE: Final = 120
_SIGNS_OF_A_BUG: Final = ("Traceback", "Bug in scrapy-apify-rq", "Unhandled error")
# What SIGINT leaves behind until Scrapy handles it, as during imports. Python 3.11 shows a blank
# line for a frame that has just been entered, and a colon after an exception that it ignores.
_FRAMES: Final = r"Traceback .*(?:\n(?: .*)?)*\n"
_INTERRUPTED: Final = re.compile(
    rf"^(?:{_FRAMES}\S.*\n\nDuring handling .*\n\n)*{_FRAMES}KeyboardInterrupt(?:: )?$", re.M
)

Contents = dict[str, Counter[str]]
Process = subprocess.Popen[bytes] | programs.Fork


class Place(NamedTuple):
    site: str
    chance: random.Random
    """What chooses the moments."""
    fork: bool
    """As in ``programs.start``."""


def _lines(data: bytes) -> list[str]:
    return [json.loads(line)["id"] for line in data.decode().splitlines()]


def _csv_ids(data: bytes) -> list[str]:
    header, *rows = csv.reader(data.decode().splitlines())
    if header != ["id", "text"]:
        raise ValueError("no header")
    return [id for id, _ in rows]


READERS: Final[dict[str, Callable[[bytes], list[str]]]] = {
    ".jl": _lines,
    ".gz": lambda data: _lines(gzip.decompress(data)),
    ".json": lambda data: [item["id"] for item in json.loads(data)],
    ".csv": _csv_ids,
    ".xml": lambda data: [item.findtext("id") or "" for item in ElementTree.fromstring(data)],
}


def signs_of_a_bug(log: str) -> list[str]:
    log = _INTERRUPTED.sub("", log)
    return [sign for sign in _SIGNS_OF_A_BUG if sign in log]


def contents(folder: Path) -> tuple[Contents, int]:
    """Return the items of each feed, all batches of one together, and how many files are broken."""
    found: Contents = {}
    broken = 0
    for file in folder.iterdir():
        name = file.stem.partition("-")[0] + file.suffix
        if "-" in file.stem:
            name = f"{name} in batches"
        try:
            found.setdefault(name, Counter()).update(READERS[file.suffix](file.read_bytes()))
        except (ValueError, EOFError, OSError, KeyError, ElementTree.ParseError) as error:
            print(f"{file}: {error}")
            broken += 1
    return found, broken


class Crawl:
    """A crawl with a folder of its own, run by run."""

    def __init__(self, folder: Path, place: Place, settings: dict[str, Any], tag: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"log{tag}"
        self._words = [place.site, json.dumps(settings), "--tag", tag]
        self._fork = place.fork
        self.is_over = False
        self.status = 0

    def start(self) -> Process:
        return programs.start(
            "benchmarks.killed", self._words, self._log, fork=self._fork, strict=True
        )

    def end(self, process: Process) -> None:
        self.status = process.wait(_PATIENCE)
        self.is_over = True

    @property
    def log(self) -> str:
        return self._log.read_text()


def stop(process: Process, way: str, chance: random.Random) -> None:
    if way == "mixed":
        way = chance.choice(WAYS[:-1])
    process.send_signal(signal.SIGKILL if way == "kill" else signal.SIGINT)
    if way == "int-twice":
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
    process.wait(_PATIENCE)


def ours(folder: Path) -> dict[str, Any]:
    return {
        "ADDONS": {"scrapy_apify_rq.Addon": 500},
        "APIFY_RQ_STORAGE_DIR": str(folder / "storage"),
        "APIFY_RQ_BACKEND": "sqlite",
    }


def fetched(site: str) -> int:
    with urllib.request.urlopen(f"{site}/_hits", timeout=30) as answer:
        return sum(json.load(answer)["hits"].values())


def forget(site: str) -> None:
    urllib.request.urlopen(f"{site}/_site", timeout=30).close()


def kill_crawl(crawl: Crawl, storage: Path, way: str, kills: int, pages: int, place: Place) -> int:
    """Kill it at random moments, and return how many times before it came to its end.

    Two of three are a number of pages. The others may come at any time: while it opens, gives its
    feeds what earlier runs have saved, or closes.
    """
    site, chance, _ = place
    for number in range(kills):
        process = crawl.start()
        began, before = time.monotonic(), fetched(site)
        if chance.random() < 0.67:
            target = before + chance.randrange(1, max(2, 2 * pages // kills))
            while fetched(site) < target and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 2 * _DELAY))
        else:
            ends = began + chance.uniform(0.3, 3)
            while time.monotonic() < ends and process.poll() is None:
                time.sleep(0.01)
        if process.poll() is not None:
            crawl.end(process)
            return number
        stop(process, way, chance)
        crawl.is_over = _is_stored(storage)
        if crawl.is_over:
            return number
    return kills


def _is_stored(folder: Path) -> bool:
    """The crawl has ended in spite of the signal: the next run would start afresh."""
    file = folder / "request_queues.sqlite"
    if not file.exists():
        return False
    with closing(sqlite3.connect(file)) as db:
        try:
            rows = db.execute("SELECT json FROM feeds WHERE name = 'crawl'").fetchall()
        except sqlite3.OperationalError:  # it was killed before it had made the tables
            return False
    return any(json.loads(text)["ended"] for (text,) in rows)


def feeds_of_one(
    folder: Path, way: str, expected: Contents, options: argparse.Namespace, place: Place
) -> Counter[str]:
    settings = {**ours(folder), "FEEDS": feeds(folder / "feeds"), **options.settings}
    crawl = Crawl(folder, place, settings)
    forget(place.site)
    kills = kill_crawl(crawl, folder / "storage", way, options.kills, options.pages, place)
    if not crawl.is_over:
        crawl.end(crawl.start())
    return verdict(folder / "feeds", expected, [crawl]) + Counter(kills=kills)


def verdict(folder: Path, expected: Contents, crawls: Sequence[Crawl]) -> Counter[str]:
    found, broken = contents(folder)
    faults: Counter[str] = Counter(broken=broken)
    for name in expected.keys() | found.keys():
        missing = expected.get(name, Counter()) - found.get(name, Counter())
        twice = found.get(name, Counter()) - expected.get(name, Counter())
        faults["missing"] += missing.total()
        faults["twice"] += twice.total()
        for title, some in (("missing", missing), ("twice", twice)):
            if some:
                print(f"{folder}: {name}: {title}: {some.most_common(3)}", flush=True)
    for crawl in crawls:
        signs = signs_of_a_bug(crawl.log)
        faults["errors"] += len(signs) + (crawl.status != 0)
        if signs or crawl.status:
            print(f"{folder}: status {crawl.status}, {', '.join(signs)} in the log", flush=True)
    return faults


def two_to_one_file(
    folder: Path, way: str, expected: Contents, options: argparse.Namespace, place: Place
) -> Counter[str]:
    """Kill one of two that run at the same time, then the other, and so on."""
    site, chance, _ = place
    forget(site)
    feed = {str(folder / "feeds" / "add.jl"): {"format": "jsonlines"}}
    settings = {**ours(folder), "FEEDS": feed, **options.settings}
    crawls = [Crawl(folder, place, settings, tag) for tag in ("a", "b")]
    processes = [crawl.start() for crawl in crawls]
    stopped = 0
    for number in range(2 * options.kills):
        which = number % 2
        target = fetched(site) + chance.randrange(1, max(2, options.pages // options.kills))
        ends = time.monotonic() + 10
        while fetched(site) < target and time.monotonic() < ends:
            time.sleep(0.01)
        if processes[which].poll() is None:
            stop(processes[which], way, chance)
            processes[which] = crawls[which].start()
            stopped += 1
    for crawl, process in zip(crawls, processes, strict=True):
        crawl.end(process)
    every = expected["add.jl"]
    both = Counter({f"{tag}{id}": count for tag in "ab" for id, count in every.items()})
    faults = verdict(folder / "feeds", {"add.jl": both}, crawls) + Counter(kills=stopped)
    for crawl in crawls:
        runs, warnings = crawl.log.count("Spider opened"), crawl.log.count("has written to, too")
        faults["warnings"] += warnings
        faults["resumed"] += runs - 1
    return faults


def stock(folder: Path, place: Place) -> Contents:
    crawl = Crawl(folder, place, {"FEEDS": feeds(folder / "feeds")})
    crawl.end(crawl.start())
    found, broken = contents(folder / "feeds")
    if broken or crawl.status:
        raise RuntimeError(f"stock Scrapy has failed: {crawl.log}")
    return found


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--crawls", type=int, default=20, help="for each way")
    found.add_argument("--kills", type=int, default=5, help="of each crawl")
    found.add_argument("--how", nargs="+", choices=WAYS, default=list(WAYS))
    found.add_argument("--pages", type=int, default=120)
    found.add_argument("--seed", type=int, default=random.randrange(10**6))
    found.add_argument("--one-file", action="store_true", help="two crawls append to one file")
    found.add_argument("--settings", type=json.loads, default={}, metavar="JSON")
    found.add_argument("--keep", type=Path, help="a folder for what the crawls leave")
    report.add_options(found, plot=False)
    return found


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    if options.quick:
        options.crawls, options.kills, options.pages, options.how = 1, 1, 15, ["kill"]
    print(f"seed {options.seed}", flush=True)
    rows = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        running(
            *("benchmarks.site", "--links", "3", "--delay", str(_DELAY)),
            *("--pages", str(options.pages)),
        ) as site,
    ):
        root = options.keep or Path(temporary)
        place = Place(site, random.Random(), options.quick)
        expected = stock(root / "stock", place)
        count = expected["add.jl"].total()
        run = two_to_one_file if options.one_file else feeds_of_one
        for way in options.how:
            place = Place(site, random.Random(f"{options.seed} {way}"), options.quick)
            total: Counter[str] = Counter()
            for number in range(options.crawls):
                folder = root / f"{way}-{number}"
                total += run(folder, way, expected, options, place)
                total["pages"] += fetched(site)
            rows.append((way, total))
    names = ("missing", "twice", "broken", "errors")
    before = ("way", "crawls", "kills", "feeds", "items each")
    feed_count = 1 if options.one_file else len(expected)
    extra = ("warnings", "resumed") if options.one_file else ()
    report.print_table(
        "What the feeds hold",
        (*before, *names, *extra, "pages each"),
        [
            (
                *(way, options.crawls, total["kills"], feed_count, count),
                *(total[name] for name in (*names, *extra)),
                total["pages"] // options.crawls,
            )
            for way, total in rows
        ],
        markdown=options.markdown,
    )
    kept = ("kills", *names, *extra, "pages")
    figures = {
        "seed": options.seed,
        "items": count,
        "rows": {way: {name: total[name] for name in kept} for way, total in rows},
    }
    report.write_json(options.json, figures)
    allowed = {"twice"} if options.one_file else set()
    return int(any(total[name] for _, total in rows for name in {*names} - allowed))


if __name__ == "__main__":
    sys.exit(main())
