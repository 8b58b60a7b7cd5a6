"""Objects of JSON with each key once: of two values of one key JSON readers keep the last, without a word."""

from __future__ import annotations

from typing import Any

from finetune_runner.data.records import RowError


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=...)`. Raises RowError naming a key that is there twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError(f"has the key `{twice}` twice", "keep one of the two values")
    return value
