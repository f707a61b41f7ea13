"""The benchmarks run, with tiny numbers, so that they do not rot; what they measure is theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "speed": ("--contestants", "api@10", "--markdown"),
    "scale": (),
    "workers": (),
}


class Output(NamedTuple):
    text: str
    figures: dict[str, Any]


def start(program: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{program}", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Output]]:
    """What each prints, and its figures. They run at the same time, since they mostly wait."""
    folder = tmp_path_factory.mktemp("figures")
    with ExitStack() as stack:
        processes = {}
        for program, options in PROGRAMS.items():
            file = str(folder / program)
            processes[program] = stack.enter_context(
                start(program, "--quick", "--json", file, *options)
            )
        outputs = {}
        for program, process in processes.items():
            text, problems = process.communicate(timeout=120)
            assert process.returncode == 0, problems
            outputs[program] = Output(text, json.loads((folder / program).read_text()))
        yield outputs


def test_speed(outputs: dict[str, Output]) -> None:
    text, figures = outputs["speed"]
    assert "| Scrapy, in memory " in text
    assert "| scrapy-apify-rq, API, 10 ms " in text
    (crawls,) = figures["crawls"]
    pages = {name: run["pages"] for name, (run,) in crawls["runs"].items()}
    assert pages == {"stock": 101, "api@10": 101}
    (run,) = crawls["runs"]["api@10"]
    assert run["calls"]["PUT requests/{id}"] == 101
    assert 0 < run["stall"] <= run["stall_wall"]
    assert 0 < run["opening"] < run["first_page"]
    assert run["memory"] > 10_000_000


def test_scale(outputs: dict[str, Output]) -> None:
    text, figures = outputs["scale"]
    assert "\n2,000 " in text
    (row,) = figures["sizes"]
    assert row["size"] == 2_000
    assert all(row[name] > 0 for name in ("open", "claim", "add", "ack"))
    assert row["longest"] > max(row["add"], row["ack"])
    assert figures["known"]["stock"]["memory"] > 500_000


def test_workers(outputs: dict[str, Output]) -> None:
    text, figures = outputs["workers"]
    assert "times as fast" in text
    for (run,) in figures["runs"].values():
        assert run["pages"] == sum(run["shares"]) == 40
        assert run["repeated"] == 0
        assert run["writes"] >= 3 * 40


def test_an_unknown_contestant_is_named() -> None:
    with start("speed", "--contestants", "apii@50") as process:
        _, problems = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "apii@50: no such contestant" in problems
