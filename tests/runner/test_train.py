"""Stage train on a tiny Llama: resuming, broken checkpoints, budgets, divergence, QLoRA, packing, several processes."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Progress, StageTask, TrainResult
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.stages import train
from finetune_runner.training import stopping
from finetune_runner.training.checkpoint import CheckpointStore, TrainingState, sha256_of
from finetune_runner.training.distributed import World as Ranks
from finetune_runner.training.loop import Loop
from finetune_runner.training.proof import prove_kept
from tests.runner.tiny import World, make_world

DROPOUT = {"method": {"type": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}}


def run(context: StageContext) -> TrainResult:
    results, _ = train.run(context)
    assert results.train is not None
    return results.train


def checkpoints(world: World) -> Path:
    return world.folder / "store/team/triage/runs/uid-1/1/train/checkpoints"


def steps(world: World) -> list[int]:
    return CheckpointStore(world.context("train")).steps()


def stop_after(world: World, step: int, phase: str = "") -> StageContext:
    """A context whose stop is asked for once training has said that it is at `step`, or in a phase of it."""
    said: list[Progress] = []
    context = world.open(world.task("train"), said)

    class Asked(type(context.stop)):  # type: ignore[misc]
        def is_set(self) -> bool:
            return any(progress.step >= step and phase in (progress.phase or "") for progress in said)

    object.__setattr__(context, "stop", Asked())
    return context


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[World, TrainResult]:
    """A run of twelve steps with dropout, evaluated and saved every four."""
    world = make_world(tmp_path_factory.mktemp("undisturbed"), tiny_model, spec=DROPOUT)
    return world, run(world.context("train"))


def test_training_lowers_the_validation_loss_and_reports_what_it_did(undisturbed: tuple[World, TrainResult]) -> None:
    world, result = undisturbed
    assert result.best_validation_loss < result.initial_validation_loss - 1
    assert (result.steps, result.total_steps, result.stopped_by) == (12, 12, "completed")
    assert result.tokens_per_second > 0
    assert result.peak_memory_bytes > 10_000_000
    adapter = checkpoints(world) / f"step-{result.best_step}" / "adapter_model.safetensors"
    assert sha256_of(adapter) == result.checkpoint_digest
    assert adapter.stat().st_size == result.adapter_bytes


def test_the_best_and_the_newest_two_checkpoints_are_kept(undisturbed: tuple[World, TrainResult]) -> None:
    world, result = undisturbed
    assert steps(world) == sorted({result.best_step, 8, 12})
    assert not (checkpoints(world) / "step-4" / "adapter_model.safetensors").exists() or result.best_step == 4


def test_the_loss_curve_starts_before_the_first_step(undisturbed: tuple[World, TrainResult]) -> None:
    world, result = undisturbed
    history = json.loads((checkpoints(world).parent / "history.json").read_text())
    assert [point["step"] for point in history] == [0, 4, 8, 12]
    assert history[0]["validation_loss"] == result.initial_validation_loss


def test_a_stopped_run_resumes_into_the_very_same_adapter(
    tmp_path: Path, tiny_model: Path, undisturbed: tuple[World, TrainResult]
) -> None:
    world = make_world(tmp_path, tiny_model, spec=DROPOUT)
    with pytest.raises(StageError, match="saved a checkpoint at step") as stopped:
        run(stop_after(world, 4))
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    stopped_at = max(steps(world))
    assert 0 < stopped_at < 12
    resumed = run(world.context("train"))
    assert resumed.resumed_from_step == stopped_at
    assert resumed.checkpoint_digest == undisturbed[1].checkpoint_digest
    assert resumed.best_validation_loss == undisturbed[1].best_validation_loss


def curve(world: World) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads((checkpoints(world).parent / "history.json").read_text())
    return points


def test_a_stop_during_a_slow_evaluation_loses_no_step(
    tmp_path: Path, tiny_model: Path, undisturbed: tuple[World, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, tiny_model, spec=DROPOUT)
    monkeypatch.setattr(stopping, "SLOW_EVALUATION_S", -1.0)
    with pytest.raises(StageError, match="saved a checkpoint at step 4") as stopped:
        run(stop_after(world, 4))
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    assert steps(world) == [4]
    resumed = run(world.context("train"))
    assert resumed.resumed_from_step == 4
    assert resumed.checkpoint_digest == undisturbed[1].checkpoint_digest
    assert curve(world) == curve(undisturbed[0])


def test_a_stop_at_a_step_that_is_due_for_evaluation_evaluates_it_later(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, stopped = (
        make_world(tmp_path / name, tiny_model, spec=DROPOUT, total_steps=2, eval_steps=1) for name in "ab"
    )
    run(through.context("train"))
    context = stopped.context("train")
    before = Loop.before_step
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "before_step", lambda self, step: (before(self, step), context.stop.set()))
        with pytest.raises(StageError, match="saved a checkpoint at step 1"):
            run(context)
    assert run(stopped.context("train")).resumed_from_step == 1
    assert curve(stopped) == curve(through)
    assert [point["step"] for point in curve(stopped)] == [0, 1, 2]


def test_a_broken_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, tiny_model: Path, undisturbed: tuple[World, TrainResult], caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(tmp_path, tiny_model, spec=DROPOUT)
    run(world.context("train"))
    newest = checkpoints(world) / "step-12" / "optimizer-1-of-1.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    with caplog.at_level(logging.WARNING):
        resumed = run(world.context("train"))
    assert "step-12 is skipped: optimizer-1-of-1.safetensors does not have the recorded sha256" in caplog.text
    assert resumed.resumed_from_step == 8
    assert resumed.checkpoint_digest == undisturbed[1].checkpoint_digest
    # An attempt after it still tells: the state remembers.
    _, findings = train.run(world.context("train"))
    (told,) = (finding for finding in findings if finding.check == "checkpoints")
    assert "step-12: optimizer-1-of-1.safetensors does not have the recorded sha256" in told.message


def test_the_next_best_checkpoint_is_handed_on_where_the_best_one_is_corrupt(
    tmp_path: Path, tiny_model: Path, undisturbed: tuple[World, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, best = make_world(tmp_path, tiny_model, spec=DROPOUT), undisturbed[1].best_step

    def after_harm(*arguments: Any) -> Any:
        path = checkpoints(world) / f"step-{best}" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        return prove_kept(*arguments)

    monkeypatch.setattr("finetune_runner.training.run.prove_kept", after_harm)
    results, findings = train.run(world.context("train"))
    assert results.train is not None
    losses = {point["step"]: point["validation_loss"] for point in curve(world) if point["step"] in steps(world)}
    del losses[best]
    assert results.train.best_step == min(losses, key=lambda step: losses[step])
    assert results.train.best_validation_loss == min(losses.values())
    (told,) = (finding for finding in findings if finding.check == "checkpoints")
    assert f"step-{best}: adapter_model.safetensors does not have the recorded sha256" in told.message
    assert f"step-{results.train.best_step} is handed on" in told.message


def test_a_start_from_the_beginning_beside_a_checkpoint_is_told(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model, total_steps=2, eval_steps=1)
    run(world.context("train"))
    results, findings = train.run(world.with_plan(total_steps=3).context("train"))
    assert results.train is not None
    assert (results.train.resumed_from_step, results.train.steps) == (0, 3)
    (told,) = (finding for finding in findings if finding.check == "checkpoints")
    assert "step-2: it belongs to a training with other data or settings" in told.message


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "checkpoint.json").write_text("{}"), "not a manifest"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "step-12 is skipped"),
        (
            lambda folder: (folder / "checkpoint.json").write_text(
                (folder / "checkpoint.json").read_text().replace('"optimizer-1-of-1.safetensors"', '"../../x"')
            ),
            "is not a file name",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_not_used(
    harm: Any, words: str, tmp_path: Path, undisturbed: tuple[World, TrainResult], caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    original, _ = undisturbed
    shutil.copytree(original.folder / "store", tmp_path / "store")
    world = World(tmp_path, original.model, original.spec, original.plan, original.prepare)
    harm(checkpoints(world) / "step-12")
    with caplog.at_level(logging.WARNING):
        found = CheckpointStore(world.context("train")).newest_verified(tmp_path / "scratch")
    assert words in caplog.text
    assert found is not None
    assert found.step == 8


def test_what_a_newer_runner_adds_to_a_checkpoint_is_passed_over(
    tmp_path: Path, undisturbed: tuple[World, TrainResult]
) -> None:
    import shutil

    original, _ = undisturbed
    shutil.copytree(original.folder / "store", tmp_path / "store")
    world = World(tmp_path, original.model, original.spec, original.plan, original.prepare)
    path = checkpoints(world) / "step-12" / "checkpoint.json"
    manifest = json.loads(path.read_text())
    manifest["state"] |= {"new_since": 1, "history": [point | {"newer": 2} for point in manifest["state"]["history"]]}
    path.write_text(json.dumps(manifest))
    found = CheckpointStore(world.context("train")).newest_verified(tmp_path / "scratch")
    assert found is not None
    assert (found.step, len(found.state.history)) == (12, len(manifest["state"]["history"]))


def test_a_checkpoint_of_other_settings_is_not_resumed(
    tmp_path: Path, undisturbed: tuple[World, TrainResult], caplog: pytest.LogCaptureFixture
) -> None:
    original, _ = undisturbed
    other = original.with_plan(total_steps=99)
    with caplog.at_level(logging.WARNING):
        assert CheckpointStore(other.context("train")).newest_verified(tmp_path) is None
    assert "other data or settings" in caplog.text


def test_newer_checkpoints_that_cannot_be_resumed_from_do_not_cost_the_own_one(
    tmp_path: Path, tiny_model: Path
) -> None:
    world = make_world(tmp_path, tiny_model, total_steps=8, eval_steps=4)
    run(world.context("train"))
    assert steps(world) == [4, 8]
    changed = world.with_plan(total_steps=12)
    with pytest.raises(StageError, match=r"saved a checkpoint at step [123]"):
        run(stop_after(changed, 1))
    assert run(changed.context("train")).resumed_from_step in (1, 2, 3)


def test_another_micro_batch_resumes_the_same_run(undisturbed: tuple[World, TrainResult], tmp_path: Path) -> None:
    other = undisturbed[0].with_plan(micro_batch_size=2, gradient_accumulation=4, gradient_checkpointing=True)
    found = CheckpointStore(other.context("train")).newest_verified(tmp_path)
    assert found is not None
    assert found.step == 12


@pytest.mark.parametrize(
    "plan",
    [
        {"micro_batch_size": 8, "gradient_accumulation": 1},
        {"micro_batch_size": 2, "gradient_accumulation": 4, "gradient_checkpointing": True},
        {"packing": True},
    ],
    ids=["accumulation", "gradient checkpointing", "packing"],
)
def test_how_a_step_is_computed_does_not_change_what_is_learned(
    plan: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    reference = run(make_world(tmp_path / "a", tiny_model, total_steps=6, eval_steps=3).context("train"))
    other = run(make_world(tmp_path / "b", tiny_model, total_steps=6, eval_steps=3, **plan).context("train"))
    assert other.best_validation_loss == pytest.approx(reference.best_validation_loss, rel=1e-4)


def test_divergence_names_the_step_and_the_field(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from finetune_runner.training.trainer import AdapterTrainer

    # A Llama of this size never explodes by itself: its norms hold the logits. The third loss is made one that did.
    losses = iter([2.0, 1.9, math.nan])
    monkeypatch.setattr(AdapterTrainer, "take_step_loss", lambda _: torch.tensor(next(losses)))
    with pytest.raises(StageError, match="became nan at step 3") as diverged:
        run(make_world(tmp_path, tiny_model).context("train"))
    assert diverged.value.exit_code == ExitCode.TRAINING_DIVERGED
    assert "training.learningRate (now 0.01)" in diverged.value.hint
    assert diverged.value.evidence == "losses of the last steps: 2, 1.9, nan"


def test_the_time_budget_ends_training_with_something_to_publish(tmp_path: Path, tiny_model: Path) -> None:
    result = run(make_world(tmp_path, tiny_model, total_steps=500, time_budget_seconds=1).context("train"))
    assert result.stopped_by == "budget"
    assert 0 < result.best_step <= result.steps < 500


def test_early_stopping_counts_evaluations_and_is_remembered(tmp_path: Path, tiny_model: Path) -> None:
    spec = {
        "training": {
            "learningRate": 1e-7,
            "globalBatchSize": 8,
            "maxLength": 128,
            "earlyStopping": {"patience": 2, "minimumDelta": 0.5},
        }
    }
    world = make_world(tmp_path, tiny_model, spec=spec, total_steps=40, eval_steps=2)
    result = run(world.context("train"))
    assert (result.stopped_by, result.steps) == ("earlyStopping", 4)
    again = run(world.context("train"))
    assert (again.stopped_by, again.steps, again.checkpoint_digest) == ("earlyStopping", 4, result.checkpoint_digest)


def test_learning_nothing_is_found(tmp_path: Path, tiny_model: Path) -> None:
    spec = {"training": {"learningRate": 0.1, "warmupRatio": 0.0, "globalBatchSize": 8, "maxLength": 128}}
    spec["method"] = {"type": "lora", "rank": 8, "alpha": 64}
    world = make_world(tmp_path, tiny_model, spec=spec, total_steps=3, eval_steps=1)
    results, findings = train.run(world.context("train"))
    assert results.train is not None
    worse = results.train.best_validation_loss >= results.train.initial_validation_loss
    assert ("learning" in [finding.check for finding in findings]) == worse
    assert math.isfinite(results.train.best_validation_loss)


def test_qlora_keeps_its_adapter_in_fp32_and_learns(tmp_path: Path, tiny_model: Path) -> None:
    from safetensors.torch import load_file

    world = make_world(tmp_path, tiny_model, method="qlora")
    result = run(world.context("train"))
    tensors = load_file(checkpoints(world) / f"step-{result.best_step}" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float32"}
    assert result.best_validation_loss < result.initial_validation_loss - 1


def test_impossible_target_modules_name_the_field(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model, spec={"method": {"type": "lora", "targetModules": "no_such_layer"}})
    with pytest.raises(StageError, match=r"method\.targetModules") as refused:
        run(world.context("train"))
    assert "no_such_layer" in refused.value.message
    assert refused.value.exit_code == ExitCode.INVALID_SPEC


def test_two_processes_learn_what_one_learns(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(make_world(tmp_path / "a", tiny_model, total_steps=4, eval_steps=2).context("train"))
    pair = make_world(tmp_path / "b", tiny_model, total_steps=4, eval_steps=2, strategy="ddp", micro_batch_size=2)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    monkeypatch.setenv("FINETUNE_SCRATCH", str(pair.folder / "scratch"))
    both = run(pair.context("train"))
    assert both.best_validation_loss == pytest.approx(alone.best_validation_loss, rel=1e-5)
    assert both.steps == 4


def test_a_sharded_quantised_base_leaves_a_whole_adapter(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT finds no adapter below FSDP1's wrappers: the file had been empty, and the run failed at its end."""
    plan: dict[str, Any] = {
        "strategy": "fsdp",
        "method": "qlora",
        "total_steps": 2,
        "eval_steps": 1,
        "micro_batch_size": 2,
    }
    world = make_world(tmp_path, tiny_model, train=16, validation=4, **plan)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    monkeypatch.setenv("FINETUNE_SCRATCH", str(world.folder / "scratch"))
    result = run(world.context("train"))
    assert result.steps == 2
    assert result.best_validation_loss < result.initial_validation_loss


