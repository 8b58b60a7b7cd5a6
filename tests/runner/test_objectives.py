"""dpo and kto on a tiny Llama: they learn what is preferred, resume bitwise, depend on no setting of the hardware."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainResult
from finetune_runner.errors import StageError
from finetune_runner.training.objectives.dpo import pair_losses
from finetune_runner.training.objectives.kto import class_weights, judged_losses, partners, ranking_accuracy
from tests.runner.preferences import judged, pairs, preference_world
from tests.runner.test_train import checkpoints, run, steps, stop_after
from tests.runner.tiny import World

OBJECTIVES = {"dpo": pairs, "kto": judged, "kto of pairs": pairs}


def world_of(folder: Path, model: Path, name: str, **more: Any) -> World:
    return preference_world(folder, model, name.split()[0], OBJECTIVES[name], **more)


# -- the losses, by their papers' formulas --


@pytest.mark.parametrize(
    ("margin", "beta", "loss"),
    [(0.0, 0.1, math.log(2)), (10.0, 0.1, math.log1p(math.exp(-1))), (-10.0, 0.5, math.log1p(math.exp(5)))],
)
def test_dpo_is_minus_log_sigmoid_of_the_scaled_margin(margin: float, beta: float, loss: float) -> None:
    import torch

    assert pair_losses(torch.tensor([margin]), beta).item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    ("gain", "wanted", "point", "weights", "loss"),
    [
        (0.0, True, 0.0, (1.0, 1.0), 0.5),
        (10.0, True, 0.0, (1.0, 1.0), 1 - 1 / (1 + math.exp(-1))),
        (10.0, False, 0.0, (1.0, 1.0), 1 - 1 / (1 + math.exp(1))),
        (10.0, False, 10.0, (1.0, 1.0), 0.5),  # no more than the model moved at all
        (0.0, True, 0.0, (3.0, 1.0), 1.5),
    ],
)
def test_kto_measures_gains_from_a_common_point(
    gain: float, wanted: bool, point: float, weights: tuple[float, float], loss: float
) -> None:
    import torch

    found = judged_losses(torch.tensor([gain]), torch.tensor([wanted]), point, 0.1, weights)
    assert found.item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("wanted", "unwanted", "weights"), [(5, 5, (1, 1)), (30, 10, (1, 3)), (1, 4, (4, 1))])
def test_the_smaller_class_weighs_as_much_as_the_larger(wanted: int, unwanted: int, weights: Any) -> None:
    assert class_weights(wanted, unwanted) == weights


@pytest.mark.parametrize(
    ("gains", "wanted", "accuracy"),
    [
        ([2.0, 1.0, 0.0, -1.0], [True, True, False, False], 1.0),
        ([2.0, 0.5, 1.0, -1.0], [True, True, False, False], 0.75),
        ([1.0, 1.0], [True, False], 0.5),
        ([1.0, 2.0], [True, True], 0.5),
    ],
)
def test_the_accuracy_of_unpaired_answers_is_that_of_random_pairs(
    gains: list[float], wanted: list[bool], accuracy: float
) -> None:
    import torch

    assert ranking_accuracy(torch.tensor(gains), torch.tensor(wanted)) == accuracy


@pytest.mark.parametrize("counts", [(4, 0), (0, 4)])
def test_one_class_alone_is_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(StageError, match="needs wanted and unwanted answers") as refused:
        class_weights(*counts)
    assert refused.value.exit_code == ExitCode.INVALID_DATA


def test_an_unrelated_answer_comes_from_another_prompt() -> None:
    prompts = ["a", "a", "b", "c", "c", "c"]
    found = partners(prompts, 7)
    assert all(prompts[other] != prompts[row] for row, other in enumerate(found))
    assert found == partners(prompts, 7)
    assert list(partners(["a", "a"], 7)) == [0, 1], "there is no other prompt"


# -- training --


@pytest.fixture(scope="module", params=list(OBJECTIVES))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> tuple[str, World, TrainResult]:
    world = world_of(tmp_path_factory.mktemp("objective"), tiny_model, request.param)
    return request.param, world, run(world.context("train"))


def test_what_is_preferred_is_learned(trained: tuple[str, World, TrainResult]) -> None:
    name, world, result = trained
    history = json.loads((checkpoints(world).parent / "history.json").read_text())
    # At the start nothing has gained; rows judged one by one are weighed by their class.
    start = {"dpo": math.log(2), "kto of pairs": 0.5}
    assert history[0]["validation_loss"] == pytest.approx(start.get(name, 0.5), abs=1e-6 if name in start else 0.15)
    rewards = {measure: value for measure, value in history[0]["measures"].items() if measure.startswith("reward")}
    assert rewards == pytest.approx({"rewardAccuracy": 0 if name == "dpo" else 0.5, "rewardMargin": 0}, abs=1e-6)
    assert result.reward_accuracy is not None
    assert result.reward_accuracy > 0.9
    assert result.reward_margin is not None
    assert result.reward_margin > 0.1
    assert result.best_validation_loss < 0.9 * result.initial_validation_loss


def test_a_stopped_run_resumes_into_the_very_same_adapter(
    trained: tuple[str, World, TrainResult], tmp_path: Path, tiny_model: Path
) -> None:
    name, _, undisturbed = trained
    world = world_of(tmp_path, tiny_model, name)
    with pytest.raises(StageError, match="saved a checkpoint at step"):
        run(stop_after(world, 10))
    assert 0 < max(steps(world)) < 24
    resumed = run(world.context("train"))
    assert resumed.checkpoint_digest == undisturbed.checkpoint_digest
    assert resumed.best_validation_loss == undisturbed.best_validation_loss


def test_a_lost_reference_is_asked_again_of_the_base(
    trained: tuple[str, World, TrainResult], tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, _, undisturbed = trained
    world = world_of(tmp_path, tiny_model, name)
    with pytest.raises(StageError, match="saved a checkpoint at step"):
        run(stop_after(world, 10))
    (reference,) = checkpoints(world).parent.glob("reference-*.safetensors")
    reference.write_bytes(reference.read_bytes()[:-8] + b"\0" * 8)
    with caplog.at_level(logging.WARNING):
        resumed = run(world.context("train"))
    assert "is not used" in caplog.text
    assert resumed.checkpoint_digest == undisturbed.checkpoint_digest


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_how_a_step_is_computed_does_not_change_what_is_learned(name: str, tmp_path: Path, tiny_model: Path) -> None:
    few = {"total_steps": 4, "eval_steps": 4}
    reference = run(world_of(tmp_path / "a", tiny_model, name, **few).context("train"))
    plan = {"micro_batch_size": 2, "gradient_accumulation": 4, "gradient_checkpointing": True}
    other = run(world_of(tmp_path / "b", tiny_model, name, **few, **plan).context("train"))
    assert other.best_validation_loss == pytest.approx(reference.best_validation_loss, rel=1e-4)
    assert other.reward_margin == pytest.approx(reference.reward_margin, rel=1e-3)


def test_two_processes_learn_what_one_learns(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"total_steps": 3, "eval_steps": 3}
    alone = run(world_of(tmp_path / "a", tiny_model, "kto", **few).context("train"))
    pair = world_of(tmp_path / "b", tiny_model, "kto", **few, strategy="ddp", micro_batch_size=2)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    monkeypatch.setenv("FINETUNE_SCRATCH", str(pair.folder / "scratch"))
    both = run(pair.context("train"))
    assert both.best_validation_loss == pytest.approx(alone.best_validation_loss, rel=1e-5)
