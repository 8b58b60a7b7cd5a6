"""The stages that ask and score a model: baseline, evaluate, and the merged form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_operator.planner.memory.attention import Attention, cache_bytes, score_bytes
from finetune_operator.planner.memory.breakdown import Breakdown
from finetune_operator.planner.memory.head import evaluated_logits_bytes
from finetune_operator.planner.memory.spreading import blocks_on_a_gpu, spread_weight_bytes
from finetune_operator.planner.memory.weights import Quantisation, dequantisation_bytes, element_factor
from finetune_operator.planner.shape import ModelShape

GENERATED_ROWS = 16
"""Rows of a batch of answers (runner, evaluation/generation.py)."""
GENERATED_TOKENS = 65_536
"""Most prompt tokens of such a batch (the same file)."""
GENERATED_CACHE_BYTES = 4 * 2**30
"""Most that keys and values of such a batch take in 16 bit (the same file); one long row may take more."""
SCORED_TOKENS = 16_384
"""Most tokens of a batch of likelihoods (runner, evaluation/likelihood.py)."""


@dataclass(frozen=True)
class InferenceSetup:
    """A model that answers test rows, seen from the fullest of its GPUs."""

    shape: ModelShape
    quantisation: Quantisation
    rows: int
    longest_prompt: int
    """Tokens, few-shot examples counted."""
    max_new_tokens: int
    longest_row: int
    """Tokens of prompt and answer, as scored."""
    adapter_parameters: int = 0
    gpus: int = 1
    """GPUs over which one copy is spread, block by block; each computes in its turn."""
    attention: Attention = "sdpa"
    cache_copies: int = 1
    """2 for Qwen's published rows, chosen after seeing them; explained by the old tuple cache, whose old and new
    exist at once."""


def _per_token(shape: ModelShape) -> float:
    """Bytes of the widest moment of a block: gate, up and their product, beside the residual stream."""
    return 2.0 * shape.widest_moment


def generated_rows(shape: ModelShape, rows: int, longest_prompt: int, max_new_tokens: int) -> int:
    """Rows of a batch of answers, where there are so many."""
    cache = 2 * shape.layers * shape.cached_width * (max(1, longest_prompt) + max_new_tokens)
    most = min(GENERATED_ROWS, GENERATED_TOKENS // max(1, longest_prompt), GENERATED_CACHE_BYTES // cache)
    return min(rows, max(1, most))


def answered_tokens(shape: ModelShape, rows: int, longest_prompt: int, max_new_tokens: int) -> tuple[float, float]:
    """Of the largest batch of answers: tokens whose keys and values are kept, and prompt tokens of one forward pass.

    A little more than `generated_rows` of the longest prompt have: not rounded to rows, so that a longer prompt never
    seems to need less.
    """
    rows = min(rows, GENERATED_ROWS)
    if rows < 1:
        return 0.0, 0.0
    one = longest_prompt + max_new_tokens
    within_cache = GENERATED_CACHE_BYTES / (2 * shape.layers * shape.cached_width)
    kept = max(one, min(rows * one, GENERATED_TOKENS + rows * max_new_tokens, within_cache))
    return float(kept), float(
        max(longest_prompt, min(rows * longest_prompt, GENERATED_TOKENS, kept * longest_prompt / one))
    )


def scored_tokens(rows: int, longest_row: int) -> int:
    """Tokens of the largest batch of likelihoods: a row longer than the bound is a batch of its own."""
    return min(max(SCORED_TOKENS, longest_row), rows * longest_row)


def _rows(setup: InferenceSetup) -> int:
    return max(1, min(GENERATED_ROWS, setup.rows))


def _resident(setup: InferenceSetup) -> dict[str, float]:
    share = blocks_on_a_gpu(setup.shape, setup.gpus) / setup.shape.layers
    return {
        "weights": spread_weight_bytes(setup.shape, setup.quantisation, setup.gpus),
        "adapter": 4.0 * setup.adapter_parameters * share,
        "dequantisation": dequantisation_bytes(setup.shape, setup.quantisation),
    }


def _scores(setup: InferenceSetup, row_tokens: float, tokens: float) -> dict[str, float]:
    if setup.attention != "eager":
        return {}
    factor = element_factor(setup.quantisation)
    return {"attentionScores": factor * score_bytes(setup.shape.heads, row_tokens, tokens)}


def generating_memory(setup: InferenceSetup, kept: float, passed: float) -> Breakdown:
    """Peak of answering: keys and values of `kept` tokens, and one forward pass of `passed` prompt tokens."""
    wider = element_factor(setup.quantisation)
    cache = wider * setup.cache_copies * cache_bytes(setup.shape, kept, blocks_on_a_gpu(setup.shape, setup.gpus))
    activations = wider * _per_token(setup.shape) * passed
    scores = _scores(setup, setup.longest_prompt, passed)
    return Breakdown({**_resident(setup), "keyValueCache": cache, "activations": activations, **scores})


def scoring_memory(setup: InferenceSetup) -> Breakdown:
    """Peak of likelihoods: a forward pass of the largest batch."""
    rows = _rows(setup)
    tokens = scored_tokens(rows, setup.longest_row)
    activations = element_factor(setup.quantisation) * _per_token(setup.shape) * tokens
    head = evaluated_logits_bytes(setup.shape, tokens)
    scores = _scores(setup, setup.longest_row, tokens)
    return Breakdown({**_resident(setup), "head": head, "activations": activations, **scores})


def inference_memory(setup: InferenceSetup) -> Breakdown:
    """Peak of answering and scoring, whichever is larger."""
    answered = answered_tokens(setup.shape, max(1, setup.rows), setup.longest_prompt, setup.max_new_tokens)
    peaks = (generating_memory(setup, *answered), scoring_memory(setup))
    return max(peaks, key=lambda peak: peak.device_bytes)


def merge_memory(setup: InferenceSetup) -> Breakdown:
    """Peak of the merged form: the whole model unquantised, first to add the adapter, then to answer."""
    whole: Quantisation = "fp32" if setup.quantisation == "fp32" else "none"
    answering = inference_memory(replace(setup, quantisation=whole, adapter_parameters=0))
    # safe_merge keeps the old and the new value of one linear layer, the new one in fp32.
    merging = Breakdown(
        {
            "weights": spread_weight_bytes(setup.shape, whole, setup.gpus),
            "adapter": 4.0 * setup.adapter_parameters,
            "merge": 6.0 * setup.shape.largest_linear,
        }
    )
    return max(answering, merging, key=lambda breakdown: breakdown.device_bytes)
