"""The tests with each Python, each Scrapy, and the oldest of all dependencies: ``nox``.

CI runs ``check.sh``, with one Python and the newest versions. This is for a release, and for a
change of what is required. docs/dependencies.md has the outcome.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
LOWEST = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
# Scrapy needs both, and their newest releases refuse that cryptography.
OF_THEIR_TIME = ["pyopenssl==24.0.0", "service-identity==24.1.0"]
FOLDERS = ["tests/unit", "tests/backends", "tests/crawls"]


def run_tests(session: nox.Session, *requirements: str) -> None:
    session.install("--editable", ".", "--group", "crawls", *requirements)
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2", *FOLDERS]))


@nox.session(python=nox.project.python_versions(PROJECT))
def python(session: nox.Session) -> None:
    run_tests(session)


@nox.session(python="3.11")
@nox.parametrize("scrapy", ["2.16.*", "2.17.*", "2.18.*"])
def scrapy(session: nox.Session, scrapy: str) -> None:
    run_tests(session, f"scrapy=={scrapy}")


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    run_tests(session, *LOWEST, *OF_THEIR_TIME)
