"""The Apify SDK, made to work with our server: its environment, and the programs that use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

_RUN = "runOfTheTests"
_PROGRAMS = Path(__file__).with_name("official")


def environ(url: str, token: str, queue: str | None = None) -> dict[str, str]:
    """What an Actor's run finds in its environment, the API being at ``url``.

    ``queue`` names the run's default queue, which is made if it is not there.
    """
    run = _data(url, token, "GET", f"actor-runs/{_RUN}")
    variables = {
        "APIFY_IS_AT_HOME": "1",
        "APIFY_TOKEN": token,
        "APIFY_API_BASE_URL": url,
        "APIFY_API_PUBLIC_BASE_URL": url,
        "ACTOR_RUN_ID": _RUN,
        "ACTOR_DEFAULT_DATASET_ID": run["defaultDatasetId"],
        "ACTOR_DEFAULT_KEY_VALUE_STORE_ID": run["defaultKeyValueStoreId"],
    }
    if queue is not None:
        id = _data(url, token, "POST", f"request-queues?name={queue}")["id"]
        variables["ACTOR_DEFAULT_REQUEST_QUEUE_ID"] = id
    return variables


def _data(url: str, token: str, verb: str, path: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    call = urllib.request.Request(f"{url}/v2/{path}", headers=headers, method=verb)
    with urllib.request.urlopen(call, timeout=30) as answer:
        return json.load(answer)["data"]


def source(name: str) -> str:
    return (_PROGRAMS / name).read_text()


def run(name: str, *arguments: str, env: dict[str, str]) -> Any:
    """Run a program of ``official/`` with success, and return the JSON that it prints."""
    command = [sys.executable, "-W", "error", str(_PROGRAMS / name), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
