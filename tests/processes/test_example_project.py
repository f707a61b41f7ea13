"""The example project as an Actor: its files, and a run (a process) of what its image holds."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq.actor.input_schema import input_schema
from tests.support import npm_packages as npm
from tests.support.apify_sdk import environ
from tests.support.example_project import EXAMPLE
from tests.support.queues import NAME, TOKEN, ServedQueue
from tests.support.raw_calls import called
from tests.support.scrapy_project import ROOT, ForkedProcess
from tests.support.typed_spider import Typed

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

    required = {"actor.json": "actorSpecification", "input_schema.json": "schemaVersion"}
    ours, wrong = tmp_path / "ours", tmp_path / "wrong"
    ours.mkdir()
    wrong.mkdir()
    shutil.copy(ACTOR / "actor.json", ours)
    (ours / "input_schema.json").write_text(json.dumps(input_schema(Typed, "title")))
    for file, field in required.items():
        values = json.loads((ACTOR / file).read_text())
        del values[field]
        (wrong / file).write_text(json.dumps(values))
    words = ["node", str(VALIDATE), *map(str, (ACTOR, ours, wrong))]
    said: list[dict[str, Any]] = json.loads(run(words, installed).stdout)
    assert said[:2] == [dict.fromkeys(required)] * 2
    assert all(said[2].values())


@pytest.mark.parametrize("field", ["dockerfile", "readme", "input"])
def test_files_name_each_other(field: str) -> None:
    assert (ACTOR / DESCRIBED[field]).exists()


def pushed(folder: Path) -> set[str]:
    """What ``apify push`` would send of this folder: all that .actorignore does not name."""
    run(["git", "init", "-q"], folder)
    words = ["git", "ls-files", "--others", "--exclude-from=.actorignore"]
    return set(run(words, folder).stdout.splitlines())


def test_no_secret_is_pushed(tmp_path: Path) -> None:
    """Nor what is large."""
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    before = pushed(tmp_path)
    for name in (".env", ".env.local", ".venv/lib/x.py", ".scrapy/httpcache/shop/1/meta"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("SECRET")
    assert pushed(tmp_path) == before >= {"scrapy.cfg", ".actor/Dockerfile", ".actorignore"}
    assert not {name for name in before if name.endswith((".pyc", ".jsonl", ".sqlite"))}


def image(folder: Path) -> list[str]:
    """Do in the folder what the Dockerfile says, but for the installation; its CMD."""
    steps = [line.split(" ", 1) for line in (ACTOR / "Dockerfile").read_text().splitlines()]
    words = [step for step in steps if step[0] not in ("", "#")]
    assert [word for word, _ in words] == ["FROM", "WORKDIR", "ARG", "RUN", "COPY", "CMD"]
    named = dict(words)
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    assert named["ARG"] == f"PACKAGE={name}"
    assert named["RUN"] == 'pip install --no-cache-dir "$PACKAGE"'
    assert named["COPY"] == ". ./"
    copy = shutil.copytree(EXAMPLE, folder / "context")
    for sent in pushed(copy):
        (folder / "app" / sent).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(copy / sent, folder / "app" / sent)
    command: list[str] = json.loads(named["CMD"])
    return command


async def test_its_command_crawls_in_a_run(tmp_path: Path, served: ServedQueue) -> None:
    command = image(tmp_path)
    assert command == ["scrapy", "crawl", "shop"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = [*command[1:], "-s", f"SHOP_PORT={port}"]
    variables = environ(served.api.url, TOKEN, NAME)
    async with ForkedProcess(words, tmp_path / "app", {**os.environ, **variables}) as process:
        done = await process.end()
    assert done.status == 0, done.log
    with called(served) as api:
        items = api.http.get(f"/v2/datasets/{variables['ACTOR_DEFAULT_DATASET_ID']}/items").json()
    assert "this run handled 245 (4 of them failed)" in done.log.splitlines()[-1]
    assert len({item["sku"] for item in items}) == len(items) == 207
