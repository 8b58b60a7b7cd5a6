"""Losses of the labelled positions only, in chunks: neither prompts nor the full logits ever meet the head.

Half of a training step on a small model is the head (V/h = 125 on the benchmark's model, 31 on Llama-3-8B), and prompts
are most of its rows. Chunks bound the memory of the logits, which for 128,256 tokens of vocabulary is otherwise the
largest part of a step. Same loss and gradient as `model(**batch).loss` (tests/runner/test_label_only.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from finetune_runner.evaluation.likelihood import IGNORED

CHUNK_BYTES = 512 * 2**20
"""Of one chunk's logits in fp32, their softmax and its gradient."""
BYTES_PER_LOGIT = 14
"""From the head in 16 bit (2), in fp32 (4), log-softmax (4) and gradient (4)."""

Post = Callable[[torch.Tensor], torch.Tensor]


def head_post(config: Any) -> Post:
    """What a model does to its head's output, by the names its configuration has in transformers."""
    scale, divisor, cap = (
        getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")
    )

    def post(logits: torch.Tensor) -> torch.Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return post


class _ChunkedHead(torch.autograd.Function):
    """Per-token cross-entropy of a frozen head; its gradient is computed with the loss, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        post: Post,
    ) -> torch.Tensor:
        """[n] losses from [n, h] hidden states, [n] labels and the head's [v, h] weight."""
        rows = max(1, CHUNK_BYTES // (BYTES_PER_LOGIT * weight.shape[0]))
        losses = hidden.new_empty(len(labels), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = functional.linear(hidden[part], weight, bias)
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_(gradient is not None)
                loss = functional.cross_entropy(post(leaf).float(), labels[part], reduction="none")
                if gradient is not None:
                    (of_logits,) = torch.autograd.grad(loss.sum(), leaf)
                    gradient[part] = of_logits.to(weight.dtype) @ weight
            losses[part] = loss.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """A token's loss depends on its own hidden state only: its gradient is scaled row by row."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype).unsqueeze(1), None, None, None, None


def plain(model: Any) -> Any:
    """The model of transformers in PEFT's, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def label_losses(model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """[labelled tokens] losses in nats, row by row, differentiable.

    Args:
        model: a model of transformers, or PEFT's of one whose head is frozen (never a target, see loading.py).
        input_ids: [rows, width].
        labels: [rows, width]; -100 is not scored, nor is the first position of a row.
        inputs: what else the decoder takes, for example `position_ids` of packed rows.
    """
    base = plain(model)
    hidden = base.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    wanted = labels[:, 1:]
    scored = wanted != IGNORED
    head = base.get_output_embeddings()
    # Reading `weight` is what makes ZeRO-3 gather it (it registers it with the module whose forward this is).
    weight = head.weight
    # A model that is spread over GPUs has its head on one, and its last block maybe on another.
    losses: torch.Tensor = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden[:, :-1][scored.to(hidden.device)].to(weight.device),
        wanted[scored].to(weight.device),
        weight,
        getattr(head, "bias", None),
        head_post(base.config.get_text_config()),
    )
    return losses
