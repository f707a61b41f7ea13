"""What the page on scripts shows: a script and a notebook are programs of their own."""

from __future__ import annotations

import textwrap
from pathlib import Path

from tests.support.documents import snippet
from tests.support.process_spiders import Tree
from tests.support.queues import Queue
from tests.support.scrapy_project import Project
from tests.support.website import Site, links

PAGE = "docs/scripts.md"
SPIDER = """
from tests.support.spiders import Links


class Products(Links):
    name = "products"

    def __init__(self):
        super().__init__("{}")
"""


async def test_script_and_notebook(tmp_path: Path, site: Site, queue: Queue) -> None:
    site.serve({"/": links("/a", "/b"), "/a": "page", "/b": "page"})
    settings = {"SPIDER_MODULES": ["products"], "TELNETCONSOLE_ENABLED": False}
    project = Project(tmp_path, queue, Tree, settings)
    (tmp_path / "products.py").write_text(SPIDER.format(site.url))
    script, notebook = tmp_path / "script.py", tmp_path / "notebook.py"
    script.write_text(snippet(PAGE, "A script"))
    cells = textwrap.indent(snippet(PAGE, "A notebook"), "    ")
    cells = cells.replace("https://example.com", site.url)
    notebook.write_text(f"import asyncio\n\n\nasync def run():\n{cells}\nasyncio.run(run())\n")
    done = await project.run(script=script, as_a_user=True)
    assert (done.status, sorted(site.paths)) == (0, ["/", "/a", "/b"]), done.log
    # The queue has the project's name, and a second run would have nothing to do.
    assert (await queue.info())[2:5] == (3, 3, 0)
    site.forget()
    done = await project.run(script=notebook)
    assert (done.status, sorted(site.paths)) == (0, ["/", "/a", "/b"]), done.log
    assert len((tmp_path / "products.jsonl").read_text().splitlines()) == 3
