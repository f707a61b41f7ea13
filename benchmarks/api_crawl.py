"""What the queue costs a crawl: pages a second, CPU, API calls, and stalls of the event loop.

Crawls the site of site.py with stock Scrapy, with the embedded queue, and over the API served by
``scrapy rq serve`` on this machine at several latencies. Rounds are interleaved, each crawl is a
process of its own (crawl.py), medians are printed, and ratios are to stock Scrapy of the same run.
A crawl is timed from its first response to its last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.server import Server, serve

HERE = Path(__file__).parent


@contextmanager
def the_site(pages: int, delay: float) -> Iterator[str]:
    command = [sys.executable, str(HERE / "site.py"), "--pages", str(pages), "--delay", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class Bench:
    """Runs crawls, each into a queue of its own."""

    def __init__(self, server: Server, site: str, folder: Path) -> None:
        self._server = server
        self._site = site
        self._folder = folder
        self._runs = 0

    def crawl(self, way: str, path: str, latency: float = 0, **settings: Any) -> dict[str, Any]:
        """What crawl.py reports, and the number of API calls."""
        self._runs += 1
        self._server.faults(latency=latency)
        self._server.forget_calls()
        command = [sys.executable, str(HERE / "crawl.py"), way, self._site + path]
        command += ["--storage", str(self._folder / str(self._runs)), "--api", self._server.url]
        command += ["--name", f"run-{self._runs}"]
        for name, value in settings.items():
            command += ["--set", f"{name}={json.dumps(value)}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report: dict[str, Any] = json.loads(done.stdout)
        return {**report, "calls": self._server.calls.total}


def speed(bench: Bench, latencies: Sequence[float], rounds: int) -> None:
    ways = [("stock", "stock", 0.0), ("embedded", "embedded", 0.0)]
    ways += [(f"API at {latency * 1000:.0f} ms", "api", latency) for latency in latencies]
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in ways}
    for _ in range(rounds):
        for name, way, latency in ways:
            reports[name].append(bench.crawl(way, "/p/0", latency))
    print(
        f"{'':14} {'pages/s':>8} {'ratio':>6} {'CPU ms/page':>12} {'ratio':>6} {'calls/page':>11}"
    )
    rates = {name: median(r["pages"] / r["seconds"] for r in reports[name]) for name in reports}
    costs = {name: median(r["cpu"] / r["pages"] for r in reports[name]) for name in reports}
    for name, runs in reports.items():
        calls = median(run["calls"] / run["pages"] for run in runs)
        print(
            f"{name:14} {rates[name]:8.0f} {rates[name] / rates['stock']:6.2f}"
            f" {costs[name] * 1000:12.2f} {costs[name] / costs['stock']:6.2f} {calls:11.3f}",
            flush=True,
        )


def stalls(bench: Bench, rounds: int) -> None:
    """The pages behind the links are empty, so the page with the links makes the longest stall."""
    print("\nlongest stall of the loop in ms of CPU, one page that yields n links, API at 50 ms")
    for links in (200, 5000):
        texts = []
        for way in ("stock", "embedded", "api"):
            runs = [
                bench.crawl(way, f"/to-many/{links}", 0.05, CLOSESPIDER_PAGECOUNT=min(links, 300))
                for _ in range(rounds)
            ]
            texts.append(f"{way} {median(run['stall'] for run in runs) * 1000:.0f}")
        print(f"n = {links:5}: {', '.join(texts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0, help="seconds before a page is answered")
    parser.add_argument(
        "--latency", type=float, nargs="*", default=[0, 0.01, 0.05, 0.2], help="of the API, seconds"
    )
    parser.add_argument("--no-stalls", action="store_true", help="leave out the stalls")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "storage") as server,
        the_site(options.pages, options.delay) as site,
    ):
        bench = Bench(server, site, Path(folder))
        speed(bench, options.latency, options.rounds)
        if not options.no_stalls:
            stalls(bench, options.rounds)


if __name__ == "__main__":
    main()
