"""Which images of the cache go: gigabytes stay behind with every change of a lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

UNUSED_AFTER = timedelta(days=3)
IN_USE_FOR = timedelta(hours=6)
"""A node links to the layers of its images, and no test's node lives so long; and two checkouts may take turns."""


@dataclass(frozen=True)
class Use:
    """An image of one target in the cache.

    Args:
        key: of its sources.
        dependencies: the identity of the image with its large layers.
        last: when it was asked for.
    """

    key: str
    dependencies: str
    last: datetime


def superfluous(uses: Sequence[Use], now: datetime) -> list[Use]:
    """Those to remove: not used for days, or with large layers that younger ones have replaced. Never the youngest."""
    by_age = sorted(uses, key=lambda use: use.last, reverse=True)
    return [
        use
        for use in by_age[1:]
        if now - use.last > (UNUSED_AFTER if use.dependencies == by_age[0].dependencies else IN_USE_FOR)
    ]
