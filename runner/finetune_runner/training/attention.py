"""flash: PyTorch's own kernel for rows of several examples, as an attention of transformers.

SDPA needs a dense [tokens, tokens] mask to keep packed examples apart; this kernel (torch.nn.attention.varlen) is told
where each begins. No package is compiled for it. Rows with an attention mask (generation, validation) go to SDPA.
"""

from __future__ import annotations

from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

NAME = "finetune_varlen"
_MEMORY = "_finetune_segments"
NEITHER_COMPUTES = {"s_aux": "sinks (as gpt-oss)", "softcap": "capped scores (as Gemma 2)"}
"""Options with which a model calls its attention, and what they are."""


def implementation(wanted: str) -> str:
    """What transformers calls an attention of the plan; `flash` is registered with it."""
    if wanted != "flash":
        return wanted
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
        """Packed rows come without a mask, and get none."""
        if attention_mask is None:
            return None
        made: torch.Tensor | None = sdpa_mask(attention_mask=attention_mask, **options)
        return made

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    return NAME


def keep_out_of_graphs() -> None:
    """Where examples begin is a question to the data, which no compiled graph answers: blocks are cut at `flash`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(attend))


def refuse(what: str) -> StageError:
    """The error for a model that computes attention in a way that only transformers' own code knows."""
    return StageError(
        ExitCode.MODEL_UNUSABLE,
        f"model.attention is flash or auto, and {what}",
        hint="set model.attention: eager",
    )


def causal_mask(query: torch.Tensor, key: torch.Tensor, window: int) -> torch.Tensor:
    """[1, 1, queries, keys] bool, True = seen: a token sees itself and the `window - 1` before it.

    The last query belongs to the last key, as with a cache.
    """
    keys = torch.arange(key.shape[2], device=query.device)
    ahead = keys[-query.shape[2] :, None] - keys[None, :]
    return ((ahead >= 0) & (ahead < window))[None, None]


def segments(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where each example of a packed row begins, and the row's end ([n + 1], int32); and the longest example's length.

    Kept with the tensor, which is the same in all blocks of a forward pass: the GPU is waited for once, not per block.
    """
    kept: tuple[torch.Tensor, int] | None = getattr(position_ids, _MEMORY, None)
    if kept is None:
        starts = (position_ids[0] == 0).nonzero().flatten()
        bounds = torch.cat([starts, starts.new_tensor([position_ids.shape[1]])]).to(torch.int32)
        kept = (bounds, int((bounds[1:] - bounds[:-1]).max()))
        setattr(position_ids, _MEMORY, kept)
    return kept


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' form: [rows, heads, tokens, width] in, [rows, tokens, heads, width] out.

    Raises StageError (MODEL_UNUSABLE) when the model asks for what neither the kernel nor SDPA computes.
    """
    for option, meaning in NEITHER_COMPUTES.items():
        if options.get(option) is not None:
            raise refuse(f"the model's attention has {meaning}")
    packed = attention_mask is None and position_ids is not None and query.shape[0] == 1 and query.shape[2] > 1
    if not packed or position_ids is None or len((found := segments(position_ids))[0]) <= 2:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if attention_mask is None and sliding_window is not None and key.shape[2] > sliding_window:
            attention_mask = causal_mask(query, key, sliding_window)
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return result
    bounds, longest = found
    of_tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    behind = -1 if sliding_window is None else sliding_window - 1
    attended = varlen_kernel(of_tokens[0], of_tokens[1], of_tokens[2], bounds, longest, scaling, behind)
    return attended.unsqueeze(0), None


def varlen_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    behind: int,
) -> torch.Tensor:
    """Causal attention within segments on a GPU: [tokens, heads, width]; `behind` tokens are seen, -1 = all."""
    from torch.nn.attention.varlen import varlen_attn

    attended: Any = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(behind, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    whole: torch.Tensor = attended  # a tuple only with return_aux
    return whole
