"""Which images of the cache go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.cluster.harness.images.retention import Use, superfluous

NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("uses", "want"),
    [
        ([], []),
        ([("a", "x", 1000)], []),  # the youngest stays, however old
        ([("a", "x", 0), ("b", "x", 71)], []),
        ([("a", "x", 0), ("b", "x", 73)], ["b"]),
        ([("a", "x", 0), ("b", "y", 7)], ["b"]),  # its large layers were replaced
        ([("a", "x", 0), ("b", "y", 5)], []),  # a node may still link to them
        ([("a", "x", 7), ("b", "y", 0), ("c", "y", 8)], ["a"]),  # by last use, not by order
    ],
)
def test_superfluous(uses: list[tuple[str, str, float]], want: list[str]) -> None:
    """Each case: key, large layers, hours since it was asked for."""
    given = [Use(key, layers, NOW - timedelta(hours=hours)) for key, layers, hours in uses]
    assert [use.key for use in superfluous(given, NOW)] == want
