"""Other trainers: what they do otherwise is what the planner knows how to compute."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.fit import Demand, train_moments
from finetune_operator.planner.memory.stranding import other_rows_bytes, stranded_bytes
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.trainers import known_trainers, other_setup, other_step

DEMAND = Demand(
    shape=known_shapes()["Llama-3.1-8B"],
    method="qlora",
    rank=16,
    target_modules="all-linear",
    dropout=0.0,
    longest_row=2048,
    longest_prompt=2048,
    max_new_tokens=256,
    validation_rows=100,
    test_rows=200,
    packed=False,
    serves_merged=False,
)


@pytest.mark.parametrize("name", known_trainers())
def test_a_trainer_is_told_by_fields_that_exist(name: str) -> None:
    trainer = known_trainers()[name]
    known = {field.name for field in fields(TrainingSetup)}
    assert trainer.about
    assert {*trainer.always, *trainer.quantised} <= known


def test_what_is_said_of_4_bit_bases_is_not_said_of_others() -> None:
    trainer = known_trainers()["hf-trainer-kbit"]
    assert other_setup(DEMAND, 1, trainer).unquantised_bytes == 4
    assert other_setup(replace(DEMAND, method="lora"), 1, trainer).unquantised_bytes == 2


@pytest.mark.parametrize(("name", "strategy"), [("torchtune", "fsdp2"), ("hf-trainer", "fsdp"), ("fsdp-qlora", "fsdp")])
def test_fsdp_is_each_trainers_own(name: str, strategy: str) -> None:
    cut = replace(DEMAND, strategy="fsdpBase", gpus=2)
    assert other_setup(cut, 1, known_trainers()[name]).strategy == strategy


def test_full_logits_and_kept_inputs_cost_memory() -> None:
    own = train_moments(DEMAND, 4)["step"].allocated_bytes
    full, fused = (other_step(DEMAND, 4, known_trainers()[name]).allocated_bytes for name in ("hf-trainer", "liger"))
    assert full > own + 5e9
    assert fused == pytest.approx(own, rel=0.15)
    whole = replace(DEMAND, checkpointing=False)
    kept, not_kept = (other_step(whole, 1, known_trainers()[name]) for name in ("litgpt", "hf-trainer"))
    # bitsandbytes' release notes: 2 (4h + I) per token and block.
    assert kept.allocated_bytes - not_kept.allocated_bytes == 2 * (4 * 4096 + 14336) * 32 * 2048


def test_the_release_notes_figure_of_kept_inputs() -> None:
    """bitsandbytes 0.43.2: 10.1 GB saved for 70B at 1,024 tokens."""
    from finetune_operator.planner.memory.activations import frozen_input_bytes_per_token

    shape = known_shapes()["Llama-3.1-70B"]
    assert frozen_input_bytes_per_token(shape) * shape.layers * 1024 / 1e9 == pytest.approx(10.1, rel=0.01)


def test_blocks_for_rows_of_every_length_are_reserved_beside_the_longest_rows() -> None:
    demand = replace(DEMAND, typical_row=512)
    mixed, alike = (other_step(demand, 2, known_trainers()[name]) for name in ("swift-qwen", "hf-trainer"))
    assert mixed.allocated_bytes == alike.allocated_bytes
    assert mixed.fragmentation_bytes == 34 * 2 * 512 * DEMAND.shape.vocabulary
    assert other_step(replace(demand, typical_row=1024), 2, known_trainers()["swift-qwen"]).reserved_bytes > (
        mixed.reserved_bytes
    )


def test_a_fused_loss_strands_the_logits_of_the_forward_pass() -> None:
    """Llama-3.1-8B in 4 bit, 4 rows of 4,096: 43.2 GB by nvidia-smi, tensors of 27.3 (fms-acceleration)."""
    setup = replace(
        other_setup(replace(DEMAND, longest_row=4096), 4, known_trainers()["fms-fused"]), head="fused-loss-upcast"
    )
    step = training_memory(setup)
    logits = 4 * 4096 * 128_256
    assert step.fragmentation_bytes >= 6 * logits
    fewer = training_memory(replace(setup, micro_batch=2))
    assert step.fragmentation_bytes == pytest.approx(2 * fewer.fragmentation_bytes)
    assert training_memory(replace(setup, head="fused")).fragmentation_bytes < logits


def test_nothing_is_stranded_where_the_head_is_fused() -> None:
    assert stranded_bytes(0.0, 1e9, 1e9, 2e9) == 0.0
    assert stranded_bytes(1e9, 8e9, 2e9, 8e9) == pytest.approx(6e9 + 0.42 * 2e9)
    assert other_rows_bytes(0.0) == 0.0
