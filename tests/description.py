"""Checks answers against the OpenAPI description of the API, where jsonschema and it are there.

The description lies beside the repository and is not part of it.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "shared" / "api" / "openapi-rq.json"


def missing() -> str | None:
    """Why answers cannot be checked."""
    if not FILE.is_file():
        return f"{FILE} is not there"
    return None if find_spec("jsonschema") else "the package jsonschema is not installed"


class Description:
    def __init__(self) -> None:
        self._description = json.loads(FILE.read_text(encoding="utf-8"))
        self.operations = {
            (verb.upper(), path): operation
            for path, operations in self._description["paths"].items()
            for verb, operation in operations.items()
        }
        self.seen: set[tuple[str, str]] = set()

    def check(self, verb: str, path: str, status: int, body: Any) -> None:
        """Raise unless the operation may answer so; paths without an operation may do anything."""
        from jsonschema import Draft202012Validator

        key = (verb, self._template(path))
        if key not in self.operations:
            return
        responses = self.operations[key]["responses"]
        # Every operation may fail for reasons of the server.
        assert str(status) in responses or status >= 500, f"{verb} {path} may not answer {status}"
        if status >= 500:
            return
        self.seen |= {key} if status < 300 else set()
        response = responses[str(status)]
        if "$ref" in response:
            response = self._description["components"]["responses"][response["$ref"].split("/")[-1]]
        if "content" not in response:
            assert body is None, f"{verb} {path} has no body with {status}"
            return
        schema = response["content"]["application/json"]["schema"]
        validator = Draft202012Validator(
            {**schema, "components": self._description["components"]},
            format_checker=Draft202012Validator.FORMAT_CHECKER,
        )
        validator.validate(body)

    def _template(self, path: str) -> str:
        """The path with its parameters' names; fixed parts win: requests/batch is no request."""
        templates = sorted((template for _, template in self.operations), key=_parameters)
        fitting = (one for one in templates if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one), path))
        return next(fitting, path)


def _parameters(template: str) -> int:
    return template.count("{")
