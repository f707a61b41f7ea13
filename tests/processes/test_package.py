"""What is published, built and checked as for the package index. It needs no network.

Only a process can show what is installed: this one has the checkout on its path.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from tests.support.documents import README, ROOT, text
from tests.support.website import Site, links

SPIDER = """
import scrapy


class Pages(scrapy.Spider):
    name = "pages"
    custom_settings = {{"ADDONS": {{"scrapy_apify_rq.Addon": 500}}, "TELNETCONSOLE_ENABLED": False}}
    start_urls = ["{url}"]

    def parse(self, response):
        yield {{"url": response.url}}
        yield from response.follow_all(css="a")
"""


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel, which is made from the source distribution, and that one."""
    options = ("--no-isolation", "--outdir", folder)
    run(sys.executable, "-W", "error", "-m", "build", *options, ROOT, cwd=folder)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=folder)
    return wheel, source


def files(folder: Path, below: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(below)) for path in found if "__pycache__" not in path.parts}


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with this wheel, and what it needs from ours; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-compile", "--no-index", "--no-deps", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Of this folder no .pth file is read, and so not the one that leads to the checkout.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_package(tmp_path: Path, site: Site) -> None:
    wheel, source = build(tmp_path)

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        fields = HeaderParser().parsestr(archive.read(metadata).decode())
    package = ROOT / "scrapy_apify_rq"
    assert names == files(package, ROOT) > {"scrapy_apify_rq/py.typed"}
    assert fields["Provides-Extra"] is None

    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    linked = re.findall(r"\]\((?!https://)([^)#]+)", text(README))
    assert set(linked) - names == set()
    assert names >= files(ROOT / "tests", ROOT) | files(ROOT / "example_project/.actor", ROOT)

    python = install(wheel, tmp_path / "venv")
    where = run(
        python, "-c", "import scrapy_apify_rq; print(scrapy_apify_rq.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(tmp_path))
    assert "import-jobdir" in run(python, "-m", "scrapy", "rq", "--help", cwd=tmp_path)
    pages = [f"/{number}" for number in range(9)]
    site.serve({"/": links(*pages), **dict.fromkeys(pages, "page")})
    (tmp_path / "pages.py").write_text(SPIDER.format(url=site.url))
    run(python, "-m", "scrapy", "runspider", "pages.py", "-O", "pages.json", cwd=tmp_path)
    assert sorted(site.paths) == ["/", *pages]
    assert len(json.loads((tmp_path / "pages.json").read_text())) == 10
