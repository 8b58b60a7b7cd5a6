"""What a tracker is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

End = Literal["Finished", "Continues", "Failed"]
"""How a stage leaves the tracked run: done, another stage or attempt goes on, or failed."""


@dataclass(frozen=True)
class RunFacts:
    """Which run is tracked, and what it was started with."""

    key: str
    """`uid/run`: the same over all attempts and stages, so that they share one tracked run."""
    name: str
    experiment: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """Numbers of one optimiser step, by name, for example `train/loss`; all finite."""

    step: int
    values: Mapping[str, float]
    at_s: float
    """Seconds since 1970."""


class Tracker(Protocol):
    """A started connection. Every method may raise: its lane tries again later, or gives up."""

    def log(self, entries: Sequence[Entry]) -> None:
        """Send entries, oldest first. Sending some of them twice must do no harm."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def close(self, end: End) -> None:
        """Say how the stage ended, and free everything."""
