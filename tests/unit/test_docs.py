"""The documents say what the code says, name tests that exist, and show only what is tried."""

from __future__ import annotations

import argparse
import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scrapy.settings import Settings
from scrapy.utils.conf import arglist_to_dict

import scrapy_apify_rq
from scrapy_apify_rq.commands.rq import Command, subcommands
from scrapy_apify_rq.config import DEFAULTS, REMOVED, Config
from scrapy_apify_rq.crawl.duplicates import EACH_RUN
from tests.support.documents import PAGES, README, ROOT, Block, blocks, commands, section, text

PACKAGE = Path(scrapy_apify_rq.__file__).parent
SOURCE = "".join(file.read_text() for file in PACKAGE.rglob("*.py"))
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHOWN = {"bash", "python", "json", "ini", "dockerfile"}
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\S*/)?scrapy (?P<words>(?:rq|crawl|runspider) [^&;|#]*)")


# What the code says


def test_settings_table_has_every_setting_in_order_with_its_default() -> None:
    rows = re.findall(
        r"^\| `(APIFY_\w+)` \|(?: `([^`]+)` \|)?", text("docs/settings.md"), re.MULTILINE
    )
    assert [name for name, _ in rows] == list(DEFAULTS)
    shown = {name: default for name, default in rows if default}
    assert len(shown) >= 15
    assert shown == {name: repr(DEFAULTS[name]).replace("'", '"') for name in shown}


def test_every_stat_is_documented() -> None:
    stat = r"((?:apify_rq|scheduler|dupefilter)/[\w/]+)"
    documented = set(re.findall(rf"`{stat}`", text("docs/stats.md")))
    # RFPDupeFilter counts that one.
    assert documented - {"dupefilter/filtered"} == set(re.findall(rf'"{stat}"', SOURCE))
    assert "`apify_rq/api/calls/{endpoint}`" in text("docs/stats.md")


def test_every_closing_reason_is_documented() -> None:
    used = set(re.findall(r'"(apify_rq_\w+)"', SOURCE)) - {EACH_RUN}
    assert used == set(re.findall(r"`(apify_rq_\w+)`", text("docs/stats.md")))


def test_every_setting_that_is_named_exists() -> None:
    named = {name for page in PAGES for name in re.findall(r"APIFY_RQ_[A-Z_]+\b", text(page))}
    # A variable of the server.
    assert named - {"APIFY_RQ_SERVER_TOKEN"} <= DEFAULTS.keys() | REMOVED.keys()


def test_public_names_are_documented() -> None:
    names = scrapy_apify_rq.__all__
    assert names == sorted(names)
    shown = text("docs/settings.md")
    assert [name for name in names if f"scrapy_apify_rq.{name}" not in shown] == []


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Of each subcommand of ``scrapy rq``."""
    command, parser = Command(), argparse.ArgumentParser()
    command.settings = Settings()
    command.add_options(parser)
    (action,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


def test_options_of_each_subcommand_are_documented() -> None:
    everywhere = {"-h", "--help", "-q", "--queue", "--spider", "-a", "--json"}
    actual = {}
    for subcommand in subcommands():
        parser = argparse.ArgumentParser()
        subcommand.add_options(parser)
        options = {option for action in parser._actions for option in action.option_strings}
        actual[subcommand.NAME] = options - everywhere
    rows = re.findall(
        r"^\| `([\w-]+)` \| (.*) \|$", section("docs/commands.md", "All options"), re.MULTILINE
    )
    assert {name: set(re.findall("`(-[^` ]+)", options)) for name, options in rows} == actual


def test_commands_to_try_it_and_to_test_it_are_one_line_each() -> None:
    titles = "Try it", "Work on it"
    assert [len(commands(README, title)) for title in titles] == [1, 1]


def test_readme_ci_and_contributors_run_the_same_checks() -> None:
    """CI takes the command from the README; its parts are in one script."""
    (reading,) = [line for line in text(".ci/run").splitlines() if line.startswith("command=")]
    script = f'{reading}; echo "$command"'
    read = subprocess.run(["bash", "-ec", script], cwd=ROOT, text=True, capture_output=True)
    assert [read.stdout.split()] == commands(README, "Work on it") == [["bash", "check.sh"]]
    (whole, *parts) = blocks("CONTRIBUTING.md")[0].lines
    assert whole == "bash check.sh"
    assert set(parts) <= set(text("check.sh").splitlines())


def test_readme_is_short() -> None:
    assert len(text(README).splitlines()) <= 180


# Tests and sources that are named


def test_named_tests_exist() -> None:
    named = {
        found for page in PAGES for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text(page))
    }
    assert len(named) > 50
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if not (ROOT / file).exists()
        or not re.search(rf"^(?:async )?def {test}\(", text(file), re.MULTILINE)
    ]
    assert missing == []


def test_sources_of_the_comparison() -> None:
    """Each says what the page says, where the package is installed."""
    shown = re.findall(r"`([\w/]+\.py)` has (no )?`([^`]+)`", text("docs/comparison.md"))
    assert len(shown) > 15
    looked_up, wrong = set(), []
    for file, is_absent, words in shown:
        package, _, path = file.partition("/")
        if (spec := find_spec(package)) is None or spec.origin is None:
            continue
        looked_up.add(package)
        if (words in (Path(spec.origin).parent / path).read_text()) == bool(is_absent):
            wrong.append(f"{file}: {is_absent}{words}")
    assert wrong == []
    assert "scrapy" in looked_up


# What is shown


def test_each_block_is_run_or_says_why_not() -> None:
    unmarked = [
        block
        for block in BLOCKS
        if block.language in SHOWN
        and block.page != "CONTRIBUTING.md"  # it describes how to work here
        and not is_settings(block)
        and not block.mark.startswith(("run by tests/", "not run: ", "test command"))
    ]
    assert unmarked == []


def test_tests_that_run_blocks_read_them() -> None:
    for block in BLOCKS:
        if block.mark.startswith("run by "):
            file = block.mark.removeprefix("run by ")
            source = text(file)
            name = "README" if block.page == README else Path(block.page).name
            assert name in source, f"{file} does not read {block.page}"


def is_settings(block: Block) -> bool:
    """Whether it only sets settings; then ``test_settings_are_right`` reads them."""
    if block.language != "python":
        return False
    try:
        statements = ast.parse(block.text).body
    except SyntaxError:
        return False
    return all(
        isinstance(one, ast.Assign)
        and all(isinstance(name, ast.Name) and name.id.isupper() for name in one.targets)
        for one in statements
    )


@pytest.mark.parametrize("block", [one for one in BLOCKS if is_settings(one)], ids=lambda b: b.page)
def test_settings_are_right(block: Block) -> None:
    values: dict[str, Any] = {}
    exec(block.text, values)
    del values["__builtins__"]
    Config.from_settings(Settings(values), {}, "spider")


def test_shell_blocks_parse() -> None:
    shell = "\n".join(block.text for block in BLOCKS if block.language == "bash")
    checked = subprocess.run(["bash", "-n"], input=shell, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_commands_parse() -> None:
    """All of ours, run or not: the options of ``scrapy rq``, and the settings of crawls."""
    lines = [line for block in BLOCKS if block.language == "bash" for line in block.lines]
    found = [match["words"] for line in lines for match in COMMAND.finditer(line)]
    assert len(found) > 40
    for words in map(shlex.split, found):
        if words[0] == "rq":
            parsers()[words[1]].parse_args(words[2:])
        values = arglist_to_dict([value for option, value in pairwise(words) if option == "-s"])
        Config.from_settings(Settings(values), {"APIFY_TOKEN": "t"}, "spider")


def test_snippets_parse() -> None:
    for block in BLOCKS:
        parse(block)


def parse(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "ini":
        configparser.ConfigParser(strict=False).read_string(block.text)
    elif block.language == "python":
        # A notebook may await anywhere.
        compile(block.text, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_readme_on_the_package_index_has_no_link_that_leads_nowhere() -> None:
    """It shows the README alone. What the build puts in the place of links is in pyproject.toml."""
    project = tomllib.loads(text("pyproject.toml"))
    shown = text(README)
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(rule["pattern"], rule["replacement"], shown)
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    assert "![" not in shown
