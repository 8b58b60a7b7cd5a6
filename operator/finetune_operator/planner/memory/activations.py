"""What the backward pass needs again: kept, or computed once more.

Bytes per token and block were measured as saved tensors of Llama blocks (residual of the fit 0) and taken apart here
by where they come from, so that targets, dropout and precision each count for themselves. On a GPU dropout keeps a
mask of one byte per element (fused kernel); the CPU's keeps it in the input's precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.planner.shape import ModelShape

QUERY_KEY_VALUE = frozenset({"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"})
LATENT = frozenset({"q_b_proj", "kv_b_proj"})
GATE_UP = frozenset({"gate_proj", "up_proj"})


def saved_bytes_per_token(
    shape: ModelShape, rank: int, targets: Sequence[str], *, dropout: bool, adapter_bytes: int
) -> float:
    """Bytes that one block saves per token when nothing is recomputed.

    Frozen linears need no input of their own: 8h + 4q + 6I + 4kv + 4n + 8 remain of norms, attention and activation
    (q: width of all query heads). An adapter adds its input and its r numbers: shared by q, k, v and by gate, up in one
    precision; with fp32 adapters under autocast, or with dropout, a copy of its own for each.
    """
    hidden, feed_forward = shape.hidden, shape.feed_forward
    gate = 6 if shape.gated else 4
    inner = gate * feed_forward if shape.mixture is None else _mixture_saved_bytes_per_token(shape)
    base = 8 * hidden + inner + _attention_saved_bytes_per_token(shape) + 4 * shape.heads + 8
    inputs = 0.0
    if dropout or adapter_bytes == 4:
        per_element = 3 if dropout else 2
        inputs = float(per_element * sum(shape.linears[name][0] for name in targets))
    else:
        inputs += 2 * hidden if QUERY_KEY_VALUE & set(targets) else 0
        inputs += 2 * hidden if GATE_UP & set(targets) else 0
        inputs += 2 * feed_forward if "down_proj" in targets else 0
        # What attention gives has the layout of its queries: of two parts, it is copied for the next layer.
        copied = LATENT | {"o_proj"} if shape.latent else frozenset[str]()
        inputs += sum(2 * shape.linears[name][0] for name in copied & set(targets))
    return base + inputs + 2 * rank * len(targets)


def _attention_saved_bytes_per_token(shape: ModelShape) -> int:
    """Queries, keys, values and what comes of them; of latent attention also the norms of what they are made of."""
    latent = shape.latent
    if latent is None:
        return 4 * shape.query_width + 4 * shape.key_value_width
    norms = 4 * latent.key_value + 4 + (4 * latent.query + 4 if latent.query else 0)
    return norms + 2 * (shape.query_width + shape.expanded_width + shape.output_width)


def _mixture_saved_bytes_per_token(shape: ModelShape) -> float:
    """The same of a mixture's experts and router, of its wider kind of block.

    Measured as saved tensors of Mixtral, Qwen3, Qwen2, OLMoE and DeepSeek blocks (tests/runner/test_mixture_memory.py):
    each of the k experts that a token passes keeps its gate, its output and where the token was; the router its scores
    in fp32.
    """
    mixture = shape.mixture
    if mixture is None:
        return 0.0
    experts = mixture.active * (6 * mixture.width + 2 * shape.hidden + 40) + 4 * mixture.experts
    # Qwen2's shared experts have a gate, those beside latent attention have none.
    gate = 0 if shape.latent else 2 * shape.hidden + 2
    shared = 6 * mixture.shared + gate if mixture.shared else 0
    return float(max(experts + shared, 6 * shape.feed_forward if mixture.dense_blocks else 0))


def recomputed_bytes_per_token(shape: ModelShape) -> float:
    """What recomputing a mixture's block needs beyond the factor: outputs and gradients of each expert of a token.

    Measured on a CPU as peak live storage: 0.34 to 0.72 of what is saved; with 7 h k the factor was never too low.
    """
    return 7.0 * shape.hidden * shape.mixture.active if shape.mixture else 0.0


def frozen_input_bytes_per_token(shape: ModelShape) -> float:
    """Bytes that one block saves besides where frozen 4-bit layers keep their inputs: bitsandbytes before 0.43.2.

    Its release notes: 10.1 GB for a 70B model at 1,024 tokens, which is 2 (4h + I) per token and block.
    """
    return 2.0 * (4 * shape.hidden + shape.feed_forward)


def recomputation_factor(*, dropout: bool, adapter_bytes: int) -> float:
    """Peak while one block is computed again, as a multiple of what it saves.

    Measured on a CPU as peak live storage: 1.36 in one precision, 1.5 with dropout, 1.58 with fp32 adapters.
    """
    if dropout:
        return 1.5
    return 1.58 if adapter_bytes == 4 else 1.36


def checkpoint_bytes(shape: ModelShape, tokens: int, residual_bytes: int = 2) -> float:
    """With gradient checkpointing each block keeps only its input, the residual stream.

    `residual_bytes` is 4 where the stream is fp32: after peft's `prepare_model_for_kbit_training`.
    """
    return float(residual_bytes * shape.hidden * shape.layers * tokens)
