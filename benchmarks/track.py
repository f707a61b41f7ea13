"""Run crawls: with the site, the API server and Redis, each in its own process, and two cores.

The crawl has one core for itself and all servers share the other, so that they do not slow down the
crawl. In a real crawl they run on other machines.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.api_server import ApiServer, api_server
from benchmarks.contestants import TOKEN, Contestant, Place

_ROOT = Path(__file__).parents[1]


@contextmanager
def running(*command: str) -> Iterator[str]:
    """Run one of the benchmark programs, and yield the line that it prints."""
    words = [sys.executable, "-m", *command]
    with subprocess.Popen(words, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def _redis(folder: Path) -> Iterator[int]:
    """Run a redis-server that writes nothing to the disk, and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    words = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not any("eady to accept connections" in line for line in process.stdout):
                raise RuntimeError("redis-server did not start")
            yield port
        finally:
            process.kill()


@dataclass(frozen=True)
class Cores:
    """The core of the crawls. None means that they share all cores with the servers."""

    crawls: int | None

    @classmethod
    def divide(cls, wanted: bool) -> Cores:
        """Keep this process and the servers on one core, and reserve another one for crawls."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if not wanted or len(cores) < 2:
            return cls(None)
        os.sched_setaffinity(0, {cores[0]})
        return cls(cores[1])


class Track:
    """Runs crawls, each with its own queue."""

    def __init__(self, folder: Path, cores: Cores, *, site: str, server: ApiServer) -> None:
        self._folder = folder
        self._cores = cores
        self.site = site
        self.server = server
        self._services = ExitStack()
        self._redis_port = 0
        self._redis_urls: dict[float, str] = {}
        self._crawls = 0

    def set_site(self, **values: float) -> None:
        """Change the site and forget its hits; see site.py."""
        query = "&".join(f"{name}={value}" for name, value in values.items())
        _get(f"{self.site}/_site?{query}")

    def hits(self) -> Any:
        return json.loads(_get(f"{self.site}/_hits"))

    def new_place(self, latency: float) -> Place:
        """Make a place for one crawl. The round trip to its queue takes ``latency`` seconds."""
        self._crawls += 1
        queue = f"crawl-{self._crawls}"
        self.server.behave()
        id = self.server.queue_id(queue)
        self.server.behave(latency=latency, rates=True)
        self.server.forget_calls()
        return Place(
            folder=self._folder / queue,
            queue=queue,
            queue_id=id,
            api=self.server.url,
            redis=self._redis_urls.get(latency, ""),
        )

    def start_redis_for(self, contestants: Sequence[Contestant]) -> None:
        for each in contestants:
            if each.kind.program == "redis-server" and each.latency not in self._redis_urls:
                self._start_redis(each.latency)

    def _start_redis(self, latency: float) -> None:
        """Make Redis reachable at an address where a round trip takes ``latency`` seconds."""
        if not self._redis_port:
            self._redis_port = self._services.enter_context(_redis(self._folder))
        address = f"127.0.0.1:{self._redis_port}"
        if latency:
            words = ("benchmarks.delay", "127.0.0.1", str(self._redis_port))
            address = self._services.enter_context(running(*words, "--delay", str(latency)))
        self._redis_urls[latency] = f"redis://{address}"

    def close(self) -> None:
        self._services.close()

    def run(self, contestant: Contestant, path: str, **settings: Any) -> dict[str, Any]:
        """Run a crawl; return the report of meter.py with the API's calls and outcomes, and how
        many bytes it has stored on the disk.
        """
        place = self.new_place(contestant.latency)
        crawl = self.start(contestant, place, path, settings)
        report = finish(crawl)
        calls = self.server.calls
        stored = sum(file.stat().st_size for file in place.folder.rglob("*") if file.is_file())
        return {
            **report,
            "calls": calls.operations,
            "outcomes": calls.outcomes,
            "stored": stored,
        }

    def start(
        self, contestant: Contestant, place: Place, path: str, settings: Mapping[str, Any]
    ) -> subprocess.Popen[str]:
        words = ["-m", "benchmarks.crawl", self.site + path, "--started-at", str(time.time())]
        if self._cores.crawls is not None:
            words += ["--cpu", str(self._cores.crawls)]
        for name, value in {**contestant.kind.settings(place), **settings}.items():
            words += ["--set", f"{name}={json.dumps(value)}"]
        environ = {**os.environ, **contestant.kind.environ(place)}
        # Otherwise Python would compile this package for each crawl, because it is an editable
        # install. The other contestants' packages were compiled when they were installed.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=_ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
        )


def finish(crawl: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a crawl to end, and return its report."""
    with crawl:
        text = crawl.communicate()[0]
    if crawl.returncode:
        raise RuntimeError(f"a crawl failed: {' '.join(map(str, crawl.args))}")  # type: ignore[arg-type]
    report: dict[str, Any] = json.loads(text)
    return report


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: bytes = answer.read()
    return text


@contextmanager
def track(folder: Path, *, pin: bool, hosts: int = 1) -> Iterator[Track]:
    cores = Cores.divide(pin)
    with (
        running("benchmarks.site", "--hosts", str(hosts)) as site,
        api_server(folder / "api", TOKEN) as server,
    ):
        place = Track(folder, cores, site=site, server=server)
        try:
            yield place
        finally:
            place.close()
