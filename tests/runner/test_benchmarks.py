"""The benchmark of training calls the engine as it is today; its figures are no matter of tests."""

from __future__ import annotations

import math

import pytest

from benchmarks import training_throughput


@pytest.mark.parametrize("packed", [False, True])
def test_our_side_of_the_throughput_benchmark_trains(*, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_throughput, "VOCABULARY", 64)
    monkeypatch.setattr(training_throughput, "HIDDEN", 16)
    rows = training_throughput.make_rows(6)
    found = training_throughput.run_ours(rows, 2, packed=packed)
    assert len(found["losses"]) == 3
    assert all(0 < loss < 2 * math.log(64) for loss in found["losses"])
    assert any(found["gradient"])
