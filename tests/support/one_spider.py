"""The module of a project with one spider, as most projects have."""

from __future__ import annotations

from tests.support.spiders import Pages


class Spider(Pages):
    """Under the name that the README's commands have here."""
