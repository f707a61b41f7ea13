"""Packages without which some tests are skipped."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def needs(package: str) -> pytest.MarkDecorator:
    """Does not import it: each worker reads all modules of tests, and few run what needs it."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
