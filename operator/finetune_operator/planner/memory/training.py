"""The peak of a training step."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job.training import Optimizer
from finetune_api.stages import Offload
from finetune_operator.planner.memory.activations import (
    checkpoint_bytes,
    frozen_input_bytes_per_token,
    recomputation_factor,
    recomputed_bytes_per_token,
    saved_bytes_per_token,
)
from finetune_operator.planner.memory.adapter import adapter_bytes, adapter_parameters
from finetune_operator.planner.memory.attention import Attention, cache_bytes, mask_bytes, score_bytes
from finetune_operator.planner.memory.breakdown import (
    CONTEXT_BYTES,
    FRAGMENTATION_SHARE,
    FRAGMENTATION_SHARE_FULL_LOGITS,
    Breakdown,
)
from finetune_operator.planner.memory.dora import (
    dora_moment_bytes,
    dora_saved_bytes_per_block,
    dora_saved_bytes_per_token,
)
from finetune_operator.planner.memory.head import (
    LOGITS_BEFORE_A_FUSED_LOSS,
    Head,
    evaluated_logits_bytes,
    head_bytes,
)
from finetune_operator.planner.memory.inference import answered_tokens, scored_tokens
from finetune_operator.planner.memory.sharding import (
    ZERO2_BUCKET_ELEMENTS,
    Strategy,
    adapter_shards,
    communication_bytes,
    gradient_copies,
    keeps_input_gradients,
    master_bytes,
    offloaded,
    outside_bytes,
    shards,
    state_bytes,
)
from finetune_operator.planner.memory.stranding import other_rows_bytes, stranded_bytes
from finetune_operator.planner.memory.weights import (
    Quantisation,
    dequantisation_bytes,
    element_factor,
    kept_weight_bytes,
    weight_bytes,
)
from finetune_operator.planner.shape import ModelShape

REFERENCE_ROWS = 8
"""Answers of a batch whose log-probabilities are asked (runner, training/objectives/preference.py)."""
REFERENCE_TOKENS = 16_384
"""Most tokens of such a batch, where it has several answers (the same file)."""


@dataclass(frozen=True)
class TrainingSetup:
    """One GPU's part of a training step. The defaults are what the runner does."""

    shape: ModelShape
    quantisation: Quantisation
    rank: int
    micro_batch: int
    sequence_length: int
    target_modules: str = "all-linear"
    dropout: float = 0.0
    checkpointing: bool = True
    packed: bool = False
    strategy: Strategy = "single"
    gpus: int = 1
    offload: Offload = "none"
    adapter_bytes: int = 4
    """Bytes per parameter of the adapter."""
    bucket_elements: int = ZERO2_BUCKET_ELEMENTS
    """Of DeepSpeed's reduce buckets, all together."""
    unquantised_bytes: int = 2
    """Bytes per parameter of embedding, head and norms."""
    residual_bytes: int = 2
    """Bytes per element of the residual stream."""
    stored_bytes: int = 0
    """Bytes per parameter between uses where they are more than is computed with, for published rows only: FSDP keeps
    the parts as they were loaded, and PEFT's example loads fp32. 0: as the quantisation says."""
    saves_frozen_inputs: bool = False
    """Whether frozen 4-bit layers keep their inputs: bitsandbytes before 0.43.2, for published rows only."""
    keeps_logits: bool = False
    """Whether fp32 logits live as long as the step, for published rows only: a loop that holds the model's output."""
    reentrant: bool = False
    """Whether gradient checkpointing is reentrant around FSDP's units, for published rows only: the default of
    transformers' Trainer before version 5."""
    separate_pools: bool = False
    """Whether what the allocator keeps of one stream or moment, and cannot give to another, is counted part by part
    (pools.py), for published rows only: where segments may grow it can, and in fms' rows it is in fitted numbers."""
    waiting_blocks: int = 0
    """Blocks gathered and freed whose room waits for the GPU (pools.py), for published rows only."""
    mean_sequence: float = 0.0
    """Tokens of a mean row, padded to the longest of its batch, where an allocator keeps blocks for rows of every
    length: for published rows only. 0: all rows are alike, or segments may grow."""
    head: Head = "fused"
    attention: Attention = "sdpa"
    """The published rows make no mask: flash."""
    dora: bool = False
    optimizer: Optimizer = "adamw_torch_fused"
    sequences: int = 1
    """Sequences of an example: dpo passes a better and a worse answer at once."""

    @property
    def tokens(self) -> int:
        """Tokens of a forward pass, padding counted."""
        return self.sequences * self.micro_batch * self.sequence_length


