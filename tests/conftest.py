"""Fixtures of several test modules, and how tests are shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import project
from tests.servers import Servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module", params=["sqlite", "apify"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test is run twice, its projects crawling with the embedded queue and over the API.

    A fixture of the module that crawls must ask for this one, or both runs share its crawl.
    """
    if request.param == "apify":
        project.servers = request.getfixturevalue("servers")
    yield request.param
    project.servers = None


# So that no process works alone in the end.
LONGEST = ["workers", "invariants", "resume", "api_crawls", "commands", "same_pages"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of those modules first, the longest before the others."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


# The --dist loadgroup of pytest-xdist 3.8 does nothing under pytest 9.2: it fails to rename tests.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: give tests that share fixtures to one process, a module or half of it."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleAndBackend(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module, _, test = nodeid.partition("::")
            whole = "[apify" not in test or module.endswith("test_same_pages.py")
            return module if whole else f"{module} apify"

    config.option.loadscopereorder = False
    return ByModuleAndBackend(config, log)
