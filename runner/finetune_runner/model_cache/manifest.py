"""The manifest beside a model that is whole: without it a model is not there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "finetune-cache.manifest"
"""Not *.json: it is no part of the model."""


@dataclass(frozen=True)
class Manifest:
    """What is written beside a model that is whole."""

    source: str
    digest: str
    filling: str
    """Different for every time it was filled."""
    files: dict[str, dict[str, Any]]
    """Bytes and sha256 by name."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(facts["bytes"]) for facts in self.files.values())

    def write(self, folder: Path) -> Path:
        """Write it into a folder; returns its path."""
        path = folder / MANIFEST
        path.write_text(json.dumps(asdict(self), indent=1))
        return path


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None when there is none, or no whole one."""
    try:
        read = json.loads((folder / MANIFEST).read_bytes())
        return Manifest(**read) if {"bytes", "sha256"} <= set.intersection(*map(set, read["files"].values())) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