def training_memory(setup: TrainingSetup) -> Breakdown:
    """Memory of one GPU at the peak of a step: during the backward pass, in the head or in a block."""
    shape, dropout = setup.shape, setup.dropout > 0
    targets = shape.targets(setup.target_modules)
    weight_shards, gradient_shards, optimiser_shards = shards(setup.strategy, setup.gpus)
    parameters = adapter_parameters(shape, setup.rank, targets, dora=setup.dora)
    adapter = adapter_bytes(
        parameters,
        setup.adapter_bytes,
        setup.rank,
        setup.optimizer,
        state_bytes=state_bytes(setup.strategy, setup.adapter_bytes),
    )
    wider = element_factor(setup.quantisation)
    saved = wider * saved_bytes_per_token(
        shape, setup.rank, targets, dropout=dropout, adapter_bytes=setup.adapter_bytes
    )
    if setup.saves_frozen_inputs:
        saved += frozen_input_bytes_per_token(shape)
    fixed = kept_weight_bytes(shape, setup.quantisation)
    if setup.dora:
        saved += wider * dora_saved_bytes_per_token(shape, targets)
        fixed += wider * dora_saved_bytes_per_block(shape, setup.rank, targets)
    head = head_bytes(shape, setup.tokens, setup.head)
    weights = weight_bytes(shape, setup.quantisation, setup.unquantised_bytes)
    parts = {
        "weights": max(weights, float(setup.stored_bytes * shape.parameters)) / weight_shards,
        "adapter": adapter["adapter"] / adapter_shards(setup.strategy, setup.gpus),
        "gradients": gradient_copies(setup.strategy) * adapter["gradients"] / gradient_shards,
        "optimiser": adapter["optimiser"] / optimiser_shards,
        "masterCopy": master_bytes(parameters, setup.strategy, setup.gpus),
        "communication": communication_bytes(
            shape,
            setup.strategy,
            setup.quantisation,
            gradient_bytes=adapter["gradients"],
            bucket_bytes=float(setup.bucket_elements * setup.adapter_bytes),
        ),
        "dequantisation": dequantisation_bytes(shape, setup.quantisation),
    }
    # What is computed with is fetched: under ZeRO-3 that is counted as communication.
    parts |= dict.fromkeys(offloaded(setup.offload), 0.0)
    if setup.dora:
        parts["dequantisation"] += dora_moment_bytes(shape)
    if setup.attention != "flash":
        rows = setup.sequences * setup.micro_batch
        parts["attentionMask"] = mask_bytes(rows, setup.sequence_length, packed=setup.packed)
    if setup.keeps_logits:
        parts["logits"] = 4.0 * setup.tokens * shape.vocabulary
    row_tokens = setup.tokens if setup.packed else setup.sequence_length
    kept_blocks = 1 if setup.checkpointing else shape.layers
    scores = (
        score_bytes(shape.heads, row_tokens, setup.tokens, blocks=kept_blocks) if setup.attention == "eager" else 0.0
    )
    stranded = other_rows_bytes(setup.micro_batch * setup.mean_sequence * shape.vocabulary)
    if setup.checkpointing:
        factor = recomputation_factor(dropout=dropout, adapter_bytes=setup.adapter_bytes)
        parts["activations"] = checkpoint_bytes(shape, setup.tokens, wider * setup.residual_bytes)
        beyond = wider * recomputed_bytes_per_token(shape)
        block = {
            "recomputation": (factor * saved + beyond) * setup.tokens + fixed,
            "attentionScores": wider * scores,
        }
        if keeps_input_gradients(setup.strategy, reentrant=setup.reentrant):
            block["inputGradients"] = checkpoint_bytes(shape, setup.tokens)
        # Head and blocks have their peaks one after the other.
        parts |= block if sum(block.values()) >= head else {"head": head}
        if setup.head in LOGITS_BEFORE_A_FUSED_LOSS:
            logits = float(setup.tokens * shape.vocabulary)
            stranded = stranded_bytes(logits, head, block["recomputation"], max(head, sum(block.values())))
    else:
        parts["activations"] = shape.layers * (saved * setup.tokens + fixed)
        parts |= {"head": head, "attentionScores": wider * scores}
    alike = setup.head in ("fused", "half") or setup.head in LOGITS_BEFORE_A_FUSED_LOSS
    share = FRAGMENTATION_SHARE if alike else FRAGMENTATION_SHARE_FULL_LOGITS
    outside = CONTEXT_BYTES + outside_bytes(setup.strategy, setup.gpus)
    return Breakdown({name: size for name, size in parts.items() if size > 0}, outside, share, stranded)


