"""What the curves of a training say: each signal with a curve that trips it and one that nearly does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.stages import TimeShares, TrainResult
from finetune_runner.training.signals import Curve, findings

Point = tuple[int, float, float | None]


def curve(points: list[Point], stopped_by: str = "completed", train_loss: float | None = None) -> Curve:
    """(step, validation loss, training loss); the first is before training."""
    history = [{"step": step, "validation_loss": loss, "train_loss": train} for step, loss, train in points]
    best = min(points[1:], key=lambda point: point[1])
    result: dict[str, Any] = {
        "steps": points[-1][0],
        "totalSteps": points[-1][0],
        "bestStep": best[0],
        "stoppedBy": stopped_by,
        "trainLoss": points[-1][2] if train_loss is None else train_loss,
        "initialValidationLoss": points[0][1],
        "bestValidationLoss": best[1],
        "checkpointUri": "",
        "checkpointDigest": "",
        "trainableParameters": 1,
        "adapterBytes": 1,
    }
    return Curve.of(history, TrainResult.from_wire(result))


@pytest.mark.parametrize(("seconds", "told"), [((1300, 1600), True), ((1300, 2000), False), ((590, 10), False)])
def test_evaluations_that_took_most_of_the_time_are_told(seconds: tuple[float, float], told: bool) -> None:
    healthy = CASES[0][1]
    spent = TimeShares(validation=seconds[0], compute=seconds[1])
    of_a_run = replace(healthy, result=healthy.result.model_copy(update={"seconds": spent}))
    messages = [finding.message for finding in findings(of_a_run)]
    assert [message.split(",")[0] for message in messages] == (
        ["evaluations took 44.8 % of the training's time"] if told else []
    )


FLAT: list[Point] = [(0, 2.0, None), (10, 1.5, 1.6), (20, 1.45, 1.4), (30, 1.44, 1.39), (40, 1.44, 1.38)]

CASES: list[tuple[str, Curve, list[str]]] = [
    ("healthy", curve([(0, 2.0, None), (10, 1.6, 1.7), (20, 1.4, 1.5), (30, 1.35, 1.4), (40, 1.345, 1.38)]), []),
    ("never below the start", curve([(0, 2.0, None), (10, 2.0, 2.1), (20, 2.1, 2.0), (30, 2.05, 2.05)]), ["learning"]),
    ("just below the start", curve([(0, 2.0, None), (10, 1.999, 2.1), (20, 2.02, 2.1), (30, 2.0, 2.2)]), ["plateau"]),
    (
        "validation rises 5.1 %, training falls",
        curve([(0, 2.0, None), (10, 1.5, 1.6), (20, 1.0, 1.2), (30, 1.02, 0.8), (40, 1.051, 0.5)]),
        ["overfitting"],
    ),
    (
        "validation rises 4.9 %",
        curve([(0, 2.0, None), (10, 1.5, 1.6), (20, 1.0, 1.2), (30, 1.02, 0.8), (40, 1.049, 0.5)]),
        [],
    ),
    (
        "both rise: a learning rate too high, not over-fitting",
        curve([(0, 2.0, None), (10, 1.5, 1.6), (20, 1.0, 1.2), (30, 1.2, 1.3), (40, 1.3, 1.4)]),
        [],
    ),
    (
        "still falls 1 % at the end",
        curve([(0, 2.0, None), (10, 1.6, 1.7), (20, 1.4, 1.5), (30, 1.2, 1.3), (40, 1.18, 1.2)]),
        ["underfitting"],
    ),
    (
        "falls by less than 1 % at the end",
        curve([(0, 2.0, None), (10, 1.6, 1.7), (20, 1.4, 1.5), (30, 1.2, 1.3), (40, 1.189, 1.2)]),
        [],
    ),
    (
        "still falls, but early stopping ended it",
        curve([(0, 2.0, None), (10, 1.6, 1.7), (20, 1.4, 1.5), (30, 1.2, 1.3), (40, 1.1, 1.2)], "earlyStopping"),
        [],
    ),
    ("two evaluations are no trend", curve([(0, 2.0, None), (10, 1.6, 1.7), (20, 1.2, 1.5)]), []),
    (
        "a floor for more than half of the steps",
        curve([(0, 2.0, None), (10, 1.01, 1.7), (20, 1.0, 1.01), (30, 1.0, 1.0), (40, 1.0, 1.0)]),
        ["plateau"],
    ),
    ("a floor for half of the steps", curve(FLAT), []),
    (
        "known by heart",
        curve([(0, 2.0, None), (10, 0.5, 0.6), (20, 0.408, 0.3), (30, 0.405, 0.19)], train_loss=0.19),
        ["memorisation"],
    ),
    (
        "low on both: an easy task",
        curve([(0, 2.0, None), (10, 0.5, 0.6), (20, 0.381, 0.3), (30, 0.38, 0.19)], train_loss=0.19),
        [],
    ),
    (
        "not quite low",
        curve([(0, 2.0, None), (10, 0.6, 0.6), (20, 0.505, 0.3), (30, 0.5, 0.2)], train_loss=0.2),
        [],
    ),
]


@pytest.mark.parametrize(("found", "checks"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_curve_says(found: Curve, checks: list[str]) -> None:
    assert [finding.check for finding in findings(found)] == checks


def test_the_numbers_and_the_step_are_in_the_words() -> None:
    (rise,) = findings(CASES[3][1])
    assert rise.severity == "warning"
    for words in ("after step 20", "from 1 to 1.051", "step 40, 5.1 %", "from 1.2 to 0.5", "training.epochs"):
        assert words in rise.message
    (falls,) = findings(CASES[6][1])
    for words in ("1.2 at step 30", "1.18 at step 40", "training.extendTo: 80", "training.maxSteps: 40"):
        assert words in falls.message


def test_a_training_cut_by_its_budget_is_told_what_to_raise() -> None:
    points: list[Point] = [(0, 2.0, None), (10, 1.6, 1.7), (20, 1.4, 1.5), (30, 1.2, 1.3)]
    (cut,) = findings(curve(points, "budget"))
    assert "compute.maxCost" in cut.message


def test_warnings_come_first_and_fit_a_report() -> None:
    both = curve([(0, 9.0, None), (10, 0.1, 0.19), (40, 0.2, 0.05), (50, 0.3, 0.04)], train_loss=0.04)
    found = findings(both)
    assert [finding.severity for finding in found] == ["warning", "warning", "info"]
    assert all(len(finding.message) <= 512 for finding in found)
