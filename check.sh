#!/usr/bin/env bash
# Makes a virtual environment, and runs all checks and tests in it. Stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")"

set -x
python3 -m venv .venv-test
# pip 25.1 is the first that knows groups of dependencies. Python 3.11 to 3.13 come with an older one.
.venv-test/bin/python -m pip install --quiet "pip>=25.1"
.venv-test/bin/python -m pip install --quiet --editable . --group dev
.venv-test/bin/python -m ruff check .
.venv-test/bin/python -m ruff format --check .
.venv-test/bin/python -m mypy
.venv-test/bin/python -m sphinx -W -q -c docs . docs/_build
# The tests wait for a third of their time, so twice as many workers as cores are faster.
.venv-test/bin/python -m pytest -n 4 --dist worksteal
