"""Our own API server as a real process, told to misbehave where a test wants it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_ROOT = Path(__file__).parents[1]
_PLAIN = ("-m", "scrapy", "rq", "serve")
_CHECKED = ("-m", "tests.support.description_check")


class Calls(NamedTuple):
    total: int
    operations: dict[str, int]
    """Calls by operation: "POST requests/batch", "GET head", "PUT requests/{id}", ..."""
    outcomes: dict[str, int]
    """Calls by status, and by "dropped" and "lost"."""


class Server:
    """A running server. ``url`` is what goes into ``APIFY_API_BASE_URL``."""

    def __init__(self, url: str, folder: Path, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.folder = folder
        self.process = process

    def faults(self, *, outage: float = 0, **faults: Any) -> None:
        """Misbehave from now on in these ways only, as ``scrapy_apify_rq.server.faults.Faults`` has
        them; ``outage`` is in seconds from now. With no arguments: behave well.
        """
        if outage:
            faults["outage_until"] = time.time() + outage
        self._control("PUT", "/_faults", json.dumps(faults).encode())

    @property
    def calls(self) -> Calls:
        return Calls(**json.loads(self._control("GET", "/_calls")))

    def forget_calls(self) -> None:
        self._control("DELETE", "/_calls")

    def _control(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def serve(folder: Path, *options: str, port: int = 0, checked: bool = True) -> Iterator[Server]:
    """Serve the queues in ``folder`` until the block ends, and then end without a complaint.

    If ``checked``, each call of our client and each answer that breaks the API's description is
    one; see ``tests/checked_server.py``.
    """
    program = _CHECKED if checked else _PLAIN
    process = start(folder, "--port", str(port), "--test-faults", *options, program=program)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"the server did not start:\n{process.communicate()[1]}")
            yield Server(line.split()[-1], folder, process)
        except BaseException:
            process.kill()
            raise
        process.terminate()
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0, complaints
    assert complaints == "", complaints


def start(folder: Path, *options: str, program: tuple[str, ...] = _PLAIN) -> subprocess.Popen[str]:
    """``scrapy rq serve`` with these options, warnings being errors."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("APIFY_", "ACT"))
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", *program, "--storage-dir", str(folder), *options],
        env={**environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
