"""Percent of a stage over its phases: each has its part, and what is told never goes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.stages import Progress
from finetune_runner.errors import StageError
from finetune_runner.evaluation.phases import Phases
from tests.runner.tiny import make_world


def test_each_phase_has_its_part_of_the_span(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model)
    said: list[Progress] = []
    phases = Phases(world.open(world.task("baseline"), said), [4, 1, 0, 3], (20, 100))
    phases.loading("loading")
    for phase, total, steps in (
        ("answers", 10, (5, 10)),
        ("scores", 3, (1, 9)),
        ("nothing", 0, (0,)),
        ("more", 2, (1, 2)),
    ):
        hear = phases.begin(phase, total)
        for done in steps:
            hear(done)
    hear = phases.begin("one too many", 4)
    hear(1)
    assert [(one.phase, one.percent, one.step, one.total_steps) for one in said] == [
        ("loading", 20, 0, 0),
        ("answers", 40, 5, 10),
        ("answers", 60, 10, 10),
        ("scores", 63.3, 1, 3),
        ("scores", 70, 3, 3),
        ("nothing", 70, 0, 0),
        ("more", 85, 1, 2),
        ("more", 100, 2, 2),
        ("one too many", 100, 1, 4),
    ]


def test_a_stage_that_shall_stop_ends_at_the_next_batch(tmp_path: Path, tiny_model: Path) -> None:
    context = make_world(tmp_path, tiny_model).context("baseline")
    hear = Phases(context, [1]).begin("answers", 2)
    hear(1)
    context.stop.set()
    with pytest.raises(StageError, match="asked to stop"):
        hear(2)
