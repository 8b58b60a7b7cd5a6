"""What a source has: the answer of every module of `data/sources` before anything is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Listing:
    """A file, or the files of a folder."""

    names: list[str]
    """Paths below the source; of a single file its name."""
    copy: Callable[[Sequence[str]], dict[str, Path]]
    """Brings some of these files here: paths on this machine by name. Raises StageError."""
    single: bool = False
    """Whether the source is a file."""
    revision: str = ""
    """Commit of a data set of the hub."""
    card: Callable[[], str] = lambda: ""
    """Text of the card of a data set of the hub. Raises StageError."""
