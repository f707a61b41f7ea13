"""Several workers on one queue in shared access, compared with one worker.

Each worker is a process with few connections to a slow site, so that the site is the limit and not
the machine's CPU. The site has more pages the more workers there are. The speed is measured from
when all workers have had a page, to the last page.

After that, a worker is killed (SIGKILL) while another one crawls, too. The time is measured from
the kill to the last page: the other one soon has nothing to do but the pages that the killed one
held, and waits until their leases lapse.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.compare import Run, add_options, calls_per_page, refused, session
from benchmarks.contestants import Contestant, Place
from benchmarks.track import Crawl, Track, finish

_QUEUES = ("api-shared",)
_POLL = 0.02
_PATIENCE = 60


class Race:
    """Workers on one queue."""

    def __init__(
        self, track: Track, queue: Contestant, pages: int, options: argparse.Namespace
    ) -> None:
        self._track = track
        self._queue = queue
        self._options = options
        # With --dense, the page that links to the first one is a page as well.
        self._pages = pages + options.dense
        track.set_site(pages=pages, links=options.links, delay=options.delay)
        self.place: Place = track.new_place(queue.latency)

    def start(self, **settings: Any) -> Crawl:
        few = self._options.connections
        limits = {"CONCURRENT_REQUESTS": few, "CONCURRENT_REQUESTS_PER_DOMAIN": few}
        # A start request is not filtered, so a link to its page would have it crawled twice.
        path = "/to/p/0" if self._options.dense else "/t/0"
        return self._track.start(self._queue, self.place, path, {**limits, **settings})

    def wait_for(self, pages: int) -> None:
        ends = time.monotonic() + _PATIENCE
        while len(self._track.hits()["times"]) < pages:
            if time.monotonic() > ends:
                raise RuntimeError(f"no {pages} pages within {_PATIENCE} s")
            time.sleep(_POLL)

    def result(self) -> tuple[list[float], Run]:
        """When each page was fetched, and what the crawl took."""
        seen = self._track.hits()
        pages, times = len(seen["hits"]), seen["times"]
        if pages != self._pages:
            raise RuntimeError(f"{pages} pages crawled instead of {self._pages}")
        found = {"pages": pages, "repeated": len(times) - pages, **self._track.calls()}
        if self._queue.kind.server:
            found["writes"] = self._track.server.writes(self.place.queue_id)
        return times, found


def crawl(track: Track, queue: Contestant, workers: int, options: argparse.Namespace) -> Run:
    race = Race(track, queue, options.pages * workers, options)
    reports = [finish(each) for each in [race.start() for _ in range(workers)]]
    times, found = race.result()
    all_run = max(each["first_at"] for each in reports)
    timed = [at for at in times if at > all_run]
    if not timed:
        raise RuntimeError("the first workers were done before the last one had a page")
    return {
        **found,
        "workers": workers,
        "speed": len(timed) / (timed[-1] - all_run),
        "whole": max(each["last_at"] + each["end"] for each in reports) - times[0],
        "shares": sorted(each["pages"] for each in reports),
    }


def kill(track: Track, queue: Contestant, lock: int, at: int, options: argparse.Namespace) -> Run:
    """Kill a worker after so many pages."""
    race = Race(track, queue, options.kill_pages, options)
    victim = race.start(APIFY_RQ_LOCK_SECS=lock)
    race.wait_for(1)
    other = race.start(APIFY_RQ_LOCK_SECS=lock)
    race.wait_for(at)
    victim.process.kill()
    killed_at = time.time()
    if victim.process.wait() == 0:
        raise RuntimeError("the worker ended before it was killed; see --kill-pages")
    finish(other)
    times, found = race.result()
    after = [killed_at, *(each for each in times if each > killed_at)]
    return {
        **found,
        "lock": lock,
        "left": len(after) - 1,
        "done": after[-1] - killed_at,
        "waited": max(late - early for early, late in pairwise(after)),
    }


def print_crawls(runs: dict[int, list[Run]], title: str, *, markdown: bool) -> None:
    alone = next(iter(runs.values()))
    rows = []
    for workers, group in runs.items():

        def middle(figure: Callable[[Run], float], group: list[Run] = group) -> float:
            return median(map(figure, group))

        pairs = zip(alone, group, strict=True)
        rows.append(
            (
                workers,
                f"{middle(lambda run: run['speed']):.1f}",
                f"{median(many['speed'] / one['speed'] for one, many in pairs):.2f}",
                f"{middle(lambda run: run['whole']):.1f}",
                f"{middle(lambda run: run.get('writes', 0) / run['pages']):.2f}",
                f"{middle(calls_per_page):.2f}",
                f"{middle(refused):.1f}",
                max(run["repeated"] for run in group),
                f"{middle(lambda run: min(run['shares'])):.0f}"
                f" to {middle(lambda run: max(run['shares'])):.0f}",
            )
        )
    header = ("workers", "pages/s", "times as fast", "whole s", "writes/page", "calls/page")
    more = ("429s %", "pages repeated", "pages of each")
    report.print_table(title, (*header, *more), rows, markdown=markdown)


def print_kills(runs: dict[int, list[Run]], title: str, *, markdown: bool) -> None:
    rows = [
        (
            lock,
            *(f"{median(run[name] for run in group):.1f}" for name in ("done", "waited")),
            *(f"{median(run[name] for run in group):.0f}" for name in ("left", "repeated")),
        )
        for lock, group in runs.items()
    ]
    header = ("APIFY_RQ_LOCK_SECS", "kill to last page s", "of these idle s")
    more = ("pages after the kill", "pages repeated")
    report.print_table(title, (*header, *more), rows, markdown=markdown)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    found.add_argument("--rounds", type=int, default=2)
    found.add_argument("--pages", type=int, default=250, help="for each worker")
    found.add_argument("--links", type=int, default=10, help="on each page")
    found.add_argument("--delay", type=float, default=0.2, help="the site's delay in seconds")
    found.add_argument("--connections", type=int, default=4, help="of each worker")
    found.add_argument("--dense", action="store_true", help="link each page from many others")
    found.add_argument(
        "--lock", type=int, nargs="*", default=[10, 30], help="APIFY_RQ_LOCK_SECS of killed workers"
    )
    found.add_argument("--kill-pages", type=int, default=150, help="of a crawl with a kill")
    add_options(found, _QUEUES)
    return found


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.quick:
        options.rounds, options.pages, options.workers = 1, 20, [1]
        options.lock, options.kill_pages = [3], 20
    options.no_pin = True  # workers need both cores
    # Places of two races differ, and so do the moments of two kills: the same in each run of this.
    chance = random.Random(1)
    killed_at = [
        chance.randrange(options.kill_pages // 4, options.kill_pages // 2)
        for _ in range(options.rounds)
    ]
    with session(options) as (track, contestants, figures):
        for queue in contestants[1:]:
            crawls: dict[int, list[Run]] = {workers: [] for workers in options.workers}
            kills: dict[int, list[Run]] = {lock: [] for lock in options.lock}
            for at in killed_at:
                for workers, group in crawls.items():
                    group.append(crawl(track, queue, workers, options))
                for lock, group in kills.items():
                    group.append(kill(track, queue, lock, at, options))
            links = "each linked from many others" if options.dense else "a tree"
            site = f"{options.connections} connections each, a page takes {options.delay:g} s"
            title = f"{queue.title}: {options.pages} pages for each worker, {links}, {site}"
            print_crawls(crawls, title, markdown=options.markdown)
            if kills:
                title = f"{queue.title}: one of two workers is killed"
                print_kills(kills, title, markdown=options.markdown)
            figures[queue.name] = {"crawls": crawls, "kills": kills}


if __name__ == "__main__":
    main()
