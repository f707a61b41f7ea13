"""The example project and its shop, each as a program of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.project import _STATS_FILE, QUEUE, Project

EXAMPLE = Path(__file__).parents[2] / "example_project"

Hits = Counter[tuple[str, str, str]]
"""Method, path with query, and body of each request, with the number of times it was made."""


class Shop:
    """The example's shop on a free port, until the ``with`` block ends."""

    def __init__(self, *, products: int = 200, delay: float = 0) -> None:
        options = ("--port", "0", "--products", str(products), "--delay", str(delay))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shop_example.site", *options],
            cwd=EXAMPLE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def wait_for_hits(self, at_least: int) -> None:
        """Return as soon as the shop has had so many requests, robots.txt included."""
        self._report(f"?at_least={at_least}")

    def hits(self) -> Hits:
        """All requests so far, but those for robots.txt, which every run makes anew."""
        hits = Counter((method, path, body) for method, path, body in self._report())
        del hits["GET", "/robots.txt", ""]
        return hits

    def _report(self, query: str = "") -> list[tuple[str, str, str]]:
        with urlopen(f"{self.url}/_hits{query}", timeout=60) as answer:
            hits: list[tuple[str, str, str]] = json.load(answer)
        return hits


class Example(Project):
    """A copy of the example project that crawls the given shop; keywords are further settings."""

    def __init__(self, folder: Path, shop: Shop, **settings: Any) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "storage", "items.jsonl")
        shutil.copytree(EXAMPLE, folder, ignore=ignored, dirs_exist_ok=True)
        self._choose_backend(folder / "shop_example")
        values = {"SHOP_URL": shop.url, "APIFY_RQ_NAME": QUEUE, **settings}
        with (folder / "shop_example" / "settings.py").open("a") as file:
            file.writelines(f"{name} = {value!r}\n" for name, value in values.items())
            file.write('EXTENSIONS["stats.StatsFile"] = 0\n')
        (folder / "stats.py").write_text(_STATS_FILE)

    @property
    def items_file(self) -> Path:
        return self.folder / "items.jsonl"

    def items(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.items_file.read_text().splitlines()]
