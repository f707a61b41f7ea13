"""The example project as an Actor: its files, and a run (a process) of what its image holds."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support import npm_packages as npm
from tests.support.apify_sdk import environ
from tests.support.example_project import EXAMPLE
from tests.support.queues import NAME, TOKEN, ServedQueue
from tests.support.raw_calls import called

ACTOR = EXAMPLE / ".actor"
DESCRIBED: dict[str, str] = json.loads((ACTOR / "actor.json").read_text())
VALIDATE = Path(__file__).parent / "scripts" / "validate.mjs"


def run(words: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done


def test_files_follow_the_published_schemas(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    packages = ("@apify/json_schemas@0.17", "ajv@8")
    installed = npm.installed(request.config, tmp_path_factory, "schemas", *packages)

    def complaints(folder: Path) -> Any:
        return json.loads(run(["node", str(VALIDATE), str(folder)], installed).stdout)

    required = {"actor.json": "actorSpecification", "input_schema.json": "schemaVersion"}
    assert complaints(ACTOR) == dict.fromkeys(required)
    for file, field in required.items():
        wrong = json.loads((ACTOR / file).read_text())
        del wrong[field]
        (tmp_path / file).write_text(json.dumps(wrong))
    assert all(complaints(tmp_path).values())


@pytest.mark.parametrize("field", ["dockerfile", "readme", "input", "dockerContextDir"])
def test_files_name_each_other(field: str) -> None:
    assert (ACTOR / DESCRIBED[field]).exists()


def image(folder: Path) -> list[str]:
    """Do in the folder what the Dockerfile says, but for the installation; its CMD."""
    lines = [line.split(" ", 1) for line in (ACTOR / "Dockerfile").read_text().splitlines() if line]
    for *names, name in (rest.split() for word, rest in lines if word == "COPY"):
        target = folder / name
        for source in (ACTOR / DESCRIBED["dockerContextDir"] / each for each in names):
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "storage", "*.jsonl")
                shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
            else:
                assert name.endswith("/")
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    (command,) = (json.loads(rest) for word, rest in lines if word == "CMD")
    return list(command)


@pytest.mark.skipif(find_spec("apify_client") is None, reason="apify-client is not installed")
def test_its_command_crawls_in_a_run(tmp_path: Path, served: ServedQueue) -> None:
    command = image(tmp_path)
    assert command == ["scrapy", "crawl", "shop"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = [sys.executable, "-m", *command, "-s", f"SHOP_PORT={port}"]
    variables = environ(served.api.url, TOKEN, NAME)
    done = run(words, tmp_path, **variables)
    with called(served) as api:
        items = api.http.get(f"/v2/datasets/{variables['ACTOR_DEFAULT_DATASET_ID']}/items").json()
    assert "this run handled 245 (4 of them failed)" in done.stderr.splitlines()[-1]
    assert len({item["sku"] for item in items}) == len(items) == 207
