"""What an allocator keeps beside tensors where its segments cannot grow: for other trainers' figures only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.loading import loading_memory
from finetune_operator.planner.memory.pools import other_memory
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.memory.weights import block_bytes

LLAMA, QWEN = known_shapes()["Llama-2-7B"], known_shapes()["Qwen-14B"]
SHARDED = TrainingSetup(
    shape=LLAMA,
    quantisation="nf4",
    rank=64,
    micro_batch=1,
    sequence_length=512,
    head="full-upcast",
    adapter_bytes=2,
    strategy="fsdp",
    gpus=2,
    attention="flash",
    separate_pools=True,
)
GPTQ = replace(
    SHARDED, shape=QWEN, quantisation="gptq", head="half", strategy="zero2", gpus=1, bucket_elements=400_000_000
)


def test_nothing_is_kept_where_segments_may_grow() -> None:
    setup = replace(SHARDED, separate_pools=False)
    assert other_memory(setup).reserved_bytes == pytest.approx(training_memory(setup).reserved_bytes)


def test_what_wrapping_left_is_a_floor_under_short_rows_and_not_what_is_gathered_into() -> None:
    wrapped = loading_memory(SHARDED).reserved_bytes
    gathered = (2 * LLAMA.embedding_parameters + 3 * block_bytes(LLAMA, "nf4")) * 1.5
    assert other_memory(SHARDED).reserved_bytes == pytest.approx(wrapped + gathered)
    assert other_memory(replace(SHARDED, sequence_length=256)).reserved_bytes == pytest.approx(wrapped + gathered)
    longer = replace(SHARDED, sequence_length=8192)
    assert other_memory(longer).reserved_bytes > training_memory(longer).reserved_bytes


def test_parts_in_host_memory_are_copied_to_the_gpu_before_they_are_gathered() -> None:
    """Half of what is gathered once more, where two GPUs share it."""
    kept, offloaded = (
        other_memory(replace(SHARDED, sequence_length=8192, offload=where)).fragmentation_bytes
        for where in ("none", "parameters")
    )
    gathered = 2 * LLAMA.embedding_parameters + 3 * block_bytes(LLAMA, "nf4")
    assert offloaded - kept == pytest.approx(gathered / 2)


def test_blocks_that_wait_for_the_gpu_come_on_top() -> None:
    setup = replace(SHARDED, separate_pools=False)
    waiting = other_memory(replace(setup, waiting_blocks=5))
    assert waiting.reserved_bytes - other_memory(setup).reserved_bytes == pytest.approx(5 * block_bytes(LLAMA, "nf4"))
    assert waiting.least_bytes == other_memory(setup).least_bytes


def test_the_steps_flat_gradients_need_a_segment_unless_the_logits_left_one() -> None:
    """14B, rank 64: 1.0 GB in fp32; two rows of 2,048 leave logits of 1.2 GB, which they fit into."""
    parameters = adapter_parameters(QWEN, 64, QWEN.targets("all-linear"))
    assert other_memory(GPTQ).fragmentation_bytes == 4 * parameters
    longer = replace(GPTQ, micro_batch=2, sequence_length=2048)
    assert other_memory(longer).fragmentation_bytes == training_memory(longer).fragmentation_bytes


def test_auto_gptq_keeps_a_blocks_weights_in_16_bit_for_its_backward_pass() -> None:
    """Without tokens nothing is left of a block but that; the same model in NF4 restores one matrix at a time."""
    long = replace(GPTQ, head="fused", sequence_length=2048)
    nf4 = replace(long, quantisation="nf4")
    kept, not_kept = (training_memory(setup).allocated["recomputation"] for setup in (long, nf4))
    assert kept - not_kept == 2 * QWEN.block_parameters


def test_logits_that_a_loop_holds_are_there_while_blocks_are_computed_backward() -> None:
    held = training_memory(replace(SHARDED, keeps_logits=True)).allocated_bytes
    assert held - training_memory(SHARDED).allocated_bytes == 4 * 512 * LLAMA.vocabulary
