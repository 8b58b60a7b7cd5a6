"""The stages that ask and score a model: baseline, evaluate, and the merged form."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.planner.memory.attention import cache_bytes
from finetune_operator.planner.memory.breakdown import Breakdown
from finetune_operator.planner.memory.head import evaluated_logits_bytes
from finetune_operator.planner.memory.weights import Quantisation, dequantisation_bytes, weight_bytes
from finetune_operator.planner.shape import ModelShape

GENERATED_ROWS = 16
"""Rows of a batch of answers (runner, evaluation/generation.py)."""
SCORED_TOKENS = 16_384
"""Most tokens of a batch of likelihoods (runner, evaluation/likelihood.py)."""


@dataclass(frozen=True)
class InferenceSetup:
    """A model that answers test rows. It runs on one GPU, whatever training takes."""

    shape: ModelShape
    quantisation: Quantisation
    rows: int
    longest_prompt: int
    """Tokens, few-shot examples counted."""
    max_new_tokens: int
    longest_row: int
    """Tokens of prompt and answer, as scored."""
    adapter_parameters: int = 0


def inference_memory(setup: InferenceSetup) -> Breakdown:
    """Peak of generating (cache) or of scoring (logits), whichever is larger. Flash attention saves nothing."""
    shape = setup.shape
    rows = max(1, min(GENERATED_ROWS, setup.rows))
    # The widest tensors of a block: gate, up and their product, beside the residual stream.
    per_token = 2.0 * (4 * shape.hidden + 3 * shape.feed_forward)
    generating = {
        "keyValueCache": cache_bytes(shape, rows, setup.longest_prompt + setup.max_new_tokens),
        "activations": per_token * rows * setup.longest_prompt,
    }
    scoring = {
        "head": evaluated_logits_bytes(shape, rows, setup.longest_row),
        "activations": per_token * min(SCORED_TOKENS, rows * setup.longest_row),
    }
    larger = max(generating, scoring, key=lambda parts: sum(parts.values()))
    return Breakdown(
        {
            "weights": weight_bytes(shape, setup.quantisation),
            "adapter": 4.0 * setup.adapter_parameters,
            "dequantisation": dequantisation_bytes(shape, setup.quantisation),
            **larger,
        }
    )


def merge_memory(setup: InferenceSetup) -> Breakdown:
    """Peak of the merged form: the whole model in 16 bit, first to add the adapter, then to answer."""
    sixteen_bit = InferenceSetup(**{**vars(setup), "quantisation": "none", "adapter_parameters": 0})
    answering = inference_memory(sixteen_bit)
    # safe_merge keeps the old and the new value of one linear layer, the new one in fp32.
    merging = Breakdown(
        {
            "weights": weight_bytes(setup.shape, "none"),
            "adapter": 4.0 * setup.adapter_parameters,
            "merge": 6.0 * setup.shape.largest_linear,
        }
    )
    return max(answering, merging, key=lambda breakdown: breakdown.device_bytes)
