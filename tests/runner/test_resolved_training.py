"""The rate in force is the plan's: in the optimiser, in the identity of a training, and in what trackers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.job.training import Training
from finetune_runner.tracking.facts import run_facts
from finetune_runner.training.checkpoint import training_digest
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.optimizer import new_optimizer
from tests.runner.tiny import World, make_world


def world(folder: Path, model: Path, training: dict[str, Any], **plan: Any) -> World:
    spec = {"method": {"type": "lora", "objective": "dpo"}, "training": training}
    return make_world(folder, model, spec=spec, **plan)


def test_settings_without_a_rate_are_refused_by_the_optimiser() -> None:
    with pytest.raises(ValueError, match="have no learning rate"):
        new_optimizer(torch.nn.Linear(2, 2), Training(), Horizon(10), 0)


def test_who_said_the_rate_does_not_matter_and_the_rate_does(tmp_path: Path, tiny_model: Path) -> None:
    def digest(name: str, training: dict[str, Any], **plan: Any) -> str:
        return training_digest(world(tmp_path / name, tiny_model, training, **plan).task("train"))

    said = digest("a", {"learningRate": 5e-6, "epochs": 1})
    assert digest("b", {}) == said, "a plan of an earlier version says nothing"
    assert digest("c", {}, learning_rate=5e-6) == said
    assert digest("d", {}, learning_rate=7e-6) != said
    assert digest("e", {"learningRate": 7e-6, "epochs": 1}) != said


def test_trackers_are_told_the_rate_in_force(tmp_path: Path, tiny_model: Path) -> None:
    context = world(tmp_path, tiny_model, {}, learning_rate=6e-6).context("train")
    params = run_facts(context).params
    assert params["training.learningRate"] == "6e-06"
    assert params["training.epochs"] == "1.0"
