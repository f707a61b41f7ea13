"""What ``pyproject.toml`` promises, as far as no package has to be built for it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.documents import ROOT, text

PROJECT = tomllib.loads(text("pyproject.toml"))
OPTIONAL = {"brotli"}
"""The server unpacks such bodies if it is installed."""


def installed_with_us() -> set[str]:
    found: set[str] = set()
    wanted = [Requirement(one).name for one in PROJECT["project"]["dependencies"]]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in found:
            found.add(name)
            requirements = map(Requirement, requires(name) or [])
            wanted += [
                one.name
                for one in requirements
                if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    return found


def test_what_is_imported_is_installed_with_it() -> None:
    imported = set()
    for file in (ROOT / "scrapy_apify_rq").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    installed = installed_with_us()
    owners = packages_distributions()
    missing = {
        name
        for name in imported - sys.stdlib_module_names - OPTIONAL - {"scrapy_apify_rq"}
        if not installed & set(map(canonicalize_name, owners[name]))
    }
    assert "scrapy" in imported
    assert missing == set()


def test_version_is_the_newest_of_the_changelog() -> None:
    (newest, *_) = re.findall(r"^## (\d\S*)", text("CHANGELOG.md"), re.MULTILINE)
    assert newest == PROJECT["project"]["version"]
