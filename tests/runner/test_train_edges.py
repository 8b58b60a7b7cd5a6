"""Training where it is about to go wrong: the first and the last step, tiny data, no data, budgets, broken bases."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import StageResults
from finetune_runner.data.rows import Row, make_row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.serving import fetch_adapter
from finetune_runner.training import evaluating, proof, saving, stopping, validating
from finetune_runner.training.divergence import DivergenceGuard
from finetune_runner.training.loop import Loop
from finetune_runner.training.strategies.base import Engine
from tests.runner.preferences import with_rows
from tests.runner.test_train import checkpoints, curve, run, steps, stop_after
from tests.runner.tiny import World, make_world, tickets

TRAINING = {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128, "earlyStopping": {"patience": 0}}


def small(folder: Path, model: Path, training: dict[str, Any] | None = None, **more: Any) -> World:
    """Four steps, evaluated every two, over few rows; no row is answered."""
    spec = {"training": {**TRAINING, "validationSamples": 0, **(training or {})}}
    return make_world(
        folder, model, spec=spec, **{"train": 24, "validation": 4, "total_steps": 4, "eval_steps": 2, **more}
    )


def unlearnable(count: int) -> list[Row]:
    """Texts of one token: nothing predicts it."""
    del count
    return [make_row([{"role": "assistant", "content": ""}])]


# -- the first step --


def test_a_stop_before_the_first_step_ends_at_once_and_costs_nothing(tmp_path: Path, tiny_model: Path) -> None:
    """A first evaluation may outlast a pod's grace period, and there is nothing yet to save."""
    world = small(tmp_path, tiny_model)
    with pytest.raises(StageError, match="asked to stop before its first step") as stopped:
        run(stop_after(world, 0, "validating the untuned model"))
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    assert not checkpoints(world).exists()
    result = run(world.context("train"))
    assert (result.resumed_from_step, result.steps) == (0, 4)


def test_the_training_loss_of_an_evaluation_is_that_of_the_steps_since_the_one_before(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps, evaluated after six and at the end: more steps than a tenth of the run, and then only one."""
    seen: list[float] = []
    observe = DivergenceGuard.observe
    monkeypatch.setattr(
        DivergenceGuard, "observe", lambda self, step, loss: (seen.append(loss), observe(self, step, loss))
    )
    world = small(tmp_path, tiny_model, total_steps=7, eval_steps=6)
    run(world.context("train"))
    assert [point["train_loss"] for point in curve(world)[1:]] == pytest.approx([sum(seen[:6]) / 6, seen[6]])


def test_early_stopping_remembers_the_untuned_model_when_it_is_resumed(tmp_path: Path, tiny_model: Path) -> None:
    """Stopped before its first evaluation: that one is compared with the model as it was before step 1."""
    rule = {"learningRate": 1e-7, "earlyStopping": {"patience": 1, "minimumDelta": 0.5}}
    through, world = (small(tmp_path / name, tiny_model, rule, total_steps=12, eval_steps=4) for name in "ab")
    undisturbed = run(through.context("train"))
    assert (undisturbed.stopped_by, undisturbed.steps) == ("earlyStopping", 4)
    with pytest.raises(StageError, match=r"saved a checkpoint at step [123]"):
        run(stop_after(world, 1))
    assert run(world.context("train")).steps == 4


# -- the last step --


def test_a_run_that_was_stopped_while_its_last_step_was_evaluated_ends_as_if_not(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = small(tmp_path / "a", tiny_model)
    undisturbed = run(through.context("train"))
    world = small(tmp_path / "b", tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "SLOW_EVALUATION_S", -1.0)
        with pytest.raises(StageError, match="saved a checkpoint at step 4"):
            run(stop_after(world, 4))
    resumed = run(world.context("train"))
    assert (resumed.resumed_from_step, resumed.steps, resumed.stopped_by) == (4, 4, "completed")
    assert resumed.checkpoint_digest == undisturbed.checkpoint_digest
    assert curve(world) == curve(through)
    again = run(world.context("train"))
    assert (again.resumed_from_step, again.checkpoint_digest) == (4, undisturbed.checkpoint_digest)
    assert again.train_loss == undisturbed.train_loss


def test_a_run_resumes_beyond_its_planned_end(tmp_path: Path, tiny_model: Path) -> None:
    """It was extended before it was stopped: the steps and rates that follow are those of the undisturbed run."""
    rule = {"scheduler": "wsd", "maxSteps": 4, "extendTo": 8, "epochs": 100}
    through, world = (small(tmp_path / name, tiny_model, rule, extend_to=8) for name in "ab")
    undisturbed = run(through.context("train"))
    assert (undisturbed.steps, undisturbed.total_steps) == (8, 8), "its loss falls all the way"
    with pytest.raises(StageError, match=r"saved a checkpoint at step [567]"):
        run(stop_after(world, 5))
    resumed = run(world.context("train"))
    assert resumed.steps == 8
    assert resumed.checkpoint_digest == undisturbed.checkpoint_digest
    assert curve(world) == curve(through)


# -- the budget --


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every evaluation takes so long."""
    ticks = itertools.count()
    monkeypatch.setattr(evaluating, "time", SimpleNamespace(monotonic=lambda: next(ticks) * seconds))


def test_a_budget_that_the_first_evaluation_used_up_leaves_one_step_to_publish(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 5000.0)
    result = run(small(tmp_path, tiny_model, time_budget_seconds=4000).context("train"))
    assert (result.steps, result.stopped_by, result.best_step) == (1, "budget", 1)


def test_a_budget_that_an_evaluation_used_up_ends_training_at_the_next_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 5000.0)
    result = run(small(tmp_path, tiny_model, time_budget_seconds=9000).context("train"))
    assert (result.steps, result.stopped_by) == (3, "budget")


