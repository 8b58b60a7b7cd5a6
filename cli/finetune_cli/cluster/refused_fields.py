"""Problems that the API server found in a YAML, with the line each is on: as our own validation shows them. Pure."""

from __future__ import annotations

import re
from typing import Any

from finetune_api.validation import Problem
from finetune_api.yaml_document import Document, Path
from finetune_cli.cluster.refusals import Refusal

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_FRAME = re.compile(
    r'^(?:Invalid value|Forbidden|Required value|Unsupported value|Too (?:long|many|few)): (?:(?:"[^"]*"|\S+): )?'
)


def parse_field(text: str) -> Path:
    """`spec.data.train[0].source` as the path ("spec", "data", "train", 0, "source")."""
    return tuple(int(index) if index else name for name, index in _STEP.findall(text))


def _problem(document: Document, cause: dict[str, Any]) -> Problem:
    field = str(cause.get("field") or "")
    if field == "<nil>":
        field = ""
    message = _FRAME.sub("", str(cause.get("message", "")))
    said, _, fix = message.partition("; ")
    position = document.position_of(parse_field(field))
    return Problem(field, position.line, position.column, f"is refused: {said}", fix or "see docs/reference/api.md")


def problems_of(refusal: Refusal, document: Document) -> list[Problem]:
    """One per cause, in the order of the lines; empty when the server named no field."""
    causes = refusal.details.get("causes")
    found = [_problem(document, cause) for cause in causes or [] if isinstance(cause, dict)]
    return sorted(dict.fromkeys(found), key=lambda problem: (problem.line, problem.column))
