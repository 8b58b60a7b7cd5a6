"""Memory of stage prepare does not grow with the rows: the benchmark at two small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prepare_memory import Written, measure, rows_with_duplicates

SMALL_MEGABYTES, LARGE_MEGABYTES = 5, 12
ALLOWED_GROWTH_MIB = 30
"""Bounded caches fill up on the way (12 MiB measured). Rows as objects with their shingles would add some 90 MiB."""


@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, tiny_model: Path) -> None:
    peaks = []
    for megabytes in (SMALL_MEGABYTES, LARGE_MEGABYTES):
        folder = tmp_path / str(megabytes)
        folder.mkdir()
        result = measure(folder, megabytes, tiny_model)
        assert result["exactDuplicates"]["found"] == result["exactDuplicates"]["planted"] > 0
        assert result["nearDuplicates"]["found"] == result["nearDuplicates"]["planted"] > 0
        peaks.append(result["peakMemoryMib"])
    assert peaks[1] - peaks[0] < ALLOWED_GROWTH_MIB, peaks


def test_planted_rows_are_the_same_every_time() -> None:
    written = Written()
    rows = rows_with_duplicates(1, written)
    first = [next(rows) for _ in range(500)]
    again = rows_with_duplicates(1, Written())
    assert [next(again) for _ in range(500)] == first
    assert len({str(row) for row in first}) == 500 - written.exact
