"""The benchmarks run, with tiny numbers, so that they do not rot: programs, as people run them."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import whole
from benchmarks.__main__ import PROGRAMS, main
from benchmarks.kills import signs_of_a_bug
from tests.support.documents import blocks, text
from tests.support.scrapy_project import ROOT, Process

SPEED = "docs/speed.md"
SIZES = {"png": 60_000, "svg": 20_000}


async def test_each_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    async with Process(command, tmp_path, environ) as process:
        ended = await process.end(240)
    assert ended.status == 0, ended.log
    rows = re.findall(r"^\| ([^|]+?) +\|", ended.output, re.MULTILINE)
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PROGRAMS}

    def runs(name: str, kind: str = "crawls") -> dict[str, Any]:
        (results,) = found[name][kind]
        assert results["title"] in ended.output
        return {contestant: run for contestant, (run,) in results["runs"].items()}

    for run in runs("whole").values():
        assert run["pages"] == 21
        assert 0 < run["opening"] < run["first_page"]
        parts = run["first_page"] + run["seconds"] + run["end"]
        assert run["whole"] == pytest.approx(parts, abs=0.01)
        assert 0 < run["closing"] < run["end"]
    for run in runs("speed").values():
        assert run["pages"] == 21
        assert run["memory"] > 10_000_000
    for run in runs("speed", "stalls").values():
        assert 0 < run["stall"] <= run["stall_wall"]
    assert rows.count("Scrapy, JOBDIR, SQLite") == 1

    cpu = runs("cpu", "tables")
    assert cpu["embedded"]["stored"] > 20_000 > cpu["stock"]["stored"] == 0
    assert all(run["cpu"] > 0 for run in cpu.values())
    assert {name: run["pages"] for name, run in runs("hosts").items()} == {
        "stock": 101,
        "embedded": 101,
    }

    workers = found["workers"]["api-shared@50"]
    (crawl,) = workers["crawls"]["1"]
    assert crawl["pages"] == sum(crawl["shares"]) == 20
    assert (crawl["repeated"], crawl["outcomes"].get("429", 0)) == (0, 0)
    assert crawl["writes"] >= 3 * 20
    (kill,) = workers["kills"]["3"]
    assert kill["pages"] == 20
    assert 1 < kill["waited"] <= kill["done"]

    (row,) = found["scale"]["sizes"]
    assert all(row[name] > 0 for name in ("size", "open", "claim", "add", "ack"))
    assert row["longest"] > max(row["add"], row["ack"])
    assert found["scale"]["known"]["stock"]["memory"] > 500_000

    (row,) = found["kills"]["rows"].values()
    assert row["pages"] > 15
    assert not any(row[fault] for fault in ("missing", "twice", "broken", "errors"))
    assert all(cost > 0 for (cost,) in found["http_transport"]["costs"].values())


def test_list_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    listed = re.findall(r"^python -m benchmarks\.(\w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(PROGRAMS)
    programs = {
        file.stem
        for file in (ROOT / "benchmarks").glob("*.py")
        if "\ndef parser()" in file.read_text()
    }
    assert programs == set(PROGRAMS)
    named = re.findall(r"^\| `python -m benchmarks\.(\w+)`", text("benchmarks/README.md"), re.M)
    assert named == list(PROGRAMS)


def test_each_table_has_its_command() -> None:
    """Above it, below the same heading; the benchmark takes its options."""
    makers = {program.table: name for name, program in PROGRAMS.items() if program.table}
    sections = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)+)", text(SPEED), re.MULTILINE))
    assert sorted(sections) == sorted(makers)
    assert not re.search(r"^\|", text(SPEED).partition("\n## ")[0], re.MULTILINE)
    for title, body in sections.items():
        assert "\n|" not in body.partition("```bash\n")[0], f"{title}: the table precedes"
        lines = "\n".join(line for block in blocks(SPEED, title) for line in block.lines)
        commands = lines.replace("\\\n", "").splitlines()
        assert commands, title
        for command in map(shlex.split, commands):
            assert command[:3] == ["python", "-m", f"benchmarks.{makers[title]}"]
            import_module(f"benchmarks.{makers[title]}").parser().parse_args(command[3:])


def test_figures_are_small() -> None:
    figures = list((ROOT / "benchmarks/figures").iterdir())
    assert figures
    assert [file.name for file in figures if file.stat().st_size > SIZES[file.suffix[1:]]] == []


def test_unknown_contestant_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        whole.parser().parse_args(["--contestants", "apii@50"])
    assert "apii@50: no such contestant" in capsys.readouterr().err


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
