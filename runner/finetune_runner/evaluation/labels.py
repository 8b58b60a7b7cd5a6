"""From an answer's text to the JSON it holds and to its label."""

from __future__ import annotations

import json
from typing import Any

MISSING = object()
"""Stands for 'no such value', which JSON's null is not."""


def strict_json(text: str) -> Any:
    """The answer as JSON when all of it is JSON, else MISSING."""
    try:
        return json.loads(text.strip())
    except (ValueError, RecursionError):
        return MISSING


def first_object(text: str) -> Any:
    """The first JSON object inside the answer, else MISSING.

    Lenient on purpose: an untuned model often adds a sentence or a code fence, and a baseline that is right must count.
    """
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return MISSING


def at_path(value: Any, path: str) -> Any:
    """Follow `$.a.b` through objects, else MISSING."""
    for key in path.removeprefix("$").split(".")[1:]:
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def label_of(text: str, label_path: str | None) -> str | None:
    """The class an answer names: the value at `label_path`, or the whole answer; None when there is none."""
    if label_path is None:
        return text.strip() or None
    value = at_path(first_object(text), label_path)
    if value is MISSING or value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
