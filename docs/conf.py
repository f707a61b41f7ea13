"""Builds these pages: ``python -m sphinx -W -q -c docs . docs/_build``. It needs no network.

The source folder is that of the repository, so that links between these pages and the files beside
the code are the same here and on GitHub, and are all checked. The pages are plain Markdown: of MyST
they use nothing but its table of contents.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = _PROJECT["name"]
release = version = _PROJECT["version"]

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "*.md", "benchmarks/README.md", "example_project/README.md"]
exclude_patterns = [".*", "docs/_build", "tests", "scrapy_apify_rq"]
# The form of an anchor on GitHub, for headings of these levels.
myst_heading_anchors = 3
nitpicky = True

html_theme = "alabaster"
html_theme_options = {
    "description": _PROJECT["description"],
    "page_width": "1100px",
    "show_powered_by": False,
}
html_show_copyright = False
html_copy_source = False
