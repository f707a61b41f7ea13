"""Classes are found by their names, and no code of others runs for it."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scrapy_apify_rq.entries.names import NOTHING, Names
from scrapy_apify_rq.entries.value_reader import decode
from scrapy_apify_rq.entries.values import encode
from scrapy_apify_rq.errors import CodecError, MissingError
from tests.support import codec_classes as cc
from tests.support.exact_values import HERE, ODD, describe, is_refused


@pytest.mark.parametrize("cls", [cc.Product, cc.Point, cc.Holder.Inner, dict, Decimal])
def test_class_path_round_trip(cls: type) -> None:
    path = NOTHING.path_of_class(cls)
    assert path == f"{cls.__module__}:{cls.__qualname__}"
    assert NOTHING.find_class(path) is cls


def test_class_that_cannot_be_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = dataclasses.make_dataclass("Made", ["x"])
    odd.__module__, odd.__qualname__ = HERE, ODD
    monkeypatch.setattr(cc, ODD, odd, raising=False)
    for cls in (type(cc.LOCAL), type(cc.IMPOSTOR), odd):
        with pytest.raises(CodecError, match="cannot be found again"):
            NOTHING.path_of_class(cls)


NO_CLASSES = ["os:system", "builtins:eval", "builtins:__import__", ":Holder", ":", "", "..:x"]
NO_CLASSES += ["scrapy_apify_rq.entries.values:encode", "turtledemo.chaos:Anything"]
NO_CLASSES += ["this:Anything", "antigravity:Anything", f"{HERE}.Holder", f"{HERE}:.Holder"]
NO_CLASSES += [f"{HERE}:Holder{end}" for end in (".value", ".make", ".point.x", ".Missing", ".")]
NO_CLASSES += [f"{HERE}:{end}" for end in ("", "Holder.point", "Holder.liar", "Trap.Point")]
NO_CLASSES += [f"{HERE}:scrapy.Item", f"{HERE}:f.<locals>.Local"]
NO_ITEMS = ["subprocess:Popen", "builtins:type", f"{HERE}:Text"]


def test_names_of_what_is_no_class_or_no_item() -> None:
    loaded = set(sys.modules)
    data = [{"$item": [path, []]} for path in (*NO_CLASSES, *NO_ITEMS)]
    assert [one for one in data if not is_refused(decode, one)] == []
    for names in (NOTHING, Names(["elsewhere"]), Names([HERE])):
        assert [path for path in NO_CLASSES if not is_refused(names.find_class, path)] == []
    assert set(sys.modules) == loaded
    assert not {"this", "antigravity"} & loaded


def test_hooks_of_modules_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return cc.Point

    asked: list[str] = []
    dynamic: Any = types.ModuleType("codec_dynamic")
    dynamic.__getattr__ = cc.run
    lazy, holder = Lazy("codec_lazy"), cc.Holder()
    for name, module in {"dynamic": dynamic, "lazy": lazy, "none": None, "object": holder}.items():
        monkeypatch.setitem(sys.modules, f"codec_{name}", module)  # type: ignore[arg-type]
    asked.clear()
    for name in ("dynamic", "lazy", "none", "object"):
        assert is_refused(NOTHING.find_class, f"codec_{name}:Point")
    assert asked == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is on the path and not loaded; its module ``broken`` cannot be imported."""
    name = f"codec_{uuid4().hex}"
    source = "import dataclasses\n@dataclasses.dataclass\nclass Thing:\n    a: int = 0\n"
    (tmp_path / name).mkdir()
    files = {"__init__.py": "", "items.py": source, "broken.py": "1 / 0", f"../{name}x.py": source}
    files["script.py"] = "raise SystemExit"
    for file, text in files.items():
        (tmp_path / name / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


@pytest.mark.parametrize("below", ["", ".items"])
def test_trusted_module_is_imported(package: str, below: str) -> None:
    data: Any = {"$item": [f"{package}.items:Thing", [["a", 5]]]}
    for trusted in ([], [f"{package}.item", f"{package}.items.more", "x"]):
        with pytest.raises(MissingError, match="APIFY_RQ_TRUSTED_MODULES"):
            decode(data, Names(trusted))
    assert package not in sys.modules
    thing = decode(data, Names([package + below]))
    assert (thing.a, type(thing).__module__) == (5, f"{package}.items")
    assert describe(decode(encode(cc.Point(thing)))) == describe(cc.Point(thing))


MISSING = [".missing:Thing", ".broken:Thing", ".script:Thing"]
MISSING += [".items:Renamed", ".items:Thing.Inner"]


@pytest.mark.parametrize("path", MISSING)
def test_what_another_version_of_the_project_may_have(package: str, path: str) -> None:
    with pytest.raises(MissingError):
        decode({"a": [{"$item": [f"{package}{path}", []]}]}, Names([package]))  # type: ignore[dict-item]


@pytest.mark.parametrize("module", ["x", ".missing", ".broken", ".", "..items", "./items", ".\0"])
def test_what_is_below_a_trusted_module(package: str, module: str) -> None:
    assert is_refused(decode, {"$item": [f"{package}{module}:Thing", []]}, Names([package]))
    assert f"{package}x" not in sys.modules
