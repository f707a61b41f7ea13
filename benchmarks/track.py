"""Run crawls: with the site, the API server and Redis, each in its own process, and two cores.

The crawl has one core for itself and all servers share the other, so that they do not slow down the
crawl. In a real crawl they run on other machines.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import programs
from benchmarks.api import ApiServer, api_server
from benchmarks.contestants import TOKEN, Contestant, Place

# A crawl of 1,000 hosts keeps as many connections, and so does its site.
_FILES = 8192


@contextmanager
def running(*command: str) -> Iterator[str]:
    """Run one of the benchmark programs, and yield the line that it prints."""
    words = [sys.executable, "-m", *command]
    with subprocess.Popen(words, cwd=programs.ROOT, stdout=subprocess.PIPE, text=True) as process:
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

    def __init__(
        self,
        folder: Path,
        cores: Cores,
        *,
        site: str,
        server: ApiServer | None,
        redis: Mapping[float, str],
        fork: bool,
        profiles: Path | None,
        instructions: bool,
    ) -> None:
        self._folder = folder
        self._cores = cores
        self.site = site
        self._server = server
        self._redis = redis
        self._fork = fork
        self._profiles = profiles
        self._instructions = instructions
        self._places = 0
        self._crawls: list[Crawl] = []

    def set_site(self, **values: float) -> None:
        """Change the site and forget its hits; see site.py."""
        query = "&".join(f"{name}={value}" for name, value in values.items())
        _get(f"{self.site}/_site?{query}")

    def hits(self) -> Any:
        return json.loads(_get(f"{self.site}/_hits"))

    def new_file(self) -> Path:
        """Make an empty file."""
        fd, name = tempfile.mkstemp(dir=self._folder)
        os.close(fd)
        return Path(name)

    @property
    def server(self) -> ApiServer:
        """It runs if one of the contestants needs it."""
        assert self._server is not None
        return self._server

    def new_place(self, latency: float) -> Place:
        """Make a place for one crawl. The round trip to its queue takes ``latency`` seconds."""
        self._places += 1
        queue, api, id = f"crawl-{self._places}", "", ""
        if self._server is not None:
            self._server.behave()
            api, id = self._server.url, self._server.queue_id(queue)
            self._server.behave(latency=latency, rates=True)
            self._server.forget_calls()
        return Place(self._folder / queue, queue, id, api, self._redis.get(latency, ""))

    def calls(self) -> dict[str, dict[str, int]]:
        """Of the API, since the last place was made: by operation, and by outcome."""
        if self._server is None:
            return {"calls": {}, "outcomes": {}}
        calls = self._server.calls
        return {"calls": calls.operations, "outcomes": calls.outcomes}

    def run(self, contestant: Contestant, path: str, **settings: Any) -> dict[str, Any]:
        """Run a crawl; return the report of meter.py with the API's calls and outcomes, and how
        many bytes it has stored on the disk.
        """
        place = self.new_place(contestant.latency)
        report = finish(self.start(contestant, place, path, settings))
        stored = sum(file.stat().st_size for file in place.folder.rglob("*") if file.is_file())
        return {**report, **self.calls(), "stored": stored}

    def measure(self, module: str, *words: str) -> Any:
        """Run a program that prints JSON."""
        output = self.new_file()
        if status := programs.start(module, words, output, fork=self._fork).wait():
            raise RuntimeError(f"{module} {' '.join(words)} ended with status {status}")
        return json.loads(output.read_text())

    def start(
        self, contestant: Contestant, place: Place, path: str, settings: Mapping[str, Any]
    ) -> Crawl:
        started_at = time.time()
        words = [self.site + path, "--started-at", str(started_at)]
        if self._cores.crawls is not None:
            words += ["--cpu", str(self._cores.crawls)]
        if self._profiles is not None:
            file = self._profiles / f"{contestant.name}-{len(self._crawls)}.prof"
            words += ["--profile", str(file.absolute())]
        counts, under = None, []
        if self._instructions:
            counts = self.new_file()
            under = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"]
            under.append(f"--callgrind-out-file={counts}")
            settings = {**settings, "BENCHMARK_INSTRUCTIONS": True}
        for name, value in {**contestant.kind.settings(place), **settings}.items():
            words += ["--set", f"{name}={json.dumps(value)}"]
        environ = {**os.environ, **contestant.kind.environ(place)}
        # Otherwise Python would compile this package for each crawl, because it is an editable
        # install. The other contestants' packages were compiled when they were installed.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        output = self.new_file()
        process = programs.start(
            "benchmarks.crawl", words, output, environ=environ, fork=self._fork, under=under
        )
        self._crawls.append(crawl := Crawl(process, output, started_at, counts))
        return crawl

    def close(self) -> None:
        """End the crawls that still run after a failure."""
        for crawl in self._crawls:
            if crawl.process.poll() is None:
                crawl.process.kill()


@dataclass(frozen=True)
class Crawl:
    """A crawl that runs. ``output`` is where it writes its report, and ``counts`` where valgrind
    writes how many instructions it took.
    """

    process: subprocess.Popen[bytes] | programs.Fork
    output: Path
    started_at: float
    counts: Path | None


def finish(crawl: Crawl) -> dict[str, Any]:
    """Wait for a crawl to end, and return its report, with the seconds that the process took, and
    those from its last response to its end.
    """
    status = crawl.process.wait()
    ended_at = time.time()
    if status:
        raise RuntimeError(f"a crawl failed: {crawl.process.args!r}")
    report: dict[str, Any] = json.loads(crawl.output.read_text())
    if crawl.counts is not None:
        (line,) = (li for li in crawl.counts.read_text().splitlines() if li.startswith("totals:"))
        report["instructions"] = int(line.split()[1])
    return {
        **report,
        "whole": ended_at - crawl.started_at,
        "end": ended_at - report["last_at"],
    }


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: bytes = answer.read()
    return text


@contextmanager
def track(
    folder: Path,
    contestants: Iterable[Contestant] = (),
    *,
    pin: bool,
    hosts: int = 1,
    fork: bool = False,
    profiles: Path | None = None,
    instructions: bool = False,
) -> Iterator[Track]:
    """Run the site, and the servers that the contestants need. With ``fork``, crawls are forked
    (programs.py), and start faster than in reality. With ``instructions``, they run under valgrind.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
    cores = Cores.divide(pin and not fork)
    needs = {(each.kind.server, each.latency) for each in contestants}
    with ExitStack() as services:
        site = services.enter_context(running("benchmarks.site", "--hosts", str(hosts)))
        server = None
        if any(name == "api" for name, _ in needs):
            server = services.enter_context(api_server(folder / "api", TOKEN))
        latencies = [latency for name, latency in needs if name == "redis"]
        redis = services.enter_context(_redis_servers(folder, latencies)) if latencies else {}
        place = Track(
            folder,
            cores,
            site=site,
            server=server,
            redis=redis,
            fork=fork,
            profiles=profiles,
            instructions=instructions,
        )
        services.callback(place.close)
        yield place


@contextmanager
def _redis_servers(folder: Path, latencies: Iterable[float]) -> Iterator[dict[float, str]]:
    """Run one Redis, and yield its addresses: a round trip to each takes so many seconds."""
    with ExitStack() as services:
        port = str(services.enter_context(_redis(folder)))
        urls = {}
        for latency in latencies:
            address = f"127.0.0.1:{port}"
            if latency:
                words = ("benchmarks.delay", "127.0.0.1", port, "--delay", str(latency))
                address = services.enter_context(running(*words))
            urls[latency] = f"redis://{address}"
        yield urls