def validation_memory(setup: TrainingSetup, rows: int, longest_row: int) -> Breakdown:
    """Peak of validation between steps: the step's activations are gone, the optimiser's states are not."""
    shape, parts = setup.shape, _between_steps(setup)
    tokens = scored_tokens(max(1, min(rows, 16)), longest_row)
    wide = 2.0 * shape.widest_moment * tokens
    parts |= {"head": evaluated_logits_bytes(shape, tokens), "activations": wide}
    return _moment(setup, parts, longest_row, tokens)


def reference_memory(setup: TrainingSetup, longest_row: int) -> Breakdown:
    """Peak of dpo and kto while the model is asked for the log-probabilities of answers.

    That is for the reference before step 1, for validation, and for kto's common point.
    """
    shape, parts = setup.shape, _between_steps(setup)
    tokens = min(REFERENCE_ROWS * longest_row, max(REFERENCE_TOKENS, longest_row))
    wide = element_factor(setup.quantisation) * 2.0 * shape.widest_moment
    parts |= {"head": evaluated_logits_bytes(shape, tokens), "activations": wide * tokens}
    return _moment(setup, parts, longest_row, tokens)


def answering_memory(setup: TrainingSetup, rows: int, longest_prompt: int, max_new_tokens: int) -> Breakdown:
    """Peak of answering validation rows between steps: their keys and values beside the optimiser's states."""
    shape, parts = setup.shape, _between_steps(setup)
    kept, passed = answered_tokens(shape, rows, longest_prompt, max_new_tokens)
    parts |= {
        "keyValueCache": cache_bytes(shape, kept),
        "activations": 2.0 * shape.widest_moment * passed,
    }
    return _moment(setup, parts, longest_prompt, passed)


def _moment(setup: TrainingSetup, parts: dict[str, float], row_tokens: float, tokens: float) -> Breakdown:
    """Parts of a forward pass over so many tokens between steps, with its scores where they are held."""
    if setup.attention == "eager":
        scores = score_bytes(setup.shape.heads, row_tokens, tokens)
        parts = {**parts, "attentionScores": element_factor(setup.quantisation) * scores}
    outside = CONTEXT_BYTES + outside_bytes(setup.strategy, setup.gpus)
    return Breakdown({name: size for name, size in parts.items() if size > 0}, outside)


def _between_steps(setup: TrainingSetup) -> dict[str, float]:
    """What stays when a step's activations are gone."""
    kept = {"weights", "adapter", "gradients", "optimiser", "masterCopy", "communication", "dequantisation"}
    return {name: size for name, size in training_memory(setup).allocated.items() if name in kept}
