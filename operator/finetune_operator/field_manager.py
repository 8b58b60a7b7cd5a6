"""The name under which an installation writes, and whose name an object bears. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "finetune-operator."


def field_manager(namespace: str) -> str:
    """Field manager of the installation whose Lease is in this namespace."""
    return PREFIX + namespace


def written_by(metadata: Mapping[str, Any]) -> str:
    """Namespace of the installation that wrote the object's status last; empty when none has."""
    marks = [
        (str(entry.get("time", "")), str(entry["manager"]).removeprefix(PREFIX))
        for entry in metadata.get("managedFields") or ()
        if entry.get("subresource") == "status" and str(entry.get("manager", "")).startswith(PREFIX)
    ]
    return max(marks)[1] if marks else ""
