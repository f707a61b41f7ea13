"""The example project as an Actor: its files, and a run of what its Dockerfile builds."""

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
from aiohttp import web

from tests.servers import TOKEN
from tests.support import npm_packages as npm
from tests.support.api_calls import Call, serving_in_thread
from tests.support.apify_sdk import environ
from tests.support.example_shop import EXAMPLE

ACTOR = EXAMPLE / ".actor"
SCHEMAS = ("@apify/json_schemas@0.17", "ajv@8")
VALIDATE = """
    const { default: Ajv } = require('ajv/dist/2019');
    const schemas = Object.values(require('@apify/json_schemas')).filter((each) => each.$id);
    const ajv = new Ajv({ schemas, strict: false });
    ajv.addMetaSchema(require('ajv/dist/refs/json-schema-draft-07.json'));
    const said = {};
    for (const [file, schema] of [['actor.json', 'actor'], ['input_schema.json', 'input']]) {
        const valid = ajv.getSchema(`https://apify.com/schemas/v1/${schema}.json`);
        valid(require(`${process.argv[1]}/${file}`));
        said[file] = valid.errors;
    }
    console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def schemas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npm.installed(request.config, tmp_path_factory, "schemas", *SCHEMAS)


def complaints(schemas: Path, folder: Path) -> dict[str, Any]:
    """What Apify's own JSON schemas say of the files in the folder, by file."""
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(folder)],
        cwd=schemas,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_files_follow_the_published_schemas(schemas: Path, tmp_path: Path) -> None:
    assert complaints(schemas, ACTOR) == {"actor.json": None, "input_schema.json": None}
    for file in ("actor.json", "input_schema.json"):
        wrong = json.loads((ACTOR / file).read_text())
        del wrong["actorSpecification" if file == "actor.json" else "schemaVersion"]
        (tmp_path / file).write_text(json.dumps(wrong))
    assert all(complaints(schemas, tmp_path).values())


def test_the_files_name_each_other() -> None:
    described = json.loads((ACTOR / "actor.json").read_text())
    for field in ("dockerfile", "readme", "input", "dockerContextDir"):
        assert (ACTOR / described[field]).exists(), field


def image(folder: Path) -> tuple[Path, list[str]]:
    """Do what the Dockerfile says, but for the installation; the project's folder, and CMD."""
    described = json.loads((ACTOR / "actor.json").read_text())
    context = ACTOR / described["dockerContextDir"]
    command: list[str] = []
    for line in (ACTOR / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(context / source, folder / target, into=target.endswith("/"))
        elif word == "CMD":
            command = json.loads(rest)
    return folder, command


def copy(source: Path, target: Path, *, into: bool) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "storage", "*.jsonl")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        assert into
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.skipif(find_spec("apify_client") is None, reason="apify-client is not installed")
def test_its_command_crawls_in_a_run(tmp_path: Path) -> None:
    folder, command = image(tmp_path / "image")
    assert command == ["scrapy", "crawl", "shop"]
    items: list[dict[str, Any]] = []

    def dataset(call: Call) -> web.Response | None:
        if call.path != "/v2/datasets/datasetOfTheRun/items":
            return None
        items.append(call.json)
        return web.json_response({}, status=201)

    with serving_in_thread(tmp_path / "server", TOKEN) as api:
        api.before = dataset
        run = environ(api.url, TOKEN, "queue-of-the-run")
        options = ["-s", f"SHOP_PORT={free_port()}"]
        done = subprocess.run(
            [sys.executable, "-m", *command, *options],
            cwd=folder,
            env={**os.environ, **run, "ACTOR_DEFAULT_DATASET_ID": "datasetOfTheRun"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        api.complaints.clear()  # the API's description has no data sets
    assert done.returncode == 0, done.stderr
    assert "this run handled 245 (4 of them failed)" in done.stderr.splitlines()[-1]
    assert len({item["sku"] for item in items}) == len(items) == 207
