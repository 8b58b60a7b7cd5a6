"""Blocks are compiled before step 1, compute the same, and cost the run nothing where a compiler fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding, TrainResult
from finetune_runner.errors import StageError
from finetune_runner.stages import train
from finetune_runner.training import compilation
from finetune_runner.training.compilation import _Pass, difference
from finetune_runner.training.compilers import lacks, refuse_lack
from tests.runner.test_train import checkpoints, stop_after
from tests.runner.tiny import World, make_world

TRAINING = {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128}
DROPOUT = {"type": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}


class Counted:
    """A backend that traces as inductor's is traced, and runs the graph as it is. It counts."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(compilation, "BACKEND", counted)
    return counted


def world_of(folder: Path, model: Path, asked: str, **plan: Any) -> World:
    plan = {"total_steps": 4, "eval_steps": 2, "torch_compile": asked != "disabled"} | plan
    method = DROPOUT | {"type": plan.get("method", "lora")}
    spec = {"method": method, "training": TRAINING | {"torchCompile": asked}}
    return make_world(folder, model, spec=spec, torch_compile_reason="asked for", **plan)


def run(world: World) -> tuple[TrainResult, list[Finding]]:
    results, findings = train.run(world.context("train"))
    assert results.train is not None
    return results.train, [finding for finding in findings if finding.check == "torchCompile"]


@pytest.mark.parametrize(
    "plan",
    [{}, {"gradient_checkpointing": True}, {"packing": True}, {"method": "qlora"}],
    ids=["lora", "gradient checkpointing", "packing", "qlora"],
)
def test_compiled_blocks_learn_what_blocks_learn(
    plan: dict[str, Any], tmp_path: Path, tiny_model: Path, backend: Counted
) -> None:
    eager, _ = run(world_of(tmp_path / "a", tiny_model, "disabled", **plan))
    assert backend.graphs == 0
    compiled, findings = run(world_of(tmp_path / "b", tiny_model, "enabled", **plan))
    tolerance = 2e-2 if plan.get("method") == "qlora" else 1e-5
    assert compiled.best_validation_loss == pytest.approx(eager.best_validation_loss, rel=tolerance)
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=tolerance)
    assert (compiled.torch_compile, findings) == (True, [])
    # Of any length; one more where the first block's input asks for no gradient and the others' does.
    assert compiled.compilations == backend.graphs <= 2
    steps, accumulation, blocks, proof = 4, compiled.gradient_accumulation, 2, 2 * 2
    passes = steps * accumulation + proof
    recomputed = 2 if plan.get("gradient_checkpointing") else 1
    assert backend.calls == blocks * passes * recomputed, "every pass of training, and no other"
    assert compiled.seconds.compilation > 0
    assert "the longest batch takes" in compiled.torch_compile_reason


def test_a_compiled_run_saves_the_same_names_and_resumes_to_the_bit(
    tmp_path: Path, tiny_model: Path, backend: Counted
) -> None:
    from safetensors import safe_open

    eager, through, stopped = (
        world_of(tmp_path / name, tiny_model, asked)
        for name, asked in (("a", "disabled"), ("b", "enabled"), ("c", "enabled"))
    )
    run(eager)
    whole, _ = run(through)
    names = []
    for world in (eager, through):
        with safe_open(checkpoints(world) / "step-4" / "adapter_model.safetensors", "pt") as file:
            names.append(sorted(file.keys()))
    assert names[0] == names[1]
    with pytest.raises(StageError, match="saved a checkpoint at step"):
        train.run(stop_after(stopped, 2))
    resumed, _ = run(stopped)
    assert resumed.resumed_from_step > 0
    assert resumed.checkpoint_digest == whole.checkpoint_digest


def fails(*_: Any) -> Any:
    raise RuntimeError("the compiler does not know this\nand more")


def wrong(graph: Any, _: Any) -> Any:
    return lambda *arguments: [
        out * 1.5 if isinstance(out, torch.Tensor) and out.is_floating_point() else out
        for out in graph.forward(*arguments)
    ]


@pytest.mark.parametrize(
    ("backend", "words"),
    [(fails, "the compiler does not know this"), (wrong, "of a batch is")],
    ids=["it fails", "it is wrong"],
)
def test_what_cannot_be_compiled_is_trained_as_it_is(
    backend: Any, words: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, _ = run(world_of(tmp_path / "a", tiny_model, "disabled"))
    monkeypatch.setattr(compilation, "BACKEND", backend)
    found, [finding] = run(world_of(tmp_path / "b", tiny_model, "auto"))
    assert (found.torch_compile, found.checkpoint_digest) == (False, eager.checkpoint_digest)
    assert words in found.torch_compile_reason
    assert finding.message.startswith("training ran without torch.compile, with the same result: ")
    with pytest.raises(StageError, match=r"training\.torchCompile: .*" + words) as refused:
        run(world_of(tmp_path / "c", tiny_model, "enabled"))
    assert refused.value.exit_code == ExitCode.INVALID_SPEC


@pytest.mark.parametrize("gpus", [0, 1, None])
def test_an_image_without_a_compiler_is_told_from_one_with(
    gpus: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lacks(gpus) == ("C++ compiler" if gpus == 0 else "C compiler")
    with pytest.raises(StageError, match=r"training\.torchCompile: this runner image has no C") as refused:
        refuse_lack(gpus)
    assert "finetune-runner-compile" in refused.value.hint


def test_auto_says_what_the_image_lacks(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "lacks", lambda _: "C compiler")
    found, [finding] = run(world_of(tmp_path, tiny_model, "auto", total_steps=2))
    assert not found.torch_compile
    assert "the runner image has no C compiler; finetune-runner-compile has" in finding.message


@pytest.mark.parametrize(
    ("loss", "gradient", "words"),
    [
        (2.00001, 1.0, ""),
        (2.01, 1.0, "the loss of a batch is 2.01 compiled and 2 as it is"),
        (float("nan"), 1.0, "the loss of a batch is nan"),
        (2.0, 1.01, "off by 0.01 of its norm"),
        (2.0, float("nan"), "off by nan"),
    ],
)
def test_more_than_rounding_is_a_difference(loss: float, gradient: float, words: str) -> None:
    eager = _Pass(2.0, {"a": torch.ones(4)}, 0.0)
    said = difference(eager, _Pass(loss, {"a": torch.full((4,), gradient)}, 0.0), "fp32")
    assert words in said if words else not said


def test_inductor_itself_compiles_a_block(tmp_path: Path, tiny_model: Path) -> None:
    """Half a minute of processor time; its kernels round otherwise than eager ones."""
    eager, _ = run(world_of(tmp_path / "a", tiny_model, "disabled", total_steps=2))
    compiled, _ = run(world_of(tmp_path / "b", tiny_model, "enabled", total_steps=2))
    assert (compiled.torch_compile, compiled.compilations) == (True, 2)
    assert compiled.best_validation_loss == pytest.approx(eager.best_validation_loss, rel=1e-5)