def test_a_budget_that_ends_with_the_last_step_is_a_completed_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 5000.0)
    result = run(small(tmp_path, tiny_model, total_steps=1, time_budget_seconds=4000).context("train"))
    assert (result.steps, result.stopped_by) == (1, "completed")


# -- tiny data --


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_a_batch_are_trained_on_again_and_again(rows: int, tmp_path: Path, tiny_model: Path) -> None:
    result = run(small(tmp_path, tiny_model, train=rows, validation=1).context("train"))
    assert result.steps == 4
    assert result.train_loss < result.initial_validation_loss


def test_rows_that_are_all_too_long_are_cut_and_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    world = small(tmp_path, tiny_model, {"maxLength": 16})
    assert run(world.context("train")).steps == 4


def test_rows_without_anything_to_learn_change_nothing(tmp_path: Path, tiny_model: Path) -> None:
    """With one example per step a step of such a row would move nothing, and be taken for a broken model."""
    one = {"globalBatchSize": 1}
    plan = {"micro_batch_size": 1, "gradient_accumulation": 1}
    train, validation = tickets(3, 1), tickets(2, 2)
    pure, mixed = (
        with_rows(small(tmp_path / name, tiny_model, one, **plan), rows, validation)
        for name, rows in (("pure", train), ("mixed", [*train, *unlearnable(1)]))
    )
    assert run(mixed.context("train")).train_loss < run(pure.context("train")).initial_validation_loss
    assert all(point["train_loss"] > 0 for point in curve(mixed) if point["step"])


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ("unlearnable", "tickets", "data.train: the only row has no labelled token"),
        ("tickets", "unlearnable", "data.validation: the only row has no labelled token"),
        ("tickets", "none", "data.validation: no rows"),
        ("none", "tickets", "data.train: no rows"),
    ],
)
def test_nothing_to_learn_or_to_measure_names_the_field(
    train: str, validation: str, words: str, tmp_path: Path, tiny_model: Path
) -> None:
    rows = {"unlearnable": unlearnable(1), "tickets": tickets(8, 1), "none": []}
    world = with_rows(small(tmp_path, tiny_model), rows[train], rows[validation])
    with pytest.raises(StageError) as refused:
        run(world.context("train"))
    assert words in refused.value.message
    assert refused.value.exit_code == ExitCode.INVALID_DATA
    assert "raise" in refused.value.hint


# -- no numbers --


def test_a_base_whose_loss_is_no_number_is_refused_before_training(tmp_path: Path, tiny_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="loss of the base model is nan before anything was trained") as refused:
        run(small(tmp_path, broken).context("train"))
    assert refused.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert "model.dtype: fp32" in refused.value.hint


