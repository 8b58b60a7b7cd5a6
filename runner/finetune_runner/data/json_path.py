"""The part of JSONPath that the contract has: `$.a.b`."""

from __future__ import annotations

from typing import Any


def value_at(value: object, path: str) -> Any:
    """The value at a path such as `$.customer.id`; None when it is not there."""
    for name in path.removeprefix("$").split(".")[1:]:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value
