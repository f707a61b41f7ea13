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


# The --dist loadgroup of pytest-xdist 3.8 does nothing under pytest 9.2: it fails to rename tests.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: give tests that share fixtures to one process, a module or half of it."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleAndBackend(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module, _, test = nodeid.partition("::")
            return f"{module} apify" if "[apify" in test else module

    return ByModuleAndBackend(config, log)
