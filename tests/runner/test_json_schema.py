"""The user's schema: what it may refer to, and that nothing outside of it is read."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.evaluation.metrics.base import Settings
from finetune_runner.json_schema import problem_with, schema_validator
from tests.runner.test_metrics import value

WHOLE = {"type": "integer"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/n", "$defs": {"n": WHOLE}},
        {"allOf": [{"$ref": "#n"}], "$defs": {"n": {"$anchor": "n", **WHOLE}}},
        {"$id": "https://example.com/a", "$ref": "b", "$defs": {"b": {"$id": "b", **WHOLE}}},
        {"$ref": "#/components/n", "components": {"n": {"$ref": "#/components/m"}, "m": WHOLE}},
        {"$dynamicRef": "#n", "$defs": {"n": {"$dynamicAnchor": "n", **WHOLE}}},
        {"anyOf": [WHOLE, {"type": "array", "items": {"$ref": "#"}}]},
        {"type": "integer", "not": {"const": {"$ref": "file:///etc/hostname"}}},
    ],
)
def test_references_within_the_schema_are_followed(schema: dict[str, Any]) -> None:
    validator = schema_validator(schema)
    assert problem_with(validator, 1) == ""
    assert problem_with(validator, "1")
    assert [value("schemaValid", [("", text)], Settings(schema=schema)) for text in ("1", '"1"')] == [1, 0]


DRAFT_4, DRAFT_7 = "http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema#"
_PAIR = {"$ref": "#/definitions/pair", "definitions": {"pair": {"items": [WHOLE, {"type": "string"}]}}}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"$schema": DRAFT_7, **_PAIR}, [1, "a"], [1, 2]),
        ({"$schema": DRAFT_7.rstrip("#"), **_PAIR}, [1, "a"], [1, 2]),
        ({"$schema": DRAFT_7, "dependencies": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}),
        ({"$schema": DRAFT_4, "minimum": 0, "exclusiveMinimum": True}, 1, 0),
        ({"$schema": "https://json-schema.org/draft/2019-09/schema", "items": [WHOLE]}, [1, "a"], ["a"]),
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "prefixItems": [WHOLE]}, [1, "a"], ["a"]),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}),
    ],
)
def test_a_schema_means_what_the_draft_it_names_says(schema: dict[str, Any], right: object, wrong: object) -> None:
    validator = schema_validator(schema)
    assert problem_with(validator, right) == ""
    assert problem_with(validator, wrong)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$schema": "https://example.com/ours", "type": "integer"}, "$schema https://example.com/ours is none of"),
        ({"$schema": 7}, "$schema 7 is none of"),
        ({"items": [WHOLE]}, "is not of type 'object', 'boolean'"),
        ({"$schema": DRAFT_4, "exclusiveMinimum": 1}, "is not of type 'boolean'"),
        ({"$schema": DRAFT_7, "items": [{"$ref": "other.json"}]}, "the reference other.json leads to no schema"),
    ],
)
def test_a_schema_that_is_none_of_its_draft_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(StageError) as caught:
        schema_validator(schema)
    assert caught.value.exit_code == ExitCode.INVALID_SPEC
    assert says in caught.value.message
    assert "draft" in caught.value.hint or "$defs" in caught.value.hint


@pytest.mark.parametrize(
    "reference",
    [
        "file:///etc/hostname", "http://169.254.169.254/latest", "other.json", "#/$defs/missing", "#missing",
        "#/type/a", "#/required/x", "http://[", "#/required/0", "#/broken",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["$ref", "$dynamicRef"])
def test_references_that_lead_nowhere_are_named(reference: str, place: str) -> None:
    schema = {
        "type": "object",
        "required": ["a"],
        "broken": {"type": "nonsense"},
        "properties": {"a": {"items": {place: reference}}},
    }
    with pytest.raises(StageError) as caught:
        schema_validator(schema)
    assert caught.value.exit_code == ExitCode.INVALID_SPEC
    assert "evaluation.task.schema" in caught.value.message
    assert reference in caught.value.message
    assert "$defs" in caught.value.hint


def test_nothing_outside_the_schema_is_read(tmp_path: Path) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    (tmp_path / "any.json").write_text(json.dumps({}))
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for reference in (f"http://127.0.0.1:{server.server_port}/any", (tmp_path / "any.json").as_uri()):
            with pytest.raises(StageError):
                schema_validator({"$ref": reference})
            with pytest.raises(StageError):
                value("schemaValid", [("", "1")], Settings(schema={"$ref": reference}))
        server.shutdown()
    assert asked == []


def test_a_schema_that_goes_round_in_circles_is_a_problem_and_no_traceback() -> None:
    assert "without end" in problem_with(schema_validator({"$ref": "#"}), 1)
