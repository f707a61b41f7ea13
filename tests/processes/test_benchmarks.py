"""The benchmarks run, with tiny numbers, so that they do not rot: programs, as people run them."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import signs_of_a_bug
from tests.support.scrapy_project import ROOT, Process


def start(folder: Path, program: str, *options: str) -> Process:
    command = [sys.executable, "-m", f"benchmarks.{program}", "--quick", *options]
    return Process(command, folder, {**os.environ, "PYTHONPATH": str(ROOT)}, None)


async def test_benchmarks(tmp_path: Path) -> None:
    """All at the same time, since they mostly wait."""
    options = {
        "speed": ["--contestants", "api@10", "--markdown"],
        "scale": [],
        "workers": [],
        "hosts": [],
        "kills": [],
    }
    outputs: dict[str, str] = {}
    figures: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        processes = {
            name: await stack.enter_async_context(
                start(tmp_path, name, "--json", str(tmp_path / name), *given)
            )
            for name, given in options.items()
        }
        for name, process in processes.items():
            ended = await process.end(240)
            assert ended.status == 0, ended.log
            outputs[name] = ended.output
            figures[name] = json.loads((tmp_path / name).read_text())

    assert "| Scrapy, in memory " in outputs["speed"]
    assert "| scrapy-apify-rq, API, 10 ms " in outputs["speed"]
    (crawls,) = figures["speed"]["crawls"]
    pages = {name: run["pages"] for name, (run,) in crawls["runs"].items()}
    assert pages == {"stock": 101, "api@10": 101}
    (run,) = crawls["runs"]["api@10"]
    assert run["calls"]["PUT requests/{id}"] == 101
    assert 0 < run["stall"] <= run["stall_wall"]
    assert 0 < run["opening"] < run["first_page"]
    assert run["memory"] > 10_000_000

    costs = figures["speed"]["items"]["runs"]
    stored = {name: run["stored"] for name, (run,) in costs.items()}
    assert stored["embedded"] > stored["embedded-unsaved"] + 101 * 1000 > stored["stock"] == 0

    assert "\n2,000 " in outputs["scale"]
    (row,) = figures["scale"]["sizes"]
    assert row["size"] == 2_000
    assert all(row[name] > 0 for name in ("open", "claim", "add", "ack"))
    assert row["longest"] > max(row["add"], row["ack"])
    assert figures["scale"]["known"]["stock"]["memory"] > 500_000

    assert "ratio to stock" in outputs["hosts"]
    runs = figures["hosts"]["runs"]["6"]
    assert {name: run["pages"] for name, (run,) in runs.items()} == dict.fromkeys(runs, 49)

    (row,) = figures["kills"]["rows"].values()
    assert row["pages"] > 30
    assert not any(row[fault] for fault in ("missing", "twice", "broken", "errors"))

    assert "times as fast" in outputs["workers"]
    for (run,) in figures["workers"]["runs"].values():
        assert run["pages"] == sum(run["shares"]) == 40
        assert run["repeated"] == 0
        assert run["writes"] >= 3 * 40


async def test_unknown_contestant_is_named(tmp_path: Path) -> None:
    async with start(tmp_path, "speed", "--contestants", "apii@50") as process:
        ended = await process.end()
    assert ended.status != 0
    assert "apii@50: no such contestant" in ended.log


_FRAMES = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'


@pytest.mark.parametrize(
    ("log", "signs"),
    [
        (f"{_FRAMES}    f()\n    ^^^\nKeyboardInterrupt\n", []),
        (f"{_FRAMES}    def f():\n\nKeyboardInterrupt\n", []),
        (f"Exception ignored in: <f>\n{_FRAMES}KeyboardInterrupt: \n", []),
        (f"{_FRAMES}E: x\n\nDuring handling of it:\n\n{_FRAMES}KeyboardInterrupt\n", []),
        (f"{_FRAMES}E: x\n{_FRAMES}KeyboardInterrupt\n", ["Traceback"]),
        (f"{_FRAMES}KeyboardInterrupt\n{_FRAMES}E: x\n", ["Traceback"]),
        ("CRITICAL: Unhandled error in Deferred:\n", ["Unhandled error"]),
    ],
)
def test_what_counts_as_a_bug_in_the_log_of_a_killed_crawl(log: str, signs: list[str]) -> None:
    assert signs_of_a_bug(log) == signs
