"""Each guard, with a model that is really broken in the way it watches for, and one that nearly is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Method
from finetune_api.stages import TrainPlan
from finetune_runner.errors import StageError
from finetune_runner.evaluation.likelihood import Encoded
from finetune_runner.training.adapter_file import wanted_shapes
from finetune_runner.training.guards import (
    FirstStep,
    refuse_changed_start,
    refuse_empty_adapter,
    refuse_other_batch,
    refuse_other_loss,
    refuse_seen_neighbours,
)
from tests.runner.refusals import refusal

EXAMPLES: list[Encoded] = [([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9]), ([5, 7, 9], [-100, 7, 9])]


@pytest.fixture
def adapted(tiny_model: Path) -> Any:
    return fresh(tiny_model)


def fresh(tiny_model: Path, **method: Any) -> Any:
    import torch

    from finetune_runner.training.loading import load_base, new_adapter

    base = load_base(tiny_model, "lora", torch.device("cpu"), None)
    return new_adapter(base, Method.from_wire({"rank": 4, "alpha": 8, **method}), 0)


def lora_b(model: Any) -> list[Any]:
    return [parameter for name, parameter in model.named_parameters() if "lora_B" in name]


# -- a fresh adapter changes nothing --


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_is_the_base(tiny_model: Path, dora: bool) -> None:
    assert refusal(lambda: refuse_changed_start(fresh(tiny_model, useDora=dora), EXAMPLES, 0, dora=dora)) == ""


def test_an_adapter_that_starts_with_weights_is_no_fresh_one(adapted: Any) -> None:
    adapted.train()
    lora_b(adapted)[0].data.fill_(0.05)
    with pytest.raises(StageError, match="the fresh adapter changes the base model") as refused:
        refuse_changed_start(adapted, EXAMPLES, 0, dora=False)
    assert refused.value.exit_code == ExitCode.INTERNAL
    assert adapted.training, "the guard leaves the model in the mode it found"


def test_another_lora_a_is_nearly_that(adapted: Any) -> None:
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            parameter.data.normal_()
    assert refusal(lambda: refuse_changed_start(adapted, EXAMPLES, 0, dora=False)) == ""


# -- the loss is the model's own --


def scale_logits(model: Any, scale: float) -> None:
    """As Falcon-H1 does behind its head."""

    def scaled(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits * scale
        return output

    model.get_base_model().register_forward_hook(scaled)


def test_a_head_that_is_scaled_unknown_to_the_loss_is_refused(adapted: Any) -> None:
    adapted.train()
    scale_logits(adapted, 0.5)
    with pytest.raises(
        StageError, match=r"another loss than LlamaForCausalLM has: \d.* from its head's.* \d.* from"
    ) as no:
        refuse_other_loss(adapted, EXAMPLES, 0, "fp32")
    assert no.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert adapted.training, "the guard leaves the model in the mode it found"


def test_a_head_that_is_nearly_as_known_passes(adapted: Any) -> None:
    assert refusal(lambda: refuse_other_loss(adapted, EXAMPLES, 0, "fp32")) == ""
    scale_logits(adapted, 1 + 1e-5)
    assert refusal(lambda: refuse_other_loss(adapted, EXAMPLES, 0, "fp32")) == ""


# -- every lora_B moves in the first step --


def one_step(model: Any) -> FirstStep:
    import torch

    guard = FirstStep()
    guard.remember(dict(model.named_parameters()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-12)
    ids = torch.tensor([EXAMPLES[0][0]])
    loss = model(input_ids=ids, labels=ids).loss
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    return guard


def check(guard: FirstStep, model: Any) -> None:
    guard.refuse_unmoved(dict(model.named_parameters()))


def test_a_step_however_small_moves_every_lora_b(adapted: Any) -> None:
    guard = one_step(adapted)
    assert refusal(lambda: check(guard, adapted)) == ""
    assert all(parameter.count_nonzero() for parameter in lora_b(adapted)), "it has moved, and hardly"
    assert max(float(parameter.detach().abs().max()) for parameter in lora_b(adapted)) < 1e-11


def test_recomputation_over_a_frozen_base_trains_nothing(adapted: Any) -> None:
    """Reentrant gradient checkpointing cuts the graph where no input needs a gradient (transformers#42489)."""
    adapted.train()
    adapted.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    adapted.base_model.model.disable_input_require_grads()  # transformers 5 sets it; older ones did not
    guard = one_step(adapted)
    with pytest.raises(StageError, match="every lora_B as it was") as refused:
        check(guard, adapted)
    assert "gradientCheckpointing" in refused.value.hint


def test_a_module_that_takes_no_part_in_the_loss_is_named(adapted: Any) -> None:
    last = adapted.base_model.model.model.layers[-1].mlp
    last.register_forward_hook(lambda module, inputs, output: output.detach())
    guard = one_step(adapted)
    with pytest.raises(StageError, match="3 of 14 adapter matrices do not learn") as refused:
        check(guard, adapted)
    assert "layers.1.mlp.gate_proj" in refused.value.message
    assert "method.excludeModules" in refused.value.hint
    assert refused.value.exit_code == ExitCode.INVALID_SPEC


# -- what was saved is whole --


@pytest.fixture
def saved(adapted: Any, tmp_path: Path) -> tuple[dict[str, list[int]], Path]:
    for parameter in lora_b(adapted):
        parameter.data.normal_()
    adapted.save_pretrained(str(tmp_path))
    return wanted_shapes(adapted), tmp_path


def edit(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    path = str(folder / "adapter_model.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def key(tensors: dict[str, Any]) -> str:
    return next(name for name in tensors if "lora_B" in name)


def test_a_whole_adapter_passes(saved: tuple[Any, Path]) -> None:
    assert refusal(lambda: refuse_empty_adapter(*saved)) == ""


def test_an_adapter_with_one_tiny_value_left_passes(saved: tuple[Any, Path]) -> None:
    def nearly_zero(tensors: dict[str, Any]) -> None:
        tensors[key(tensors)].zero_()
        tensors[key(tensors)][0, 0] = 1e-30

    edit(saved[1], nearly_zero)
    assert refusal(lambda: refuse_empty_adapter(*saved)) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(key(t)), "not saved whole"),
        (lambda t: t.update({key(t): t[key(t)][: len(t[key(t)]) // 2].clone()}), "not saved whole"),  # a rank's slice
        (lambda t: t.update({"base_model.model.extra.lora_B.weight": t[key(t)].clone()}), "not saved whole"),
        (lambda t: t[key(t)].zero_(), "1 of 14 lora_B are zero"),
        (lambda t: [v.zero_() for n, v in t.items() if "lora_B" in n], "changes nothing: every lora_B is zero"),
        (lambda t: t[key(t)].fill_(float("nan")), "no numbers"),
    ],
    ids=["missing", "slice", "foreign", "one zero", "all zero", "nan"],
)
def test_an_adapter_that_is_not_whole_is_refused(saved: tuple[Any, Path], change: Any, words: str) -> None:
    edit(saved[1], change)
    with pytest.raises(StageError, match=words):
        refuse_empty_adapter(*saved)


def test_a_truncated_file_is_named(saved: tuple[Any, Path]) -> None:
    path = saved[1] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
        refuse_empty_adapter(*saved)


@pytest.mark.parametrize(
    ("processes", "gpus", "examples", "words"),
    [
        (1, 0, 8, ""),
        (2, 0, 16, ""),
        (2, 0, 8, "2 processes would train 16 examples per optimiser step, training.globalBatchSize is 8"),
        (1, 0, 16, "1 process would train 8 examples per optimiser step, training.globalBatchSize is 16"),
        (4, 8, 64, "4 processes would train 32 examples per optimiser step, training.globalBatchSize is 64"),
    ],
)
def test_other_processes_than_planned_do_not_change_a_step(
    processes: int, gpus: int, examples: int, words: str
) -> None:
    wire = {"method": "lora", "strategy": "ddp", "nodes": 1, "total_steps": 1, "eval_steps": 1}
    plan = TrainPlan(**(wire | {"gpus_per_node": gpus, "micro_batch_size": 4, "gradient_accumulation": 2}))  # type: ignore[arg-type]
    said = refusal(lambda: refuse_other_batch(plan, processes, examples))
    assert words in said
    assert bool(said) is bool(words)


def test_packed_examples_that_see_each_other_are_refused(adapted: Any) -> None:
    """Falcon's mask is made without the positions that tell packed examples apart."""
    from peft import LoraConfig, get_peft_model
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2
    )
    falcon = get_peft_model(FalconForCausalLM(config), LoraConfig(r=2, target_modules=["query_key_value"]))
    said = refusal(lambda: refuse_seen_neighbours(falcon, EXAMPLES, 0, "fp32"))
    assert "training.packing: FalconForCausalLM lets packed examples see each other" in said
    assert refusal(lambda: refuse_seen_neighbours(adapted, EXAMPLES, 0, "fp32")) == ""
    assert refusal(lambda: refuse_seen_neighbours(adapted, EXAMPLES[:1], 0, "fp32")) == ""