def test_a_failure_of_a_rank_keeps_its_cause(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"method": {"type": "lora", "targetModules": "no_such_layer"}}
    world = make_world(tmp_path, tiny_model, spec=spec, strategy="ddp")
    monkeypatch.setenv("FINETUNE_SCRATCH", str(world.folder / "scratch"))
    with pytest.raises(StageError, match=r"method\.targetModules") as refused:
        run(world.context("train"))
    assert refused.value.exit_code == ExitCode.INVALID_SPEC


def test_a_newer_attempt_fences_an_older_one(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model, total_steps=2, eval_steps=1)
    old = world.context("train")
    world.context("train")
    with pytest.raises(StageError, match="newer attempt") as fenced:
        run(old)
    assert fenced.value.exit_code == ExitCode.FENCED
    assert steps(world) == []


def test_an_older_attempt_does_not_unmake_a_newer_ones_checkpoint(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model)
    old, new = (CheckpointStore(world.context("train")) for _ in range(2))
    new.begin(4, Ranks())
    new.commit(TrainingState(step=4), {})
    with pytest.raises(StageError, match="newer attempt"):
        old.begin(4, Ranks())
    assert new.steps() == [4]
    new.begin(4, Ranks())  # the newest attempt itself may
    assert new.steps() == []


def test_a_train_task_without_a_plan_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model)
    task: StageTask = world.task("train", plan=None)
    with pytest.raises(StageError, match="needs a plan"):
        train.run(world.open(task))
