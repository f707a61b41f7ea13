"""The API server of the benchmarks as its callers see it; api_server.py is the program."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.programs import ROOT


class Calls(NamedTuple):
    operations: dict[str, int]
    """Calls by operation: "POST requests/batch", "GET head", "PUT requests/{id}", ..."""
    outcomes: dict[str, int]
    """Calls by status."""


class ApiServer:
    """A running server at ``url``, which counts its calls."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token

    def behave(self, *, latency: float = 0, rates: bool = False) -> None:
        """Delay each answer by so many seconds, and refuse calls beyond the platform's rates."""
        self._call("PUT", "/_faults", json.dumps({"latency": latency, "rates": rates}).encode())

    @property
    def calls(self) -> Calls:
        return Calls(**json.loads(self._call("GET", "/_calls")))

    def forget_calls(self) -> None:
        self._call("DELETE", "/_calls")

    def queue_id(self, name: str) -> str:
        """The id of the queue of this name, which is made if it is not there."""
        answer = json.loads(self._call("POST", f"/v2/request-queues?name={name}"))
        return str(answer["data"]["id"])

    def writes(self, queue_id: str) -> int:
        """As the queue itself counts them."""
        answer = json.loads(self._call("GET", f"/v2/request-queues/{queue_id}"))
        return int(answer["data"]["stats"]["writeCount"])

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def api_server(folder: Path, token: str) -> Iterator[ApiServer]:
    """Serve the queues in ``folder`` until the block ends."""
    command = [sys.executable, "-m", "benchmarks.api_server", str(folder), token]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not (line := process.stdout.readline()):
                raise RuntimeError("the API server did not start")
            yield ApiServer(line.strip(), token)
        finally:
            process.terminate()
