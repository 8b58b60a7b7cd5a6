"""The smallest JSON merge patch (RFC 7386) between two values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What turns `before` into `after`: changed members, null for removed ones; empty when they are equal.

    Neither side may contain nulls, which a merge patch cannot express; `to_wire` leaves them out.
    """
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, wanted in after.items():
        if name not in before:
            patch[name] = wanted
        elif isinstance(before[name], Mapping) and isinstance(wanted, Mapping):
            inner = merge_patch(before[name], wanted)
            if inner:
                patch[name] = inner
        elif before[name] != wanted or isinstance(before[name], bool) != isinstance(wanted, bool):
            patch[name] = wanted
    return patch


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """What the API server makes of a patch (RFC 7386, section 2)."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_merge_patch(result.get(name), value)
    return result
