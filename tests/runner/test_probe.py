"""The micro-batch is found before the run. On a CPU nothing runs out of GPU memory: the loss raises what CUDA would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import PROBE_EXHAUSTED, TrainPlan, TrainResult
from finetune_runner.errors import StageError
from finetune_runner.stages import train
from finetune_runner.training import setup
from finetune_runner.training.device import CPU_STANDS_IN_VARIABLE, pick_device
from finetune_runner.training.objectives.sft import SupervisedFineTuning
from finetune_runner.training.probe import Probe, gentler, longest_micro_batch
from finetune_runner.training.strategies.base import Engine
from tests.runner.tiny import make_world

DROPOUT = {"method": {"type": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}}


def run(folder: Path, model: Path, **plan: Any) -> TrainResult:
    results, _ = train.run(
        make_world(folder, model, spec=DROPOUT, total_steps=3, eval_steps=3, **plan).context("train")
    )
    assert results.train is not None
    return results.train


def memory_for(rows: int, *, recomputed: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches of more rows run out, with gradient checkpointing of more than `recomputed`. What was tried."""
    tried: list[int] = []
    loss = SupervisedFineTuning.loss

    def limited(self: SupervisedFineTuning, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        size = len(batch["input_ids"])
        tried.append(size)
        recomputes = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        if size > (recomputed if recomputes else rows):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return loss(self, model, batch)

    monkeypatch.setattr(SupervisedFineTuning, "loss", limited)
    return tried


def test_a_run_that_was_probed_is_the_run_without_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = run(tmp_path / "a", tiny_model)
    monkeypatch.setattr(setup, "find", lambda engine, plan, world, batch_of: Probe(plan))
    assert run(tmp_path / "b", tiny_model).checkpoint_digest == probed.checkpoint_digest
    assert probed.probe == ""


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_step_keeps_its_examples(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run(tmp_path / "a", tiny_model, micro_batch_size=2, gradient_accumulation=4)
    tried = memory_for(2, recomputed=8, monkeypatch=monkeypatch)
    found = run(tmp_path / "b", tiny_model, micro_batch_size=8, gradient_accumulation=1)
    assert tried[:3] == [8, 4, 2]
    assert (found.micro_batch_size, found.gradient_accumulation) == (2, 4)
    assert found.probe == "micro-batch 8 -> 4; micro-batch 4 -> 2"
    assert found.checkpoint_digest == asked.checkpoint_digest


def test_then_activations_are_recomputed(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(0, recomputed=1, monkeypatch=monkeypatch)
    found = run(tmp_path, tiny_model, micro_batch_size=2, gradient_accumulation=4)
    assert (found.micro_batch_size, found.gradient_checkpointing) == (1, True)
    assert found.probe == "micro-batch 2 -> 1; gradient checkpointing on"


def test_what_never_fits_is_out_of_memory_with_what_was_tried(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(0, recomputed=0, monkeypatch=monkeypatch)
    with pytest.raises(
        StageError, match="does not fit on a GPU at micro-batch 1 with gradient checkpointing"
    ) as failed:
        run(tmp_path, tiny_model, micro_batch_size=2, gradient_accumulation=4)
    assert failed.value.exit_code == ExitCode.GPU_OUT_OF_MEMORY
    assert failed.value.evidence == f"{PROBE_EXHAUSTED}: micro-batch 2 -> 1; gradient checkpointing on"


def test_a_rank_that_runs_out_inside_an_exchange_leaves_the_rest_to_the_next_attempt(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = memory_for(2, recomputed=8, monkeypatch=monkeypatch)
    monkeypatch.setattr(Engine, "backward_exchanges", True)
    with pytest.raises(StageError, match="does not fit on a GPU at micro-batch 4 without") as failed:
        run(tmp_path, tiny_model)
    assert tried == [4]
    assert "the next ones try smaller batches" in failed.value.evidence
    assert not failed.value.evidence.startswith(PROBE_EXHAUSTED)


def test_activations_are_not_recomputed_against_the_spec(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(0, recomputed=8, monkeypatch=monkeypatch)
    training = {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128, "gradientCheckpointing": "disabled"}
    world = make_world(tmp_path, tiny_model, spec={"training": training}, total_steps=3, eval_steps=3)
    with pytest.raises(StageError, match="at micro-batch 1 without gradient checkpointing") as failed:
        train.run(world.context("train"))
    assert failed.value.evidence == f"{PROBE_EXHAUSTED}: micro-batch 4 -> 2; micro-batch 2 -> 1"


def test_a_micro_batch_that_was_asked_for_and_did_not_fit_is_found(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128, "microBatchSize": 4}
    world = make_world(tmp_path, tiny_model, spec={"training": training}, total_steps=2, eval_steps=2)
    memory_for(2, recomputed=2, monkeypatch=monkeypatch)
    _, findings = train.run(world.context("train"))
    [found] = [finding for finding in findings if finding.check == "microBatchSize"]
    assert "training.microBatchSize: 4 did not fit on the GPU; trained with 2" in found.message


@pytest.mark.parametrize(
    ("micro", "accumulation", "checkpointing", "expected"),
    [
        (8, 2, False, (4, 4, False)),
        (6, 1, False, (3, 2, False)),
        (3, 2, False, (1, 6, False)),
        (1, 16, False, (1, 16, True)),
        (1, 16, True, None),
    ],
)
def test_the_ladder(micro: int, accumulation: int, checkpointing: bool, expected: tuple[int, int, bool] | None) -> None:
    plan = TrainPlan(
        method="lora",
        strategy="single",
        nodes=1,
        gpus_per_node=1,
        total_steps=1,
        micro_batch_size=micro,
        gradient_accumulation=accumulation,
        eval_steps=1,
        gradient_checkpointing=checkpointing,
    )
    step = gentler(plan)
    found = step and (step[0].micro_batch_size, step[0].gradient_accumulation, step[0].gradient_checkpointing)
    assert found == expected


def test_the_longest_batch_is_of_the_step_with_the_longest_example() -> None:
    assert longest_micro_batch([[0, 1, 2], [3, 4, 5]], [5, 6, 7, 1, 9, 8], 2) == [4, 5]


@pytest.mark.parametrize(("gpus", "stands_in", "refused"), [(1, "", True), (1, "1", False), (0, "", False)])
def test_a_plan_with_gpus_is_not_trained_on_a_cpu(
    gpus: int, stands_in: str, refused: bool, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(CPU_STANDS_IN_VARIABLE, stands_in)
    plan = make_world(tmp_path, tiny_model, gpus_per_node=gpus).plan
    if not refused:
        assert pick_device(plan).type == "cpu"
        return
    with pytest.raises(StageError, match="PyTorch sees none") as failed:
        pick_device(plan)
    assert failed.value.exit_code == ExitCode.GPU_UNAVAILABLE
