"""Imports point down only: addon, then commands and crawl, and so on to the ground floor."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "scrapy_apify_rq"
ROOT = Path(__file__).parents[2] / PACKAGE

# From the top. Rooms of one level do not know each other. A file of the ground floor is a room.
LEVELS = [
    {"addon", "__main__"},
    {"commands", "crawl"},
    {"server", "frontier", "actor"},
    {"backends"},
    {"entries"},
    {"config"},
    {"proxy_configuration", "run_environment"},
    {"setting_readers", "scrapy_private"},
    {"identity"},
    {"clock", "errors", "limits", "plurals", "retry_after"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# __init__ names what the package offers, from any room, and loads it late.
FILES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"
)


def room_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """The line and the room of each import, wherever in the file it is."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == PACKAGE:
                yield node.lineno, rest.partition(".")[0]


def test_imports_point_down() -> None:
    wrong = [
        f"{file}:{line} imports {other}"
        for file in FILES
        for line, other in imported(file)
        if other != (room := room_of(file)) and LEVEL.get(other, -1) <= LEVEL[room]
    ]
    assert wrong == []


def test_every_room_has_a_level_and_every_level_a_room() -> None:
    assert {room_of(file) for file in FILES} == LEVEL.keys()


def test_imports_are_found_wherever_they_are() -> None:
    rooms = {room for _, room in imported(Path("entries/converter.py"))}
    assert {"entries", "config", "errors", "limits"} <= rooms  # config: only for type checkers
    assert "backends" in {room for _, room in imported(Path("crawl/lifecycle.py"))}
