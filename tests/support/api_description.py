"""Checks calls and answers against the OpenAPI description of the API, where it is at hand.

The description lies beside the repository and is not part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[3] / "shared" / "api" / "openapi-rq.json"
# Every operation takes the token in the query as well.
_EVERYWHERE = ("token",)


def missing() -> str | None:
    """Why nothing can be checked."""
    if not FILE.is_file():
        return f"{FILE} is not there"
    return None if find_spec("jsonschema_rs") else "the package jsonschema-rs is not installed"


@dataclass
class _Operation:
    required: frozenset[str]
    """Names of query parameters."""
    parameters: dict[str, Any]
    """Query parameters: their types by name, and what checks them."""
    body: Any = None
    """What checks the body of a call, None where there is none."""
    answers: Mapping[str, Any] | None = None
    """What checks the answer by status; None where it has no body."""


class Description:
    def __init__(self) -> None:
        self._description = json.loads(FILE.read_text(encoding="utf-8"))
        self._components = self._description["components"]
        self.operations = {
            (verb.upper(), path): self._operation(operation)
            for path, operations in self._description["paths"].items()
            for verb, operation in operations.items()
        }
        # Fixed parts win: requests/batch is no request.
        templates = sorted({path for _, path in self.operations}, key=lambda path: path.count("{"))
        self._templates = [(re.compile(re.sub(r"{\w+}", "[^/]+", one)), one) for one in templates]
        self.seen: set[tuple[str, str]] = set()

    def _operation(self, raw: dict[str, Any]) -> _Operation:
        parameters = [self._resolved(one, "parameters") for one in raw["parameters"]]
        query = [one for one in parameters if one["in"] == "query"]
        answers = {}
        for status, answer in raw["responses"].items():
            content = self._resolved(answer, "responses").get("content")
            answers[status] = content and self._checker(content["application/json"]["schema"])
        body = raw.get("requestBody")
        return _Operation(
            frozenset(one["name"] for one in query if one.get("required")),
            {one["name"]: (one["schema"], self._checker(one["schema"])) for one in query},
            body and self._checker(body["content"]["application/json"]["schema"]),
            answers,
        )

    def _resolved(self, raw: dict[str, Any], kind: str) -> dict[str, Any]:
        found: dict[str, Any] = raw
        if "$ref" in raw:
            found = self._components[kind][raw["$ref"].split("/")[-1]]
        return found

    def _checker(self, schema: dict[str, Any]) -> Any:
        from jsonschema_rs import Draft202012Validator

        return Draft202012Validator(
            {**schema, "components": self._components}, validate_formats=True
        )

    def template(self, path: str) -> str:
        """The path with its parameters' names."""
        return next((name for form, name in self._templates if form.fullmatch(path)), path)

    def check(self, verb: str, path: str, status: int, body: Any) -> None:
        """Raise unless the operation may answer so; paths without an operation may do anything."""
        key = (verb, self.template(path))
        # Every operation may fail for reasons of the server.
        if key not in self.operations or status >= 500:
            return
        answers = self.operations[key].answers or {}
        assert str(status) in answers, f"{verb} {path} may not answer {status}"
        self.seen |= {key} if status < 300 else set()
        if (checker := answers[str(status)]) is None:
            assert body is None, f"{verb} {path} has no body with {status}"
        else:
            checker.validate(body)

    def check_call(
        self, verb: str, path: str, query: Sequence[tuple[str, str]], kind: str, body: bytes
    ) -> None:
        """Raise unless the API describes such a call; ``kind`` is its Content-Type."""
        operation = self.operations.get((verb, self.template(path)))
        assert operation is not None, f"there is no {verb} {path}"
        names = [name for name, _ in query]
        assert len(names) == len(set(names)), f"a parameter twice: {names}"
        assert operation.required <= set(names), f"missing: {operation.required - set(names)}"
        for name, text in query:
            if name not in _EVERYWHERE:
                assert name in operation.parameters, f"{verb} {path} has no parameter {name}"
                schema, checker = operation.parameters[name]
                checker.validate(_value(text, schema.get("type")))
        if operation.body is None:
            assert not body, f"{verb} {path} takes no body"
            return
        assert kind == "application/json", f"Content-Type {kind}"
        content = json.loads(body)
        operation.body.validate(content)
        self._check_requests(verb, path, content)

    def _check_requests(self, verb: str, path: str, content: Any) -> None:
        """What the description says in words: added requests have no id, a batch has 1 to 25."""
        if path.endswith("/batch"):
            assert 1 <= len(content) <= 25, f"a batch of {len(content)}"
        if verb == "POST":
            for request in content if isinstance(content, list) else [content]:
                assert "id" not in request, "a new request with an id"


def _value(text: str, kind: object) -> Any:
    """A parameter as what its schema says it is."""
    if kind == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
    if kind == "array":
        return text.split(",")
    if kind in ("number", "integer"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
