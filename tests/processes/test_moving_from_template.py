"""A project of the form of Apify's template (processes of its own), before and after its move."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from scrapy_apify_rq import __main__ as main
from tests.support.scrapy_project import ROOT, Finished, ForkedProcess, Process
from tests.support.template_project import make_template_project
from tests.support.website import Site

PAGE = (ROOT / "docs" / "moving-from-template.md").read_text()
PAGES = {
    "/": '<title>home</title><a href="/1">x</a><a href="http://elsewhere.invalid/">y</a>',
    "/1": "<title>one</title>",
}


def move(folder: Path) -> None:
    """Do to the project what the page says."""
    (deletion,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run(["sh", "-ec", deletion], cwd=folder, check=True)
    changes = re.findall(r"```diff\n--- (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(changes) == 5
    for name, lines in changes:
        old = (folder / name).read_text().splitlines()
        at = len(old)
        for line in lines.splitlines():
            sign, text = line[0], line[1:]
            if sign == "-":
                at = old.index(text)
                del old[at]
            else:
                old.insert(at, text)
                at += 1
        (folder / name).write_text("\n".join(old) + "\n")


def variables() -> dict[str, str]:
    return {**os.environ, "CRAWLEE_STORAGE_DIR": "storage", "PYTHONPATH": str(ROOT)}


async def end_of(running: Process) -> Finished:
    async with running as process:
        done = await process.end()
    assert done.status == 0, done.log
    return done


def by_title(items: list[Any]) -> dict[str, Any]:
    assert len(items) == len(PAGES)
    return {item["title"]: item for item in items}


@pytest.mark.skipif(find_spec("apify") is None, reason="apify is not installed")
async def test_it_scrapes_the_same(tmp_path: Path, site: Site) -> None:
    site.serve(PAGES)
    make_template_project(tmp_path)
    store = tmp_path / "storage" / "key_value_stores" / "default"
    store.mkdir(parents=True)
    given = {"startUrls": [{"url": f"{site.url}/"}], "allowedDomains": ["127.0.0.1"]}
    (store / "INPUT.json").write_text(json.dumps(given))
    await end_of(Process([sys.executable, "-m", "src"], tmp_path, variables()))
    files = (tmp_path / "storage" / "datasets" / "default").glob("0*.json")
    before = by_title([json.loads(file.read_text()) for file in files])
    assert sorted(site.paths) == sorted(PAGES)

    move(tmp_path)
    (store / "INPUT.json").write_text(json.dumps(given))  # the SDK has emptied the storages
    words = [main.__file__, "-s", "APIFY_RQ_ITEMS=True"]
    crawl = await end_of(ForkedProcess(words, tmp_path, variables()))
    assert "this run handled 2 (0 of them failed)" in crawl.log
    assert sorted(site.paths) == sorted([*PAGES, *PAGES])
    output = (await end_of(ForkedProcess(["rq", "items"], tmp_path, variables()))).output
    items = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert by_title(items) == before
    used = [file.read_text() for file in (tmp_path / "src").rglob("*.py")]
    assert not [text for text in used if re.search(r"^(from|import) apify\b", text, re.MULTILINE)]
    assert (
        'CMD ["scrapy", "crawl", "title_spider"]'
        in (tmp_path / ".actor" / "Dockerfile").read_text()
    )
