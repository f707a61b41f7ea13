"""Packages for node, installed where the next test run finds them again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def installed(
    config: pytest.Config, factory: pytest.TempPathFactory, name: str, *packages: str
) -> Path:
    """The folder whose ``node_modules`` has them; the test is skipped where that cannot be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node or npm is not there")
    cache = getattr(config, "cache", None)
    folder = cache.mkdir(name) if cache else factory.mktemp(name)
    if not (folder / "node_modules").exists():
        words = ["install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
        command = [npm, *words, "--prefix", str(folder), *packages]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"npm could not install {', '.join(packages)}: {done.stderr[-500:]}")
    return Path(folder)
