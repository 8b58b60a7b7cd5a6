"""Mixtures of experts: frozen weights of all experts of a block in one tensor, in 16 bit or in NF4.

transformers 5 keeps them as parameters of three dimensions, which bitsandbytes, made for nn.Linear, leaves in 16 bit:
of Qwen3-30B-A3B 58 of 61 GB. Here they are quantised while they are read, one tensor at a time, and restored where a
forward or backward pass uses them, as bitsandbytes does for a linear layer. Scales are not quantised a second time
(0.5625 bytes per parameter instead of 0.516): so each expert's matrix is quantised alike alone and in the tensor of
all, and merging.py can restore it file by file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps
from transformers.integrations.moe import ExpertsInterface, _grouped_mm
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

NAME = "finetune_frozen"
"""The implementation of experts in transformers' configuration."""
_QUANTISATION = "finetune_nf4_mixture"
_STATES = "finetune_quantisation_states"
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
BLOCK = 64
"""Weights that share a scale: bitsandbytes' own for NF4."""


def is_fused(module: Any) -> bool:
    """Whether a module holds the weights of all experts of a block, and is computed as its configuration says.

    That is what transformers' `use_experts_implementation` makes of a class.
    """
    return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")


def expert_weights(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Name of the module, the module and the name in it of every tensor of expert weights."""
    for path, module in model.named_modules():
        if is_fused(module):
            for name in _WEIGHTS:
                if module._parameters.get(name) is not None:
                    yield path, module, name


def remember_quantisation(module: Any) -> None:
    """Keep the scales with the module: FSDP1 replaces the parameters that hold them by views of a flat one."""
    for name in _WEIGHTS:
        state = getattr(module._parameters.get(name), "quant_state", None)
        if state is not None and is_fused(module):
            module.__dict__.setdefault(_STATES, {})[name] = state


def _weight(module: Any, name: str) -> torch.Tensor:
    """[experts, ., .]: the weights in the precision that is computed in."""
    stored: torch.Tensor = getattr(module, name)
    state = _state(module, name)
    return stored if state is None else _restored(stored, state)


def _state(module: Any, name: str) -> Any:
    """Scales, shape and precision of a weight in 4 bit; None of any other."""
    return getattr(getattr(module, name), "quant_state", None) or module.__dict__.get(_STATES, {}).get(name)


def _restored(stored: torch.Tensor, state: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    restored: torch.Tensor = dequantize_4bit(stored.detach().as_subclass(torch.Tensor), state)
    return restored


class _Product(torch.autograd.Function):
    """Tokens, sorted by expert, times the frozen weights of their experts; what is kept for the gradient is the module.

    Autograd would keep the restored weights of every block until the backward pass, and under ZeRO-3 the gathered ones.
    """

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, ends: torch.Tensor, module: Any, name: str) -> torch.Tensor:
        """[tokens, in] -> [tokens, out]; `ends`: [experts] int32, where each expert's tokens end."""
        ctx.save_for_backward(ends)
        ctx.module, ctx.name = module, name
        weight = _weight(module, name)
        product: torch.Tensor = _grouped_mm(tokens, weight if module.is_transposed else weight.transpose(1, 2), ends)
        return product

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the tokens; the weights have none."""
        (ends,) = ctx.saved_tensors
        weight = _weight(ctx.module, ctx.name)
        transposed = weight.transpose(1, 2) if ctx.module.is_transposed else weight
        return _grouped_mm(grad_outputs[0].contiguous(), transposed, ends), None, None, None


def _projected(tokens: torch.Tensor, ends: torch.Tensor, experts: torch.Tensor, module: Any, name: str) -> torch.Tensor:
    dtype = (_state(module, name) or getattr(module, name)).dtype
    product: torch.Tensor = _Product.apply(tokens.to(dtype), ends, module, name)  # type: ignore[no-untyped-call]
    return product + getattr(module, f"{name}_bias")[experts] if module.has_bias else product


def forward(module: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """[tokens, h] out of [tokens, h], as transformers' `grouped_mm_experts_forward` computes it.

    Args:
        module: the experts of a block.
        hidden: [tokens, h].
        top_k_index: [tokens, k] experts of each token.
        top_k_weights: [tokens, k] of the router.
    """
    count = top_k_index.shape[-1]
    experts, order = torch.sort(top_k_index.reshape(-1), stable=True)
    numbers = torch.arange(module.num_experts, device=experts.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
    inner = _projected(hidden[order // count], ends, experts, module, _WEIGHTS[0] if module.has_gate else _WEIGHTS[1])
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outer = _projected(inner, ends, experts, module, _WEIGHTS[2])
    if module.has_post_expert_norm:
        outer = module.post_expert_norm(outer)
    weighted = outer * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return weighted[inverse].view(len(hidden), count, -1).sum(dim=1).to(hidden.dtype)


ExpertsInterface.register(NAME, forward)


@register_quantization_config(_QUANTISATION)
class MixtureConfig(BitsAndBytesConfig):
    """What transformers is told of a mixture whose base is quantised to NF4."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.quant_method: Any = _QUANTISATION


class _Quantise(ConversionOps):
    def __init__(self, quantizer: Any) -> None:
        self._config = quantizer.quantization_config
        self._linear = Bnb4BitHfQuantizer.get_quantize_ops(quantizer)

    def convert(self, input_dict: dict[str, Any], *args: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
        from bitsandbytes.nn.modules import Params4bit

        (name, value), *_ = input_dict.items()
        module = model.get_submodule(name.rpartition(".")[0])
        if not is_fused(module):
            found: dict[str, Any] = self._linear.convert(input_dict, *args, model=model, **kwargs)
            return found
        weight = value[0] if isinstance(value, list) else value
        quantised: Any = Params4bit(
            weight.contiguous(),
            requires_grad=False,
            compress_statistics=False,
            blocksize=BLOCK,
            quant_type=self._config.bnb_4bit_quant_type,
            quant_storage=self._config.bnb_4bit_quant_storage,
        )
        return {name: quantised.to(weight.device)}


@register_quantizer(_QUANTISATION)
class MixtureQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' NF4 for linear layers, and for the weights of experts."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a parameter is stored in 4 bit."""
        path, _, name = param_name.rpartition(".")
        if name in _WEIGHTS and is_fused(model.get_submodule(path)):
            return True
        found: bool = super().param_needs_quantization(model, param_name, **kwargs)
        return found

    def get_quantize_ops(self) -> Any:
        """What makes a 4-bit weight of one that was read."""
        return _Quantise(self)

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        for _, module, name in list(expert_weights(model)):
            stored = getattr(module, name)
            weight = _restored(stored, stored.quant_state)
            setattr(module, name, torch.nn.Parameter(weight.to(dtype or weight.dtype), requires_grad=False))
        return super()._dequantize(model, dtype)  # type: ignore[no-untyped-call]