def test_a_validation_loss_that_is_no_number_is_told_with_its_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may break in the very step that is evaluated: its training loss was still a number."""
    world = small(tmp_path, tiny_model)
    measure = validating.measure

    def broken(session: Any, learner: Any) -> tuple[float, dict[str, float]]:
        loss, measures = measure(session, learner)
        return (math.nan if session.state.step == 2 else loss), measures

    monkeypatch.setattr(evaluating, "measure", broken)
    with pytest.raises(StageError, match="the validation loss became nan at step 2") as diverged:
        run(world.context("train"))
    assert diverged.value.exit_code == ExitCode.TRAINING_DIVERGED
    assert "nothing is worth keeping" in diverged.value.hint
    assert not checkpoints(world).exists(), "what diverged is no checkpoint"


def test_a_gradient_that_is_no_number_is_told_at_the_step_after(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small(tmp_path, tiny_model)
    before = Loop.before_step

    def broken(self: Loop, step: int) -> None:
        before(self, step)
        if step == 3:
            next(iter(self._learner.engine.parameters().values())).data[0, 0] = math.nan

    monkeypatch.setattr(Loop, "before_step", broken)
    with pytest.raises(StageError, match="the training loss became nan at step 3") as diverged:
        run(world.context("train"))
    assert diverged.value.exit_code == ExitCode.TRAINING_DIVERGED
    assert "the best checkpoint so far is step 2" in diverged.value.hint


def test_weights_that_are_no_numbers_are_not_saved(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step was one; the next attempt would have resumed from a checkpoint that cannot be."""
    step, done = Engine.step, itertools.count(1)

    def broken(self: Engine) -> None:
        if next(done) == 3:
            gradient = next(iter(self.parameters().values())).grad
            assert gradient is not None
            gradient[0, 0] = math.nan
        step(self)

    world = small(tmp_path, tiny_model, {"checkpoints": {"everySteps": 1}})
    monkeypatch.setattr(Engine, "step", broken)
    with pytest.raises(StageError, match="adapter matrices hold values that are no numbers after step 3") as diverged:
        run(world.context("train"))
    assert diverged.value.exit_code == ExitCode.TRAINING_DIVERGED
    assert steps(world) == [1, 2]


# -- what is kept --


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensor: tensor * 0, r"not saved whole: 1 of 14 lora_B are zero"),
        (lambda tensor: tensor[:1], r"not saved whole"),  # of a shape that would be spread over the whole
    ],
    ids=["zero", "a slice"],
)
def test_an_adapter_that_was_not_gathered_whole_is_not_called_trained(
    damage: Any, words: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix that hardly matters to the loss: it is the file itself that is looked at."""
    gather = Engine.adapter

    def damaged(self: Engine) -> Any:
        found = gather(self)
        name = next(name for name in found if "lora_B" in name)
        return {**found, name: damage(found[name])}

    world = small(tmp_path, tiny_model)
    monkeypatch.setattr(proof, "TOLERANCE", {"cpu": 10.0})
    monkeypatch.setattr(saving, "_upload", with_patch(saving._upload, monkeypatch, Engine, "adapter", damaged))
    with pytest.raises(StageError, match="the kept adapter") as refused:
        run(world.context("train"))
    assert refused.value.exit_code == ExitCode.INTERNAL
    assert re.search(words, refused.value.message)


def with_patch(function: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any) -> Any:
    """The function, which sees another attribute of `owner` while it runs."""

    def patched(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            return function(*args)

    return patched


@pytest.mark.parametrize(("off", "refused"), [(0.0, False), (5e-5, False), (1e-3, True)])
def test_what_an_earlier_attempt_measured_may_differ_by_the_rounding_of_another_machine(
    off: float, refused: bool, tmp_path: Path, tiny_model: Path
) -> None:
    world = small(tmp_path, tiny_model)
    first = run(world.context("train"))
    manifest = checkpoints(world) / f"step-{first.steps}" / "checkpoint.json"
    facts = json.loads(manifest.read_text())
    facts["state"]["best_validation_loss"] *= 1 + off
    manifest.write_text(json.dumps(facts))
    if not refused:
        assert run(world.context("train")).checkpoint_digest == first.checkpoint_digest
        return
    with pytest.raises(StageError, match="after reloading"):
        run(world.context("train"))


def test_what_is_judged_is_what_train_saved(tmp_path: Path, tiny_model: Path) -> None:
    """With another alpha the same weights are another model."""
    world = small(tmp_path, tiny_model, total_steps=1, eval_steps=1)
    result = run(world.context("train"))
    context = world.context("evaluate", results=StageResults(prepare=world.prepare, train=result))
    folder = checkpoints(world) / f"step-{result.best_step}"
    assert fetch_adapter(context, tmp_path / "adapter").is_dir()
    for name, change in (
        ("adapter_config.json", (b'"lora_alpha": 16', b'"lora_alpha": 64')),
        ("adapter_model.safetensors", (b"lora_B", b"lora_C")),
        ("checkpoint.json", (b'"files"', b'"file"')),
        ("checkpoint.json", (b'"files": {', b'"files": [')),
    ):
        whole = (folder / name).read_bytes()
        assert change[0] in whole
        (folder / name).write_bytes(whole.replace(*change))
        with pytest.raises(StageError, match=f"{name} is not the") as refused:
            fetch_adapter(context, tmp_path / "adapter")
        assert refused.value.exit_code == ExitCode.INVALID_DATA
        (folder / name).write_bytes(whole)
