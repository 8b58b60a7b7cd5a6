"""What one GPU holds while the model is loaded and cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.fit import Demand, train_breakdown, train_moments
from finetune_operator.planner.memory.loading import loading_memory
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.memory.weights import Quantisation

LLAMA_70B = known_shapes()["Llama-3.1-70B"]
QLORA = TrainingSetup(LLAMA_70B, "nf4-double", rank=16, micro_batch=1, sequence_length=512)


def test_a_tensor_that_is_quantised_is_there_in_16_bit_beside_the_weights() -> None:
    parts = loading_memory(QLORA).allocated
    assert parts["loading"] == 2 * 8192 * 28672
    assert parts["weights"] == training_memory(QLORA).allocated["weights"]
    eight = loading_memory(replace(QLORA, quantisation="int8")).allocated
    assert eight["loading"] == 4 * 8192 * 28672
    assert "loading" not in loading_memory(replace(QLORA, quantisation="none")).allocated


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        (name, quantisation)
        for name, shape in known_shapes().items()
        for quantisation in ("none", "int8", "nf4-double")
        if shape.mixture is None or quantisation != "int8"  # experts are not quantised to 8 bit: refused
    ],
)
def test_loading_a_whole_model_takes_no_more_than_a_step_on_one_long_row(name: str, quantisation: Quantisation) -> None:
    setup = TrainingSetup(known_shapes()[name], quantisation, rank=8, micro_batch=1, sequence_length=4096)
    assert loading_memory(setup).reserved_bytes <= training_memory(setup).reserved_bytes


def test_what_is_cut_is_whole_one_part_at_a_time() -> None:
    tables = 2.0 * LLAMA_70B.embedding_parameters
    cut = replace(QLORA, gpus=8)
    fsdp1, fsdp2, zero3 = (
        loading_memory(replace(cut, strategy=strategy)).allocated for strategy in ("fsdpBase", "fsdp2", "zero3")
    )
    assert fsdp1["weights"] == fsdp2["weights"] == training_memory(QLORA).allocated["weights"] / 8
    assert fsdp1["loading"] == 2 * tables, "FSDP1 copies embedding and head into one tensor"
    assert fsdp2["loading"] == zero3["loading"] == tables
    assert fsdp1["adapter"] == 8 * fsdp2["adapter"], "fsdpBase keeps the adapter whole"


def test_offloaded_weights_are_not_on_the_gpu() -> None:
    parts = loading_memory(replace(QLORA, strategy="zero3", gpus=8, offload="parameters")).allocated
    assert set(parts) == {"loading"}


def test_the_largest_moment_counts_and_that_may_be_loading() -> None:
    """Short rows, a large vocabulary, many GPUs: two copies of embedding and head are more than a step."""
    demand = Demand(
        shape=known_shapes()["Llama-3.1-8B"],
        method="qlora",
        rank=8,
        target_modules="all-linear",
        dropout=0.0,
        longest_row=64,
        longest_prompt=64,
        max_new_tokens=16,
        validation_rows=0,
        test_rows=10,
        packed=False,
        serves_merged=False,
        strategy="fsdpBase",
        gpus=8,
    )
    moments = train_moments(demand, 1)
    assert max(moments, key=lambda name: moments[name].device_bytes) == "loading"
    assert train_breakdown(demand, 1) == moments["loading"]
    long = train_moments(replace(demand, longest_row=4096), 4)
    assert max(long, key=lambda name: long[name].device_bytes) != "loading"
