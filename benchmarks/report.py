"""Report results: tables, JSON, and a description of the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("scrapy", "scrapy-apify-rq", "apify", "scrapy-redis", "httpx", "aiohttp", "twisted")


def add_options(parser: argparse.ArgumentParser, *, plot: bool = True) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    if plot:
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="draw the figures to this PNG file"
        )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--quick", action="store_true", help="a smoke test with few, small runs")


def machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def print_machine(machine: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    print(
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores,"
        f" {machine['system']}, Python {machine['python']}, {versions}\n"
    )


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, markdown: bool
) -> None:
    """Print a table whose first column is text and whose other columns are numbers."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [text.rjust(width) if n else text.ljust(width) for n, (text, width) in enumerate(pairs)]
        for pairs in (zip(row, widths, strict=True) for row in cells)
    ]
    if markdown:
        rule = ["-" * (width - 1) + ":" if n else "-" * width for n, width in enumerate(widths)]
        lines.insert(1, rule)
    print(f"**{title}**\n" if markdown else title)
    for line in lines:
        print(f"| {' | '.join(line)} |" if markdown else "  ".join(line))
    print(flush=True)


def write_json(file: Path | None, figures: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(figures, indent=1, default=str))
