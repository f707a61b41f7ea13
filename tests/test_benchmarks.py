"""The benchmarks run, with tiny numbers, so that they do not rot; what they measure is theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def benchmark(program: str, figures: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What it prints, and its figures."""
    words = [sys.executable, "-m", f"benchmarks.{program}", "--json", str(figures), *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(figures.read_text())


def test_speed(tmp_path: Path) -> None:
    options = ("--contestants", "jobdir", "embedded", "api@10", "--many", "5", "--markdown")
    text, figures = benchmark("speed", tmp_path / "figures", "--quick", *options)
    assert "| Scrapy, in memory " in text
    assert "| scrapy-apify-rq, API, 10 ms " in text
    (crawls,) = figures["crawls"]
    assert {name: run["pages"] for name, (run,) in crawls["runs"].items()} == dict.fromkeys(
        ("stock", "jobdir", "embedded", "api@10"), 101
    )
    (run,) = crawls["runs"]["api@10"]
    assert run["calls"]["PUT requests/{id}"] == 101
    assert 0 < run["stall"] <= run["stall_wall"]
    assert 0 < run["opening"] < run["first_page"]
    assert run["memory"] > 10_000_000


def test_scale(tmp_path: Path) -> None:
    text, figures = benchmark("scale", tmp_path / "figures", "--quick")
    assert "\n3,000 " in text
    assert [row["size"] for row in figures["sizes"]] == [1_000, 3_000]
    assert all(
        row[name] > 0 for row in figures["sizes"] for name in ("open", "claim", "add", "ack")
    )
    assert figures["known"]["stock"]["memory"] > 500_000


def test_an_unknown_contestant_is_named() -> None:
    words = [sys.executable, "-m", "benchmarks.speed", "--contestants", "apii@50"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "apii@50: no such contestant" in done.stderr


def test_workers(tmp_path: Path) -> None:
    text, figures = benchmark("workers", tmp_path / "figures", "--quick")
    assert "times as fast" in text
    for (run,) in figures["runs"].values():
        assert run["pages"] == sum(run["shares"]) == 40
        assert run["repeated"] == 0
        assert run["writes"] >= 3 * 40
